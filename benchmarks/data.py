"""Clips a second from XviD AVIs, windowed against whole decode, and from cached latents against a per-step VAE.

    python benchmarks/data.py --note benchmarks/results/data_2-core-cpu_2026-11.md --hardware "2 cores AMD EPYC Zen 4"

Everything runs in one process on one thread and is timed in CPU seconds, which another load on the machine stretches
least. The arms read the same clips (same seed: same videos, same starts) and take turns, so that such a load meets all
of them; a ratio is the median of the ratios of the rounds.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from latte_pl.codecs import Codec
from latte_pl.data.decoding import read_video
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.stream import ClipStream
from latte_pl.data.transforms import centre_box, draw_view, to_clip

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_videos import write_xvid

FRAMES, INTERVAL, LENGTH, SIZE, NUM_VIDEOS = 16, 3, 175, (240, 320), 8
Read = Callable[[VideoFolder, int, int], Tensor]


def decoded_whole(path: Path) -> Tensor:
    """Decode a file to RGB (T, 3, H, W) as torchvision's read_video did, through which the official loader reads."""
    with av.open(str(path)) as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return torch.as_tensor(np.stack(frames)).permute(0, 3, 1, 2)


def windowed(data: VideoFolder, index: int, start: int) -> Tensor:
    """Read a clip as training does, uncropped."""
    return torch.from_numpy(read_video(data.root / data.path(index), data._indices[index], start, FRAMES, INTERVAL))


def official(data: VideoFolder, index: int, start: int) -> Tensor:
    """Decode the whole video and pick the frames of the clip."""
    return decoded_whole(data.root / data.path(index))[start : start + (FRAMES - 1) * INTERVAL + 1 : INTERVAL]


def whole(data: VideoFolder, index: int, start: int) -> Tensor:
    """Decode the whole video with this package's own colour conversion and pick the frames of the clip."""
    frames = read_video(data.root / data.path(index), data._indices[index], 0, data.length(index))
    return torch.from_numpy(frames[start : start + (FRAMES - 1) * INTERVAL + 1 : INTERVAL])


def delivered(read: Read) -> Read:
    """Return a reader that also crops and scales to 256 x 256, as the loader does."""

    def reader(data: VideoFolder, index: int, start: int) -> Tensor:
        frames = read(data, index, start)
        frames = frames if frames.shape[-1] == 3 else frames.permute(0, 2, 3, 1)
        top, left, h, w = centre_box(*SIZE, (256, 256))
        return to_clip(frames[:, top : top + h, left : left + w].numpy(), (256, 256))

    return reader


def rates(arms: dict[str, Callable[[int], object]], rounds: int, clips: int) -> dict[str, list[float]]:
    """Return clips a second of each arm in each round; all arms of a round are given the same clip numbers."""
    out: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            start = time.process_time()
            for clip in range(turn * clips, (turn + 1) * clips):
                arm(clip)
            if turn:  # the first round warms up
                out[name].append(clips / (time.process_time() - start))
    return out


