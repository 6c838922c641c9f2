"""Measure how fast clips are read from XviD files, and latents from a cache.

    python benchmarks/data.py --hardware "2 cores AMD EPYC Zen 4" --note benchmarks/results/data_2-core-cpu_2026-11.md

Everything runs in one process on one thread and is timed in CPU seconds. All readers of a round read the same clips,
one reader after the other, so other processes on the machine affect them alike. Ratios are medians over the rounds.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import note
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from videos import write_xvid

from latte_pl.autoencoders import Autoencoder
from latte_pl.data.contents import VideoIndex
from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.stream import ClipStream
from latte_pl.data.transforms import centre_box, draw_view, to_clip

FRAMES, INTERVAL, LENGTH, SIZE, NUM_VIDEOS = 16, 3, 175, (240, 320), 8
SPAN = (FRAMES - 1) * INTERVAL + 1


class Video(NamedTuple):
    """A video file and its index."""

    path: Path
    index: VideoIndex


Read = Callable[[Video, int], Tensor]
"""Reads the clip of a video that starts at a frame, (F, H, W, 3) uint8."""


def write_videos(folder: Path, gop: int) -> list[Video]:
    """Write the videos of the benchmark with a distance between keyframes, and index them."""
    paths = [write_xvid(folder / f"{n}.avi", LENGTH, SIZE, gop, seed=n) for n in range(NUM_VIDEOS)]
    return [Video(path, index_video(path)) for path in paths]


def read_window(video: Video, start: int) -> Tensor:
    """Decode only the frames around the clip, as training does."""
    return torch.from_numpy(read_video(*video, start, FRAMES, INTERVAL))


def read_whole(video: Video, start: int) -> Tensor:
    """Decode the whole video with the colour conversion of this package, and pick the frames of the clip."""
    return torch.from_numpy(read_video(*video, 0, LENGTH)[start : start + SPAN : INTERVAL])


def read_official(video: Video, start: int) -> Tensor:
    """Decode the whole video like torchvision's ``read_video``, which the official code uses, and pick the frames."""
    with av.open(str(video.path)) as container:
        frames = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
    return torch.as_tensor(np.stack(frames))[start : start + SPAN : INTERVAL]


def resized(read: Read) -> Read:
    """Return a reader that also crops and resizes the frames to 256 x 256."""

    def reader(video: Video, start: int) -> Tensor:
        top, left, height, width = centre_box(*SIZE, (256, 256))
        return to_clip(read(video, start)[:, top : top + height, left : left + width].numpy(), (256, 256))

    return reader


READERS: dict[str, Read] = {"window": read_window, "whole": read_whole, "official": read_official}


def clips_per_second(readers: dict[str, Callable[[int], object]], rounds: int, clips: int) -> dict[str, list[float]]:
    """Return the clips per CPU second of each reader in each round; all readers of a round read the same clips."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            start = note.clock("cpu")
            for clip in range(turn * clips, (turn + 1) * clips):
                read(clip)
            if turn:  # the first round warms up
                rates[name].append(clips / (note.clock("cpu") - start))
    return rates


def decoding_rows(folder: Path, gop: int, rounds: int, clips: int) -> list[str]:
    """Measure the readers on videos with a distance between keyframes. Return rows of a table."""
    videos = write_videos(folder, gop)
    if not torch.equal(resized(read_window)(videos[0], 50), resized(read_official)(videos[0], 50)):
        raise SystemExit("the readers return different pixels")

    def by_index(read: Read) -> Callable[[int], Tensor]:
        def reader(clip: int) -> Tensor:
            rng = np.random.default_rng(clip)
            return read(videos[clip % NUM_VIDEOS], draw_view(LENGTH, FRAMES, INTERVAL, False, rng).start)

        return reader

    rows = []
    for title, wrap in (("16 RGB frames", lambda read: read), ("clip of 256 x 256", resized)):
        rates = clips_per_second({name: by_index(wrap(read)) for name, read in READERS.items()}, rounds, clips)
        medians = [f"{statistics.median(rates[name]):.1f}" for name in READERS]
        gains = [f"{note.median_ratio(rates['window'], rates[name]):.1f}x" for name in ("whole", "official")]
        rows.append(f"| {gop} | {title} | {' | '.join(medians)} | {gains[0]} | **{gains[1]}** |")
    return rows


class StableDiffusionSized(Autoencoder):
    """Stable Diffusion's autoencoder with random weights, which costs as much as the trained one."""

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


