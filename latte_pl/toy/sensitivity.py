"""Measure how the toy video distance reacts to degraded clips.

    python -m latte_pl.toy.sensitivity

writes the table in latte_pl/toy/weights/README.md.
"""

import argparse
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latte_pl.metrics import frechet_from_features, kernel_distance
from latte_pl.rng import numpy_generator
from latte_pl.toy.extractor import SIZE, WEIGHTS, ShapesR3D
from latte_pl.toy.shapes import MovingShapes
from latte_pl.toy.train_extractor import INTERVAL, LENGTH, NUM_FRAMES

Degradation = Callable[[Tensor, float, np.random.Generator], Tensor]


def blur(clip: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Blur every frame with a Gaussian; sigma in pixels."""
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(clip, kernel_size=2 * [2 * round(3 * sigma) + 1], sigma=2 * [sigma])


def noise(clip: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Add independent Gaussian noise; sigma in grey levels."""
    noisy = clip.float() + torch.from_numpy(rng.normal(scale=sigma, size=clip.shape)).float()
    return noisy.round().clamp(0, 255).to(torch.uint8)


def colour_shift(clip: Tensor, levels: float, rng: np.random.Generator) -> Tensor:
    """Add grey levels to red and subtract them from blue."""
    shift = torch.tensor([levels, 0.0, -levels])[:, None, None]
    return (clip.float() + shift).round().clamp(0, 255).to(torch.uint8)


def shuffle(clip: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Exchange a share of the frames among themselves."""
    chosen = rng.permutation(len(clip))[: round(share * len(clip))]
    order = np.arange(len(clip))
    order[chosen] = np.roll(chosen, 1)  # one cycle, so that each chosen frame moves
    return clip[torch.from_numpy(order)]


def freeze(clip: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Replace the last share of the frames by the frame before them."""
    last = len(clip) - 1 - round(share * (len(clip) - 1))
    return clip[torch.arange(len(clip)).clamp(max=last)]


DEGRADATIONS: dict[str, tuple[Degradation, str, tuple[float, ...]]] = {
    "blur": (blur, "sigma in pixels", (0.5, 1.0, 2.0, 4.0)),
    "noise": (noise, "sigma in grey levels", (4, 8, 16, 32)),
    "colour shift": (colour_shift, "grey levels", (8, 16, 32, 64)),
    "frame shuffling": (shuffle, "share of frames", (0.25, 0.5, 0.75, 1.0)),
    "freezing": (freeze, "share of frames", (0.25, 0.5, 0.75, 1.0)),
}
SPEEDS = {"faster": (5, 6, 7, 8), "slower": (3, 2, 1)}  # intervals of the clips


def features_of(net: ShapesR3D, clips: list[Tensor]) -> np.ndarray:
    """Return the features (N, D) of N clips."""
    with torch.no_grad():
        return torch.cat([net(clip[None]) for clip in clips]).double().numpy()


def sensitivity(num_clips: int, paired: bool = False) -> dict[str, list[tuple[str, float, float]]]:
    """Return the distances of degraded validation clips to intact ones.

    Args:
        num_clips: Number of clips on each side.
        paired: Compare with the same clips. The sampling noise then cancels out, so that few clips suffice. Otherwise
            compare with other clips.

    Returns:
        For each degradation a list of strength, Fréchet distance and kernel distance.
    """
    net = ShapesR3D()
    dataset = MovingShapes("val", SIZE, length=LENGTH, num_videos=2 * num_clips)

    def read(interval: int, first: int) -> list[Tensor]:
        return [dataset.read(i, NUM_FRAMES, interval) for i in range(first, first + num_clips)]

    intact = read(INTERVAL, num_clips)
    real = features_of(net, intact if paired else read(INTERVAL, 0))

    def measure(strength: str, clips: list[Tensor]) -> tuple[str, float, float]:
        features = features_of(net, clips)
        return strength, frechet_from_features(real, features), kernel_distance(real, features)

    rows = {"none": [measure("", intact)]}
    for name, (degrade, _, strengths) in DEGRADATIONS.items():
        rows[name] = [
            measure(f"{s:g}", [degrade(c, s, numpy_generator(0, name, n)) for n, c in enumerate(intact)])
            for s in strengths
        ]
    for name, intervals in SPEEDS.items():
        rows[name] = [measure(f"x{i / INTERVAL:g}", read(i, num_clips)) for i in intervals]
    return rows


def page(rows: dict[str, list[tuple[str, float, float]]], num_clips: int) -> str:
    """Return the README of the weights, with the results of `sensitivity`."""
    ((_, floor, kernel_floor),) = rows["none"]
    lines = [
        "# shapes_r3d: the bundled feature extractor",
        "",
        f"The weights of `latte_pl.toy.extractor.ShapesR3D`: {WEIGHTS.stat().st_size / 1024:.0f} KiB, float16, sha256",
        f"`{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}`.",
        "`python -m latte_pl.toy.train_extractor` trains them on the moving shapes to classify motion, shape, colour",
        "and background, and to predict speed. The Fréchet distance of the features is the *toy video distance*. It",
        "is not the FVD of papers, and is comparable only with itself, under the same protocol.",
        "",
        "## Sensitivity",
        "",
        f"The table compares {num_clips} degraded validation clips with {num_clips} other, intact validation clips.",
        f"A clip has {NUM_FRAMES} frames of {SIZE} x {SIZE} pixels, every {INTERVAL}th frame of {LENGTH}. In training",
        "the network saw speeds from x0.5 to x2.25 and no other degradation. `python -m latte_pl.toy.sensitivity`",
        "makes the table.",
        "",
        f"Without a degradation the Fréchet distance is **{floor:.2f}** and the kernel distance is",
        f"**{kernel_floor:.4f}**. Each of the {ShapesR3D.num_features} features has unit variance on training clips.",
        f"The value {floor:.2f} is the bias of the Fréchet distance on finite samples, which is proportional to",
        "1 / clips. The kernel distance has no bias.",
        "",
        "| degradation | strength: Fréchet distance | increases | strength: kernel distance |",
        "|---|---|---|---|",
    ]
    units = {name: unit for name, (_, unit, _) in DEGRADATIONS.items()} | dict.fromkeys(SPEEDS, "speed")
    for name, unit in units.items():
        values = rows[name]
        increases = all(a < b for a, b in itertools.pairwise([floor, *(distance for _, distance, _ in values)]))
        distances = ", ".join(f"{strength}: {distance:.2f}" for strength, distance, _ in values)
        kernels = ", ".join(f"{strength}: {kernel:.4f}" for strength, _, kernel in values)
        lines.append(f"| {name} ({unit}) | {distances} | {'yes' if increases else 'NO'} | {kernels} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=WEIGHTS.parent / "README.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = page(sensitivity(args.num_clips), args.num_clips)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
