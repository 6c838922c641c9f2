"""From video files to new weights: whole decode, VAE and the official step against cached latents and our step.

    pip install timm
    python benchmarks/files_to_weights.py --official official --hardware "2 cores AMD EPYC Zen 4" \
        --note benchmarks/results/files-to-weights_2-core-cpu_2026-11.md

`--official` is a checkout of github.com/Vchitect/Latte. Both paths start from the same XviD files and end with AdamW
and the moving average. The official one decodes each video whole, encodes its 16 frames by an autoencoder of Stable
Diffusion's size at every step and trains in float32; ours reads latents that were encoded once, and trains in bf16.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from data import FRAMES, INTERVAL, LENGTH, NUM_VIDEOS, SIZE, Shrink, StableDiffusionSized, delivered
from data import official as official_read
from fake_videos import write_xvid
from torch import Tensor
from train_step import inputs, seconds, step_of

from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.stream import ClipStream

OURS = ("bf16", "compiled bf16")


def official_latents(data: VideoFolder, vae: StableDiffusionSized, clip: int, frames: int) -> dict[str, float]:
    """Return the seconds in which the official path makes the latents of one clip, by part."""
    held: list[Tensor] = []
    decode = seconds(lambda: held.append(delivered(official_read)(data, clip % len(data), clip % 50)), "cpu")
    pixels = held[0][:frames].float() / 127.5 - 1.0
    with torch.no_grad():
        taken = seconds(lambda: vae.vae.encode(pixels).latent_dist.sample(), "cpu")
    return {"decode": decode, "VAE": taken * FRAMES / frames}


def cached_latents(stream: ClipStream, first: int, batch: int) -> Tensor:
    """Read clips from the cache and draw from their posteriors."""
    moments = torch.stack([stream[n]["moments"] for n in range(first, first + batch)]).float()
    mean, logvar = moments.chunk(2, dim=2)
    return (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * 0.18215


def measure(folder: Path, args: argparse.Namespace) -> list[str]:
    """Measure both paths, as the rows of a table."""
    for number in range(NUM_VIDEOS):
        write_xvid(folder / "videos" / f"{number}.avi", LENGTH, number, size=SIZE, gop=12)
    videos = VideoFolder(folder / "videos", 256, FRAMES, INTERVAL)
    encode(VideoFolder(folder / "videos", 256, 1, 1), Shrink(), folder / "cache", {}, True, torch.device("cpu"))
    stream = ClipStream(CachedLatents(folder / "cache", "all", FRAMES, INTERVAL, flip=True), FRAMES, INTERVAL, seed=0)
    vae = StableDiffusionSized()
    vae.vae = vae.vae.to(memory_format=torch.contiguous_format)  # as the official scripts leave it
    batch = inputs(args.batch, args.side, "cpu")
    steps = {arm: step_of(arm, args, batch) for arm in ("official", *OURS)}
    parts: dict[str, list[float]] = {name: [] for name in ("decode", "VAE", *steps)}
    ratios: dict[str, list[float]] = {arm: [] for arm in OURS}
    for turn in range(args.repeats + 1):
        found = official_latents(videos, vae, turn, args.frames)
        found["official"] = seconds(steps["official"], "cpu") / args.batch
        for arm in OURS:

            def ours(arm: str = arm, turn: int = turn) -> None:
                batch["x"] = cached_latents(stream, turn * args.batch, args.batch)
                steps[arm]()

            found[arm] = seconds(ours, "cpu") / args.batch
        print(turn, found, file=sys.stderr, flush=True)
        if turn:  # the first round warms up and compiles
            for name, value in found.items():
                parts[name].append(value)
            for arm, values in ratios.items():
                values.append((found["decode"] + found["VAE"] + found["official"]) / found[arm])
    middle = {name: statistics.median(values) for name, values in parts.items()}
    whole = middle["decode"] + middle["VAE"] + middle["official"]
    return [
        f"| official: decode {middle['decode']:.2f} s + VAE {middle['VAE']:.1f} s + float32 step "
        f"{middle['official']:.1f} s | {whole:.1f} | 1 |",
        *(
            f"| cached latents + our step, {arm} | {middle[arm]:.2f} | **{statistics.median(values):.1f}x** |"
            for arm, values in ratios.items()
        ),
    ]


def main() -> None:
    """Measure, print and keep the note."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--note", type=Path, help="file to write the result to")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    parser.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=2, help="frames that the VAE encodes; its time is scaled to 16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    args.device, args.side = "cpu", 32
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place), args)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    note = "\n".join(
        [
            "# From video files to new weights",
            "",
            f"Hardware: {args.hardware}, {args.threads} threads. Python {platform.python_version()}, torch "
            f"{torch.__version__}. Commit {commit.stdout.strip() or 'unknown'}.",
            f"Command: `python benchmarks/files_to_weights.py --official PATH --size {args.size} --batch {args.batch} "
            f"--frames {args.frames} --repeats {args.repeats} --threads {args.threads}`.",
            "",
            f"{args.size}/2, clips of {FRAMES} x 256 x 256 from XviD AVIs of {LENGTH} frames, steps of {args.batch} "
            f"clips; the VAE has random weights and encodes {args.frames} frames,",
            f"scaled to {FRAMES}. {'CPU' if args.threads == 1 else 'Wall-clock'} seconds a clip; medians of "
            f"{args.repeats} interleaved rounds after one to warm up.",
            "Encoding a data set once costs what one epoch of the official path spends on decoding and VAE.",
            "",
            "| path | seconds a clip | gain |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
    print(note)
    if args.note:
        args.note.parent.mkdir(parents=True, exist_ok=True)
        args.note.write_text(note)


if __name__ == "__main__":
    main()
