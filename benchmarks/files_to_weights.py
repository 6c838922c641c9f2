"""Compare the whole path from video files to updated weights with that of the official code.

    pip install timm
    git clone https://github.com/Vchitect/Latte official
    python benchmarks/files_to_weights.py --official official --hardware "2 cores AMD EPYC Zen 4" \\
        --note benchmarks/results/files-to-weights_2-core-cpu_2026-11.md

Both paths start from the same XviD files and end with AdamW and EMA. In every step, the official path decodes whole
videos, encodes the 16 frames of each clip with an autoencoder of the size of Stable Diffusion's, and trains in float32.
Our path reads latents that were encoded once, and trains in bf16.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import note
import torch
from data import FRAMES, LENGTH, StableDiffusionSized, Video, read_official, resized, write_cache, write_videos
from torch import Tensor
from train_step import build_step, draw_batch

from latte_pl.data.stream import ClipStream

OURS = ("bf16", "compiled bf16")


def time_official_latents(video: Video, start: int, vae: StableDiffusionSized, frames: int) -> dict[str, float]:
    """Return the seconds in which the official path decodes a clip and encodes it; ``frames`` of it are encoded."""
    decoded: list[Tensor] = []
    decoding = note.seconds(lambda: decoded.append(resized(read_official)(video, start)), "cpu")
    pixels = decoded[0][:frames].float() / 127.5 - 1.0
    with torch.no_grad():
        encoding = note.seconds(lambda: vae.vae.encode(pixels).latent_dist.sample(), "cpu")
    return {"decode": decoding, "VAE": encoding * FRAMES / frames}


def cached_latents(stream: ClipStream, first: int, batch: int) -> Tensor:
    """Read clips from the cache and sample from their posteriors."""
    moments = torch.stack([stream[n]["moments"] for n in range(first, first + batch)]).float()
    mean, logvar = moments.chunk(2, dim=2)
    return (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * 0.18215


def measure(folder: Path, args: argparse.Namespace) -> list[str]:
    """Measure both paths. Return the rows of a table."""
    videos = write_videos(folder / "videos", gop=12)
    cache = write_cache(folder / "videos", folder / "cache")
    stream = ClipStream(cache, cache.num_frames, cache.interval, seed=0)
    vae = StableDiffusionSized()
    vae.vae = vae.vae.to(memory_format=torch.contiguous_format)  # as in the official scripts
    batch = draw_batch(args.batch, 32, "cpu")
    steps = {variant: build_step(variant, args, batch) for variant in ("official", *OURS)}
    times: dict[str, list[float]] = {name: [] for name in ("decode", "VAE", *steps)}
    for turn in range(args.repeats + 1):
        found = time_official_latents(videos[turn % len(videos)], turn % 50, vae, args.frames)
        found["official"] = note.seconds(steps["official"], "cpu") / args.batch
        for variant in OURS:

            def read_and_step(variant: str = variant, turn: int = turn) -> None:
                batch["x"] = cached_latents(stream, turn * args.batch, args.batch)
                steps[variant]()

            found[variant] = note.seconds(read_and_step, "cpu") / args.batch
        print(turn, found, file=sys.stderr, flush=True)
        if turn:  # the first round warms up and compiles
            for name, value in found.items():
                times[name].append(value)
    whole = [sum(parts) for parts in zip(times["decode"], times["VAE"], times["official"])]
    decoding, encoding, step = (statistics.median(times[name]) for name in ("decode", "VAE", "official"))
    return [
        f"| official: decode {decoding:.2f} s + VAE {encoding:.1f} s + float32 step {step:.1f} s | "
        f"{decoding + encoding + step:.1f} | 1 |",
        *(
            f"| cached latents + our step, {variant} | {statistics.median(times[variant]):.2f} | "
            f"**{note.median_ratio(whole, times[variant]):.1f}x** |"
            for variant in OURS
        ),
    ]


def main() -> None:
    """Measure everything, print the note and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--frames", type=int, default=2, help="frames that the VAE encodes; the time is scaled to 16")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    note.add_arguments(parser)
    args = parser.parse_args()
    args.device, args.side = "cpu", 32
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(place), args)
    note.write(
        [
            "# From video files to updated weights",
            "",
            note.environment(args),
            f"Command: `python benchmarks/files_to_weights.py --official PATH --size {args.size} --batch {args.batch} "
            f"--frames {args.frames} --repeats {args.repeats} --threads {args.threads}`.",
            "",
            f"{args.size}/2, clips of {FRAMES} x 256 x 256 from XviD files of {LENGTH} frames, {args.batch} clips per "
            "step. The VAE has random",
            f"weights and encodes {args.frames} frames; its time is scaled to {FRAMES}. Seconds per clip "
            f"({note.clock_name('cpu')}), medians of {args.repeats}",
            "rounds, after one round of warm-up.",
            "Encoding a data set once takes as long as decoding and VAE in one epoch of the official path.",
            "",
            "| path | seconds per clip | gain |",
            "|---|---|---|",
            *rows,
        ],
        args.note,
    )


if __name__ == "__main__":
    main()
