"""Measure the spread of metrics over sample seeds, and their bias against the number of clips, on the bundled videos.

The generated clips are other moving shapes, blurred, so that the distance is not zero; every set consists of other
clips. The real clips are the same for all sets, as for all models under a protocol. Without arguments, the metrics of
the bundled extractor are measured. The extractors of FVD, FID and the inception score need their weights::

    python benchmarks/metric_spread.py --extractor i3d=i3d_torchscript.pt --num_frames 16
"""

import argparse
from collections.abc import Sequence
from datetime import date

import numpy as np
import torch
from note import add_arguments, environment, write

from latte_pl.evaluation.extractors import build_extractor
from latte_pl.metrics import METRICS, Extractor, clip_features, score
from latte_pl.toy import MovingShapes
from latte_pl.types import Split

FOLDS = 8
SHARE = 0.05  # the difference that should be resolved, relative to the value


def blur(video: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur the frames of a clip (F, 3, H, W) uint8."""
    from torchvision.transforms.v2 import functional as F

    return F.gaussian_blur(video, [7, 7], [sigma, sigma]) if sigma else video


def features(
    extractor: Extractor, split: Split, count: int, seed: int, args: argparse.Namespace, sigma: float
) -> np.ndarray:
    """Return the features (count, k, D) of moving shapes."""
    videos = MovingShapes(split, args.size, count, seed)
    rows = []
    for index in range(count):
        clip = videos.read(index, args.num_frames, max(1, 16 // args.num_frames))
        rows.append(clip_features(extractor, blur(clip, sigma)[None].to(args.device)).cpu())
    return torch.cat(rows).numpy()


def table(metric: str, real: np.ndarray | None, fake: np.ndarray, other: np.ndarray, clips: Sequence[int]) -> list[str]:
    """Return the lines of the table of one metric."""
    found, intact = {}, {}
    for count in clips:
        sets = [fake[n : n + count] for n in range(0, len(fake) - count + 1, count)][:16]
        labels = np.arange(count) % 8  # the classes of the moving shapes alternate
        side = None if real is None else real[:count]
        found[count] = [score(metric, side, x, FOLDS, labels, labels) for x in sets]
        intact[count] = score(metric, side, other[:count]).value
    means = {count: float(np.mean([s.value for s in scores])) for count, scores in found.items()}
    # the bias of a Fréchet distance is proportional to 1 / clips: the intercept is the value of infinitely many
    unbiased = METRICS[metric].minimum is None
    large = [count for count in clips if found[count][0].label == "full"][-3:]
    limit = np.polyfit([1 / n for n in large], [means[n] for n in large], 1)[1] if len(large) > 1 else np.nan
    lines = [
        f"### {metric}",
        "",
        "This metric has no bias; its values differ by the choice of the real clips."
        if unbiased
        else f"Value of infinitely many clips, extrapolated from {', '.join(map(str, large))}: {limit:.4g}.",
        "",
        "| clips a side | sets | value | bias | SD over sets | 95 % half width of one set | label | no blur "
        "| clips for 5 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for count, scores in found.items():
        spread = float(np.std([s.value for s in scores], ddof=1)) if len(scores) > 1 else np.nan
        bias = "-" if unbiased else f"{means[count] - limit:+.3g}"
        halves = [s.interval.high - s.value for s in scores if s.interval]
        half = f"{np.mean(halves):.4g}" if halves else "-"
        # two models have independent samples, and their difference 1.96 sqrt(2) times the spread of one
        needed = count * (1.96 * np.sqrt(2) * spread / (SHARE * means[count])) ** 2
        lines.append(
            f"| {count} | {len(scores)} | {means[count]:.4g} | {bias} | {spread:.3g} | {half} "
            f"| {scores[0].label} | {intact[count]:.3g} | {needed:,.0f} |"
        )
    return [*lines, ""]


def main() -> None:
    """Measure the metrics of each extractor, and write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--extractor", action="append", help="NAME or NAME=WEIGHTS; may be repeated (default: shapes_r3d)"
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="clips of a side")
    parser.add_argument("--pool", type=int, default=2048, help="generated clips in all sets together")
    parser.add_argument("--num_frames", type=int, default=8, help="frames of a clip, at most 16")
    parser.add_argument("--size", type=int, default=64, help="side of the frames in pixels")
    parser.add_argument("--sigma", type=float, default=2.0, help="blur of the generated clips in pixels")
    add_arguments(parser, device=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.extractor or ["shapes_r3d"]
    command = f"--clips {' '.join(map(str, args.clips))} --pool {args.pool} --num_frames {args.num_frames} "
    lines = [
        f"# Spread and bias of the metrics ({date.today():%Y-%m})",
        "",
        environment(args),
        f"Command: `python benchmarks/metric_spread.py {command}--size {args.size} --sigma {args.sigma:g}`.",
        "",
        "Real: the first clips of the validation split of the moving shapes, the same for all sets. Generated: "
        f"{args.pool} other moving",
        f"shapes, blurred with sigma {args.sigma:g}, in disjoint sets (at most 16).",
        "",
        "- Bias: the mean over the sets minus the value of infinitely many clips.",
        f"- 95 % half width: of the {FOLDS}-fold jackknife, mean over the sets. An exact one is 2.4 times the SD;",
        "  this one also contains the choice of the real clips, which all models share.",
        "- No blur: the value of a set that is not blurred. A perfect model has this value, not 0.",
        "- Clips for 5 %: the number of clips of each model with which a difference of 5 % between two models exceeds",
        "  the 95 % noise of their samples, if the spread falls as 1 / sqrt(clips).",
        "",
    ]
    for item in names:
        name, _, path = item.partition("=")
        extractor = build_extractor(name, path or None)
        count = max(args.clips)
        real = features(extractor, "val", count, 0, args, 0)
        other = features(extractor, "train", count, 1, args, 0)
        fake = features(extractor, "train", args.pool, 2, args, args.sigma)
        for metric, entry in METRICS.items():
            if entry.extractor == name:
                lines += table(metric, real if entry.needs_real else None, fake, other, args.clips)
    write(lines[:-1], args.note)


if __name__ == "__main__":
    main()