class Downscale(Autoencoder):
    """Fills a cache with latents of the right shape quickly; the time to read them does not depend on their values."""

    def __init__(self) -> None:
        super().__init__("downscale", channels=4, factor=8)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        small = torch.nn.functional.avg_pool2d(frames, 8)[:, [0, 1, 2, 0]]
        return small, small

    def _decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


def write_cache(videos: Path, cache: Path) -> CachedLatents:
    """Encode a folder of videos into a latent cache."""
    encode(VideoFolder(videos, 256, 1, 1), Downscale(), cache, {}, True, torch.device("cpu"))
    return CachedLatents(cache, "all", FRAMES, INTERVAL, flip=True)


def cache_table(folder: Path, cache: Path, rounds: int, clips: int, frames: int) -> list[str]:
    """Measure the cost of the latents of a training step. Return a table."""
    streams = {
        "video": ClipStream(VideoFolder(folder, 256, FRAMES, INTERVAL, flip=True), FRAMES, INTERVAL, seed=0),
        "cache": ClipStream(write_cache(folder, cache), FRAMES, INTERVAL, seed=0),
    }
    rates = clips_per_second({name: stream.__getitem__ for name, stream in streams.items()}, rounds, clips)
    autoencoder = StableDiffusionSized()
    clip = streams["video"][0]["video"][None, :frames]
    autoencoder.moments(clip)  # warms up
    vae = statistics.median(note.seconds(lambda: autoencoder.moments(clip), "cpu") / frames for _ in range(2))
    video, cached = (statistics.median(1 / rate for rate in rates[name]) for name in ("video", "cache"))
    with_vae = video + FRAMES * vae
    return [
        "| latents of a clip from | seconds per clip | compared with the cache |",
        "|---|---|---|",
        f"| cache | {cached:.5f} | 1 |",
        f"| video, without the VAE | {video:.5f} | {note.median_ratio(rates['cache'], rates['video']):.1f}x |",
        f"| video + VAE ({vae:.2f} s per frame) | {with_vae:.1f} | **{with_vae / cached:,.0f}x** |",
    ]


def main() -> None:
    """Measure everything, print the note and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=16, help="clips per round")
    parser.add_argument("--frames", type=int, default=2, help="frames that the VAE encodes at once")
    note.add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        rows = [row for gop in (12, 300) for row in decoding_rows(root / str(gop), gop, args.rounds, args.clips)]
        cached = cache_table(root / "12", root / "cache", args.rounds, args.clips, args.frames)
    note.write(
        [
            "# Reading clips",
            "",
            f"{note.environment(args)} PyAV {av.__version__}. One process, CPU seconds.",
            f"Command: `python benchmarks/data.py --rounds {args.rounds} --clips {args.clips} --frames {args.frames}`.",
            "",
            f"{NUM_VIDEOS} XviD files of {SIZE[1]} x {SIZE[0]} pixels and {LENGTH} frames, from benchmarks/videos.py;",
            f"clips of {FRAMES} frames at interval {INTERVAL} with random starts. Medians of {args.rounds} rounds of "
            f"{args.clips} clips,",
            "after one round of warm-up. All readers of a round read the same clips.",
            "",
            "## Decoding, clips per second",
            "Window: only the frames around the clip are decoded, as training does. Whole: all frames are decoded,",
            "with the colour conversion of this package. Official: all frames are decoded and converted one by one,",
            "as torchvision's `read_video` does. GOP: frames from keyframe to keyframe; with 300 there is only one.",
            "",
            "| GOP | what is read | window | whole | official | window / whole | window / official |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "## Cached latents compared with video and VAE",
            "All read the same clips and flips. The VAE has the configuration of Stable Diffusion's (256 x 256 pixels)",
            f"with random weights, in float32; {FRAMES} times the median time of a frame, {args.frames} at once. A GPU",
            "encodes much faster.",
            "",
            *cached,
        ],
        args.note,
    )


if __name__ == "__main__":
    main()