def ratio(rates: dict[str, list[float]], name: str, other: str) -> float:
    """Return how many times as fast one arm is as another: the median over rounds."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[other]))


def decode_table(folder: Path, gop: int, rounds: int, clips: int) -> list[str]:
    """Measure the readers on videos of one keyframe distance, as rows of a table."""
    for number in range(NUM_VIDEOS):
        write_xvid(folder / f"{number}.avi", LENGTH, number, size=SIZE, gop=gop)
    data = VideoFolder(folder, 256, FRAMES, INTERVAL)
    stream = ClipStream(data, FRAMES, INTERVAL, seed=0)

    def arm(read: Read) -> Callable[[int], Tensor]:
        def run(clip: int) -> Tensor:
            view = draw_view(LENGTH, FRAMES, INTERVAL, False, np.random.default_rng(clip))
            return read(data, stream.index(clip), view.start)

        return run

    readers: dict[str, Read] = {"windowed": windowed, "whole, own conversion": whole, "whole, official": official}
    assert torch.equal(delivered(windowed)(data, 0, 50), delivered(official)(data, 0, 50)), (
        "the arms read the same pixels"
    )
    rows = []
    for title, wrap in (("16 RGB frames", lambda r: r), ("clip of 256 x 256", delivered)):
        result = rates({name: arm(wrap(read)) for name, read in readers.items()}, rounds, clips)
        rates_ = [f"{statistics.median(result[name]):.1f}" for name in readers]
        ratios = [f"{ratio(result, 'windowed', name):.1f}x" for name in list(readers)[1:]]
        rows.append(f"| {gop} | {title} | {' | '.join(rates_)} | {ratios[0]} | **{ratios[1]}** |")
    return rows


class StableDiffusionSized(Codec):
    """The autoencoder of Stable Diffusion by its configuration, with random weights: the same cost."""

    def __init__(self) -> None:
        super().__init__("sd-sized", channels=4, factor=8, scale=0.18215)
        self.vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        self.vae = self.vae.to(memory_format=torch.channels_last).requires_grad_(False)
        self.eval()

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(frames).latent_dist
        return posterior.mean, posterior.logvar

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents).sample


class Shrink(Codec):
    """Fills a cache of the same shape quickly; reading it costs the same whatever the values."""

    def __init__(self) -> None:
        super().__init__("shrink", channels=4, factor=8)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        small = torch.nn.functional.avg_pool2d(frames, 8)[:, [0, 1, 2, 0]]
        return small, small

    def _decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


def cache_table(folder: Path, cache: Path, rounds: int, clips: int, frames: int) -> list[str]:
    """Measure what a training step's latents cost, as a table."""
    encode(VideoFolder(folder, 256, 1, 1), Shrink(), cache, {}, True, torch.device("cpu"))
    streams = {
        "video": ClipStream(VideoFolder(folder, 256, FRAMES, INTERVAL, flip=True), FRAMES, INTERVAL, seed=0),
        "cache": ClipStream(CachedLatents(cache, "all", FRAMES, INTERVAL, flip=True), FRAMES, INTERVAL, seed=0),
    }
    result = rates({name: stream.__getitem__ for name, stream in streams.items()}, rounds, clips)
    codec = StableDiffusionSized()
    clip = streams["video"][0]["video"][:frames]
    times = []
    for turn in range(3):
        start = time.process_time()
        codec.moments(clip[None])
        if turn:
            times.append((time.process_time() - start) / frames)
    vae = FRAMES * statistics.median(times)
    video, cached = (statistics.median(1 / rate for rate in result[name]) for name in ("video", "cache"))
    return [
        "| latents of a clip from | seconds a clip | against the cache |",
        "|---|---|---|",
        f"| cache | {cached:.5f} | 1 |",
        f"| video, without the VAE | {video:.5f} | {ratio(result, 'cache', 'video'):.1f}x |",
        f"| video + VAE ({vae / FRAMES:.2f} s a frame) | {video + vae:.1f} | **{(video + vae) / cached:,.0f}x** |",
    ]


def main() -> None:
    """Measure, print and keep the note."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--note", type=Path, help="file to write the result to")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16, help="clips of a round")
    parser.add_argument("--frames", type=int, default=2, help="frames that the VAE encodes at a time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        rows = [row for gop in (12, 300) for row in decode_table(root / str(gop), gop, args.rounds, args.clips)]
        cached = cache_table(root / "12", root / "cache", args.rounds, args.clips, args.frames)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    note = "\n".join(
        [
            "# Reading clips",
            "",
            f"Hardware: {args.hardware}; one process, one thread, timed in CPU seconds (the machine had other work).",
            f"Python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}. Commit "
            f"{commit.stdout.strip() or 'unknown'}.",
            f"Command: `python benchmarks/data.py --rounds {args.rounds} --clips {args.clips} --frames {args.frames}`.",
            "",
            f"{NUM_VIDEOS} XviD AVIs of {SIZE[1]} x {SIZE[0]}, {LENGTH} frames (7 s), made by tests/fake_videos.py;",
            f"{FRAMES} frames at interval {INTERVAL} a clip, random start. {args.rounds} rounds of {args.clips} clips",
            "after one to warm up; the arms of a round take turns on the same clips; medians over rounds.",
            "",
            "## Windowed against whole decode, clips a second",
            "Baseline (official): every frame of the video decoded and converted to RGB by PyAV frame by frame and",
            "stacked, as torchvision's `read_video` does, then 16 frames picked. Own conversion: the same, through",
            "this package's one reused scaler. GOP: frames from keyframe to keyframe; 300 leaves one, at the start.",
            "",
            "| GOP | what is read | windowed | whole, own conversion | whole, official | gain on own | on official |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Cached latents against video and VAE",
            "Same seed, so the same clips and flips. The VAE has the configuration of Stable Diffusion's (128, 256,",
            f"512, 512; 256 x 256) and random weights; {FRAMES} times the median time of a frame, {args.frames} at a",
            "time, float32. A GPU encodes far faster; the cost of the cache stays.",
            "",
            *cached,
            "",
        ]
    )
    print(note)
    if args.note:
        args.note.parent.mkdir(parents=True, exist_ok=True)
        args.note.write_text(note)


if __name__ == "__main__":
    main()
