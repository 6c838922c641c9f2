"""Sampling against the official code's: seconds of a guided clip, and the distance against the number of steps.

    python benchmarks/sampling.py time --official official --hardware "2 cores AMD EPYC Zen 4" \
        --note benchmarks/results/sampling_2-core-cpu_2026-11.md
    python benchmarks/sampling.py quality --ckpt runs/proxy --num-clips 256 --seeds 3

`time` needs a checkout of github.com/Vchitect/Latte and timm. Every arm has the same weights; the official loop takes
250 ancestral steps with guidance in float32, of which some are timed, since all cost the same. The arms take turns.

`quality` samples a trained model of ours by each sampler and number of steps under several seeds, and compares the
embedded video distance with the spread that the reference (250 steps of the objective's first sampler, ancestral for
the paper's) has over the same seeds.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import official
import torch
from torch import Tensor

from latte_pl.data.shapes import MovingShapes
from latte_pl.diffusion import GaussianDiffusion, Guidance
from latte_pl.interop import load_official
from latte_pl.metrics.streaming import EmbeddedVideoDistance
from latte_pl.training import Sampling, weights

NUM_CLASSES, SCALE, FULL_STEPS = 101, 4.0, 250
Timed = Callable[[], float]


def clock(args: argparse.Namespace) -> float:
    """Return a time in seconds: of the CPU on one thread, which another load stretches least."""
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if args.device == "cpu" and args.threads == 1 else time.perf_counter()


def official_arm(net: torch.nn.Module, noise: Tensor, label: Tensor, args: argparse.Namespace) -> Timed:
    """Return a function that gives the seconds of the official guided loop, from some of its steps."""
    chain = official.diffusion(args.official, FULL_STEPS)
    both, labels = noise.repeat(2, 1, 1, 1, 1), torch.cat([label, torch.full_like(label, NUM_CLASSES)])

    def run() -> float:
        start = clock(args)
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
        return (clock(args) - start) * FULL_STEPS / args.official_steps

    return run


def our_arm(
    net: torch.nn.Module, noise: Tensor, label: Tensor, steps: int, interval: tuple[float, float], half: bool, args
) -> Timed:
    """Return a function that gives the seconds of our whole loop."""
    guided = Guidance(net, label, SCALE, interval)

    def run() -> float:
        start = clock(args)
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            GaussianDiffusion().sample(guided, noise, sampler="dpm++", steps=steps)
        return clock(args) - start

    return run


def times(args: argparse.Namespace) -> list[str]:
    """Measure the arms of `time`, as the lines of a note."""
    torch.manual_seed(0)
    theirs = official.build(args.official, args.size, NUM_CLASSES, args.side)
    eager, compiled = (load_official(theirs.state_dict()).eval().to(args.device) for _ in range(2))
    compiled.compile_blocks()
    noise = torch.randn(1, 16, 4, args.side, args.side).to(args.device)
    label = torch.tensor([5], device=args.device)
    whole, middle = (0.0, 1000.0), tuple(args.interval)
    arms = {
        f"official, {FULL_STEPS} ancestral steps, float32": official_arm(
            theirs.eval().to(args.device), noise, label, args
        ),
        f"{args.steps} DPM-Solver++ steps, float32": our_arm(eager, noise, label, args.steps, whole, False, args),
        f"{args.steps} steps, bf16": our_arm(eager, noise, label, args.steps, whole, True, args),
        f"{args.steps} steps, bf16, compiled": our_arm(compiled, noise, label, args.steps, whole, True, args),
        f"{args.steps} steps, bf16, compiled, guided within {args.interval[0]:g} to {args.interval[1]:g}": our_arm(
            compiled, noise, label, args.steps, middle, True, args
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(args.repeats + 1):
        for name, arm in arms.items():
            value = arm()
            if turn:  # the first round warms up and compiles
                found[name].append(value)
        print(turn, {name: seen[-1:] for name, seen in found.items()}, file=sys.stderr, flush=True)
    base = next(iter(found.values()))
    rows = [
        f"| {name} | {statistics.median(seen):.1f} | {statistics.median(a / b for a, b in zip(base, seen)):.1f}x |"
        for name, seen in found.items()
    ]
    return [
        f"Command: `python benchmarks/sampling.py time --official PATH --size {args.size} --side {args.side} "
        f"--steps {args.steps} --official-steps {args.official_steps} --repeats {args.repeats} "
        f"--threads {args.threads}`.",
        "",
        f"{args.size}/2, one clip of 16 x {args.side} x {args.side} latents, guidance {SCALE:g}. "
        f"{args.official_steps} of the official loop's {FULL_STEPS} steps are timed and multiplied;",
        f"ours are whole loops. Medians of {args.repeats} interleaved rounds after one to warm up.",
        "",
        "| loop | seconds a clip | against official |",
        "|---|---|---|",
        *rows,
    ]


def distance(
    module: weights.LatteModule, metric: EmbeddedVideoDistance, seed: int, half: bool, args: argparse.Namespace
) -> float:
    """Return the distance of one set of samples."""
    metric.reset()
    classes = module.net.num_classes
    for first in range(0, args.num_clips, args.batch):
        numbers = list(range(first, min(first + args.batch, args.num_clips)))
        labels = [n % classes for n in numbers] if classes else None
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            metric.update(module.sample(numbers, labels, seed), real=False)
    return float(metric.compute())


def quality(args: argparse.Namespace) -> list[str]:
    """Measure distance against steps, as the lines of a note."""
    module = weights.load(args.ckpt).to(args.device)
    clip = weights.read(args.ckpt).config["data"]["init_args"]
    frames, interval = clip["num_frames"], clip["interval"]
    side = (module.net.input_size[0] * module.codec.factor, module.net.input_size[1] * module.codec.factor)
    reals = MovingShapes("val", size=side)
    metric = EmbeddedVideoDistance(reset_real=False).to(args.device)
    for first in range(0, args.num_clips, args.batch):
        indices = range(first, min(first + args.batch, args.num_clips))
        metric.update(torch.stack([reals.read(n, frames, interval) for n in indices]).to(args.device), real=True)
    reference, *others = module.diffusion.samplers
    base = Sampling(sampler=reference, steps=FULL_STEPS, guidance=args.guidance)
    settings = {f"reference ({reference})": base} | {
        f"{name} ({sampler})": replace(base, sampler=sampler, steps=steps, guidance_interval=(low, high))
        for sampler in (others if reference == "ddpm" else module.diffusion.samplers)
        for steps in args.steps_list
        for name, (low, high) in {"everywhere": (0.0, 1000.0), "interval": tuple(args.interval)}.items()
        if args.guidance != 1.0 or name == "everywhere"
        for name in [f"{steps} steps, guided {name}" if args.guidance != 1.0 else f"{steps} steps"]
    }
    rows, spread = [], (0.0, 0.0)
    for name, sampling in settings.items():
        module.sampling = sampling
        start = clock(args)
        try:
            half = args.bf16 and sampling is not base  # the reference is the paper's, in float32
            values = [distance(module, metric, seed, half, args) for seed in range(args.seeds)]
        except ValueError as error:  # not every sampler takes every number of steps
            print(f"{name}: {error}", file=sys.stderr)
            continue
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        if sampling is base:
            # 95 % of single runs, by Student's t for so few
            width = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(args.seeds, 2.5) * deviation
            spread = (mean - width, mean + width)
        inside = "yes" if mean <= spread[1] else "no"
        taken = (clock(args) - start) / (args.seeds * args.num_clips)
        rows.append(f"| {name} | {sampling.steps} | {mean:.3f} ± {deviation:.3f} | {inside} | {taken:.3f} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return [
        f"Command: `python benchmarks/sampling.py quality --ckpt {args.ckpt} --num-clips {args.num_clips} "
        f"--seeds {args.seeds} --guidance {args.guidance:g}{' --bf16' * args.bf16}`.",
        "",
        f"Embedded video distance ({metric.label or 'score'}) of {args.num_clips} samples to {args.num_clips} held-out "
        f"clips, mean ± deviation of {args.seeds} seeds.",
        "Inside: not above the interval that 95 % of single seeds of the reference lie in, "
        f"{spread[0]:.3f} to {spread[1]:.3f}.",
        "",
        "| sampler | steps | distance | inside | seconds a clip |",
        "|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    """Measure, print and keep the note."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["time", "quality"])
    parser.add_argument("--official", type=Path, help="checkout of github.com/Vchitect/Latte, for `time`")
    parser.add_argument("--ckpt", help="a run, checkpoint or release file trained on the embedded data, for `quality`")
    parser.add_argument("--note", type=Path, help="file to write the result to")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--interval", type=float, nargs=2, default=[200.0, 800.0], help="timesteps that are guided")
    parser.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    parser.add_argument("--side", type=int, default=32, help="side of the latents")
    parser.add_argument("--steps", type=int, default=20, help="our steps, for `time`")
    parser.add_argument("--official-steps", type=int, default=5, help="steps of the official loop that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-clips", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps-list", type=int, nargs="+", default=[50, 20, 15, 10, 8, 5])
    parser.add_argument(
        "--bf16", action="store_true", help="sample under bf16 autocast, the reference apart, for `quality`"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "time" and args.official is None:
        parser.error("time needs --official")
    if args.what == "quality" and (args.ckpt is None or args.seeds < 2):
        parser.error("quality needs --ckpt, and two seeds or more")
    lines = times(args) if args.what == "time" else quality(args)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    title = "# Sampling: " + ("seconds of a guided clip" if args.what == "time" else "distance against steps")
    head = f"Hardware: {args.hardware}, {args.threads} threads. Python {platform.python_version()}, torch "
    head += f"{torch.__version__}. Commit {commit.stdout.strip() or 'unknown'}."
    note = "\n".join([title, "", head, *lines, ""])
    print(note)
    if args.note:
        args.note.parent.mkdir(parents=True, exist_ok=True)
        args.note.write_text(note)


if __name__ == "__main__":
    main()
