"""Compare sampling with the official code: time of a guided clip, and quality for fewer steps.

    python benchmarks/sampling.py time --official official --hardware "2 cores AMD EPYC Zen 4" \\
        --note benchmarks/results/sampling_2-core-cpu_2026-11.md
    python benchmarks/sampling.py quality --ckpt runs/proxy --num-clips 256 --seeds 3

`time` needs a checkout of github.com/Vchitect/Latte and the package timm. All loops have the same weights and take
turns. The official loop has 250 DDPM steps with guidance in float32. All its steps cost the same, so only some are
timed.

`quality` samples a trained model of this package with each sampler and several numbers of steps and seeds. It compares
the toy video distance with the spread of a reference over the same seeds: 250 steps of the first sampler of the
objective, which is DDPM for the paper's objective.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import note
import numpy as np
import official
import torch
from torch import Tensor

from latte_pl.ablation.intervals import paired
from latte_pl.diffusion import GaussianDiffusion, Guidance
from latte_pl.interop import load_official
from latte_pl.metrics import Score, clip_features, score
from latte_pl.toy.extractor import ShapesR3D
from latte_pl.toy.shapes import MovingShapes
from latte_pl.training import LatteModule, Sampling, weights

NUM_CLASSES, SCALE, FULL_STEPS = 101, 4.0, 250
Timed = Callable[[], float]


def official_loop(net: torch.nn.Module, noise: Tensor, label: Tensor, args: argparse.Namespace) -> Timed:
    """Return a function that returns the seconds of the official guided loop, estimated from some of its steps."""
    chain = official.diffusion(args.official, FULL_STEPS)
    both, labels = noise.repeat(2, 1, 1, 1, 1), torch.cat([label, torch.full_like(label, NUM_CLASSES)])

    def run() -> float:
        start = note.clock(args.device)
        loop = chain.p_sample_loop_progressive(
            net.forward_with_cfg,
            both.shape,
            both,
            clip_denoised=False,
            model_kwargs={"y": labels, "cfg_scale": SCALE},
            device=args.device,
        )
        for _ in range(args.official_steps):
            next(loop)
        return (note.clock(args.device) - start) * FULL_STEPS / args.official_steps

    return run


def our_loop(
    net: torch.nn.Module, noise: Tensor, label: Tensor, interval: tuple[float, float], bf16: bool, args
) -> Timed:
    """Return a function that returns the seconds of our whole guided loop."""
    guided = Guidance(net, label, SCALE, interval)

    def sample() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            GaussianDiffusion().sample(guided, noise, sampler="dpm++", steps=args.steps)

    return lambda: note.seconds(sample, args.device)


def time_loops(args: argparse.Namespace) -> list[str]:
    """Measure the time of guided loops. Return the lines of the note."""
    torch.manual_seed(0)
    theirs = official.build(args.official, args.size, NUM_CLASSES, args.side)
    eager, compiled = (load_official(theirs.state_dict()).eval().to(args.device) for _ in range(2))
    compiled.compile_blocks()
    noise = torch.randn(1, 16, 4, args.side, args.side).to(args.device)
    label = torch.tensor([5], device=args.device)
    everywhere, (low, high) = (0.0, 1000.0), args.interval
    loops = {
        f"official, {FULL_STEPS} DDPM steps, float32": official_loop(theirs.eval().to(args.device), noise, label, args),
        f"{args.steps} DPM-Solver++ steps, float32": our_loop(eager, noise, label, everywhere, False, args),
        f"{args.steps} steps, bf16": our_loop(eager, noise, label, everywhere, True, args),
        f"{args.steps} steps, bf16, compiled": our_loop(compiled, noise, label, everywhere, True, args),
        f"{args.steps} steps, bf16, compiled, guided at timesteps {low:g} to {high:g}": our_loop(
            compiled, noise, label, (low, high), True, args
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(args.repeats + 1):
        for name, loop in loops.items():
            taken = loop()
            if turn:  # the first round warms up and compiles
                found[name].append(taken)
        print(turn, {name: seen[-1:] for name, seen in found.items()}, file=sys.stderr, flush=True)
    base = next(iter(found.values()))
    return [
        "# Sampling: seconds of a guided clip",
        "",
        note.environment(args),
        f"Command: `python benchmarks/sampling.py time --official PATH --size {args.size} --side {args.side} "
        f"--steps {args.steps} --official-steps {args.official_steps} --repeats {args.repeats} "
        f"--threads {args.threads} --device {args.device}`.",
        "",
        f"{args.size}/2, one clip of 16 x {args.side} x {args.side} latents, guidance scale {SCALE:g}, "
        f"{note.clock_name(args.device)} seconds. {args.official_steps} of the {FULL_STEPS} steps of the official loop",
        f"are timed and scaled; ours are whole loops. Medians of {args.repeats} rounds in which the loops take turns, "
        "after one round of warm-up.",
        "",
        "| loop | seconds per clip | gain |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(seen):.1f} | {note.median_ratio(base, seen):.1f}x |"
            for name, seen in found.items()
        ),
    ]


def distance(
    module: LatteModule, extractor: ShapesR3D, real: np.ndarray, seed: int, bf16: bool, args: argparse.Namespace
) -> Score:
    """Return the toy video distance of the samples of a seed to real features (N, 1, D)."""
    classes = module.net.num_classes
    features = []
    for first in range(0, args.num_clips, args.batch):
        indices = list(range(first, min(first + args.batch, args.num_clips)))
        labels = [n % classes for n in indices] if classes else None
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            features.append(clip_features(extractor, module.sample(indices, labels, seed)).cpu())
    return score("toy_video_distance", real, torch.cat(features).numpy())


def sampling_settings(module: LatteModule, args: argparse.Namespace) -> dict[str, Sampling]:
    """Return the sampling settings to compare by name, the reference first."""
    reference = module.diffusion.samplers[0]
    base = Sampling(sampler=reference, steps=FULL_STEPS, guidance=args.guidance)
    settings = {f"reference ({reference})": base}
    intervals = {"": (0.0, 1000.0)}
    if args.guidance != 1.0:
        intervals = {", guided everywhere": (0.0, 1000.0), ", guided in the interval": tuple(args.interval)}
    for sampler in (name for name in module.diffusion.samplers if name != "ddpm"):
        for steps in args.steps_list:
            for suffix, interval in intervals.items():
                settings[f"{steps} steps{suffix} ({sampler})"] = replace(
                    base, sampler=sampler, steps=steps, guidance_interval=interval
                )
    return settings


def quality(args: argparse.Namespace) -> list[str]:
    """Measure the distance for several numbers of steps. Return the lines of the note."""
    module = weights.load(args.ckpt).to(args.device)
    data = weights.read_config(args.ckpt)["data"]["init_args"]
    factor = module.autoencoder.factor
    reals = MovingShapes("val", size=[factor * side for side in module.net.input_size])
    extractor, features = ShapesR3D(), []
    for index in range(args.num_clips):
        video = reals.read(index, data["num_frames"], data["interval"])[None].to(args.device)
        features.append(clip_features(extractor, video).cpu())
    real = torch.cat(features).numpy()
    rows, reference, label = [], [], ""
    for number, (name, sampling) in enumerate(sampling_settings(module, args).items()):
        module.sampling = sampling
        is_reference = number == 0
        start = note.clock(args.device)
        try:
            bf16 = args.bf16 and not is_reference  # the reference samples in float32, as the paper
            found = [distance(module, extractor, real, seed, bf16, args) for seed in range(args.seeds)]
        except ValueError as error:  # a sampler may not support a number of steps
            print(f"{name}: {error}", file=sys.stderr)
            continue
        taken = (note.clock(args.device) - start) / (args.seeds * args.num_clips)
        values, label = [one.value for one in found], found[0].label
        reference = reference or values
        difference = paired(dict(enumerate(values)), dict(enumerate(reference)))
        assert difference is not None
        shown = "-" if is_reference else f"{difference.mean:+.1f} ± {difference.half:.1f}"
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        rows.append(f"| {name} | {sampling.steps} | {mean:.1f} | {deviation:.1f} | {shown} | {taken:.3f} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return [
        "# Sampling: distance for fewer steps",
        "",
        note.environment(args),
        f"Command: `python benchmarks/sampling.py quality --ckpt {args.ckpt} --num-clips {args.num_clips} "
        f"--seeds {args.seeds} --guidance {args.guidance:g}{' --bf16' * args.bf16} --device {args.device}`.",
        "",
        f"Toy video distance ({label}) of {args.num_clips} samples to {args.num_clips} held-out clips: mean and "
        f"standard deviation of {args.seeds} seeds, and the difference to the reference, paired by seed, with its 95 % "
        "interval.",
        "",
        "| sampler | steps | distance | standard deviation | difference | seconds per clip |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    """Measure, print the note and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "quality"])
    parser.add_argument("--interval", type=float, nargs=2, default=[200.0, 800.0], help="timesteps that are guided")
    timing = parser.add_argument_group("time")
    timing.add_argument("--official", type=Path, help="checkout of github.com/Vchitect/Latte")
    timing.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    timing.add_argument("--side", type=int, default=32, help="height and width of the latents")
    timing.add_argument("--steps", type=int, default=20, help="steps of our loops")
    timing.add_argument("--official-steps", type=int, default=5, help="steps of the official loop that are timed")
    timing.add_argument("--repeats", type=int, default=3, help="rounds")
    samples = parser.add_argument_group("quality")
    samples.add_argument("--ckpt", help="run, checkpoint or exported weights of a model of the toy data")
    samples.add_argument("--num-clips", type=int, default=256)
    samples.add_argument("--seeds", type=int, default=3)
    samples.add_argument("--batch", type=int, default=16)
    samples.add_argument("--guidance", type=float, default=1.0)
    samples.add_argument("--steps-list", type=int, nargs="+", default=[50, 20, 15, 10, 8, 5])
    samples.add_argument("--bf16", action="store_true", help="sample under bf16 autocast, except for the reference")
    note.add_arguments(parser, device=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "time" and args.official is None:
        parser.error("time needs --official")
    if args.what == "quality" and (args.ckpt is None or args.seeds < 2):
        parser.error("quality needs --ckpt and at least two --seeds")
    note.write(time_loops(args) if args.what == "time" else quality(args), args.note)


if __name__ == "__main__":
    main()
