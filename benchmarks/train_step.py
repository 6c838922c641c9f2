"""Compare a training step with that of the official code: time and memory.

    pip install timm
    git clone https://github.com/Vchitect/Latte official
    python benchmarks/train_step.py --official official --hardware "2 cores AMD EPYC Zen 4" \
        --note benchmarks/results/train-step_2-core-cpu_2026-11.md

A step is forward pass, loss, backward pass, AdamW and EMA, on given latents. All variants start from the same weights
and get the same latents, timesteps and noise; their first losses must agree. The variants take turns, so other
processes on the machine affect them alike; gains are medians of the ratios of the rounds. Memory is the peak of a
separate process for each variant.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import note
import official
import torch
from torch import Tensor, nn

from latte_pl.diffusion import GaussianDiffusion
from latte_pl.interop import load_official
from latte_pl.profiling.cost import count_cost

NUM_CLASSES = 101
VARIANTS = {
    "official": "official code, float32",
    "official bf16": "official code under bf16 autocast",
    "eager": "eager, float32",
    "compiled": "compiled blocks, float32",
    "bf16": "eager, bf16",
    "compiled bf16": "compiled blocks, bf16",
    "selective bf16": "eager, bf16, selective activation checkpointing",
    "checkpointing": "eager, float32, activation checkpointing",
    "checkpointing bf16": "eager, bf16, activation checkpointing",
}


def draw_batch(batch: int, side: int, device: str) -> dict[str, Tensor]:
    """Draw latents, noise, timesteps and labels of a micro-batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 16, 4, side, side)
    drawn = {
        "x": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "t": torch.randint(0, 1000, (batch,), generator=generator),
        "y": torch.randint(0, NUM_CLASSES, (batch,), generator=generator),
    }
    return {name: value.to(device) for name, value in drawn.items()}


def build_official(args: argparse.Namespace) -> nn.Module:
    """Build the official model, whose weights all variants start from."""
    torch.manual_seed(0)
    return official.build(args.official, args.size, NUM_CLASSES, args.side)


def build_step(
    variant: str, args: argparse.Namespace, batch: dict[str, Tensor], start: nn.Module | None = None
) -> Callable[[], Tensor]:
    """Return a function that trains a variant for one step on the current content of ``batch`` and returns the loss.

    Args:
        variant: One of ``VARIANTS``.
        args: Settings of the model, and the device.
        batch: Latents, noise, timesteps and labels.
        start: The official model, which is copied; None builds it.
    """
    theirs = build_official(args) if start is None else copy.deepcopy(start)
    theirs = theirs.to(args.device)
    autocast = torch.autocast(args.device, torch.bfloat16, enabled="bf16" in variant)
    if variant.startswith("official"):
        net = theirs.train()
        net.y_embedder.dropout_prob = 0.0  # else it drops labels at random
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        chain = official.diffusion(args.official)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)

        def step() -> Tensor:
            with autocast:
                losses = chain.training_losses(net, batch["x"], batch["t"], {"y": batch["y"]}, noise=batch["noise"])
            loss = losses["loss"].mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            official.update_ema(ema, net)
            return loss.detach()

        return step
    checkpointing = "selective" if "selective" in variant else "checkpointing" in variant
    with torch.device(args.device):
        ours = load_official(theirs.state_dict(), activation_checkpointing=checkpointing)
    del theirs
    ema = copy.deepcopy(ours).eval().requires_grad_(False)
    if "compiled" in variant:
        ours.compile_blocks()
    objective = GaussianDiffusion()
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-4, weight_decay=0, fused=True)

    def fused_step() -> Tensor:
        with autocast:
            losses = objective.loss(lambda x, t: ours(x, t, batch["y"]), batch["x"], batch["t"], batch["noise"])
        loss = losses["loss"].mean()
        loss.backward()
        fused.step()
        fused.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(ours.parameters()), 1.0 - 0.9999)
        return loss.detach()

    return fused_step


def matmul_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """Return the FLOPs per second of a product of square matrices, the best of three."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(note.seconds(lambda: a @ b, device) for _ in range(3))


def print_memory(variant: str, args: argparse.Namespace) -> None:
    """Print the peak memory in MiB of two steps, and the memory before the model is built."""
    cuda = args.device == "cuda"
    torch.nn.Linear(64, 64)(torch.zeros(1, 64)).sum().backward()  # what the libraries allocate on first use
    before = 0.0 if cuda else resident_memory("VmRSS")
    step = build_step(variant, args, draw_batch(args.batch, args.side, args.device))
    step(), step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else resident_memory("VmHWM")
    print(json.dumps({"before": before, "peak": peak}))


def resident_memory(field: str) -> float:
    """Return a number of this process's /proc status in MiB; getrusage would also count the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure_memory(variants: list[str], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the memory of each variant in a process of its own."""
    found = {}
    for variant in variants:
        command = [sys.executable, __file__, "--official", str(args.official), "--memory-of", variant]
        command += ["--size", args.size, "--batch", str(args.batch), "--side", str(args.side), "--device", args.device]
        command += ["--threads", str(args.threads)]
        # returns freed tensors to the system, so that the peak does not contain holes in the C library's heap
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found[variant] = json.loads(output.splitlines()[-1])
    return found


def measure(args: argparse.Namespace) -> list[str]:
    """Measure everything. Return the lines of the note."""
    names = [name for name in VARIANTS if name in (args.variants or VARIANTS)]
    batch = draw_batch(args.batch, args.side, args.device)
    steps = {name: build_step(name, args, batch) for name in names}
    first = {}
    for name, step in steps.items():  # also compiles
        first[name] = float(step())
        print(name, first[name], file=sys.stderr, flush=True)
    for name, loss in first.items():
        tolerance = 0.02 if "bf16" in name else 1e-4
        if abs(loss - first["official"]) > tolerance * abs(first["official"]):
            raise SystemExit(f"the loss of {name} is {loss}, that of the official step is {first['official']}")
    times: dict[str, list[float]] = {name: [] for name in names}
    types = {name: torch.bfloat16 if "bf16" in name else torch.float32 for name in names}
    rates: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dict.fromkeys(types.values())}
    for turn in range(args.repeats + 1):
        for dtype, found in rates.items():
            found.append(matmul_rate(dtype, args.device))
        for name, step in steps.items():
            elapsed = note.seconds(step, args.device)
            if turn:  # the first round warms up
                times[name].append(elapsed)
        print(turn, {name: round(found[-1], 3) for name, found in times.items() if found}, file=sys.stderr, flush=True)
    del steps
    memory = {} if args.no_memory else measure_memory(names, args)
    model = load_official(official.build(args.official, args.size, NUM_CLASSES, args.side).state_dict())
    flops = 3 * args.batch * count_cost(model).forward_flops
    rate = {dtype: statistics.median(found) for dtype, found in rates.items()}
    rows = []
    for name in names:
        taken, gain = statistics.median(times[name]), note.median_ratio(times["official"], times[name])
        utilisation = flops / taken / rate[types[name]]
        row = f"| {VARIANTS[name]} | {taken:.3f} | {gain:.2f}x | {utilisation:.0%} |"
        if memory:
            base, found = memory["official"], memory[name]
            own = (found["peak"] - found["before"]) / (base["peak"] - base["before"])
            row += f" {found['peak']:,.0f} | {found['peak'] / base['peak']:.2f} | {own:.2f} |"
        rows.append(row)
    columns = " peak MiB | of official | without libraries |" if memory else ""
    return [
        "# A training step",
        "",
        note.environment(args),
        f"Command: `python benchmarks/train_step.py --official PATH --size {args.size} --batch {args.batch} "
        f"--side {args.side} --repeats {args.repeats} --threads {args.threads} --device {args.device}`.",
        "",
        f"{args.size}/2, {NUM_CLASSES} classes, {args.batch} clips of 16 x {args.side} x {args.side} latents; forward, "
        "loss, backward, AdamW and EMA.",
        f"{flops / 1e12:.2f} TFLOP per step (without recomputation). The matmul rate of two 2048 x 2048 matrices is "
        + " and ".join(f"{value / 1e9:,.0f} GFLOP/s in {str(dtype).split('.')[1]}" for dtype, value in rate.items()),
        f"here. Medians of {args.repeats} rounds in which the variants take turns, after one round of warm-up,",
        f"in {note.clock_name(args.device)} seconds; gains are medians of the ratios of the rounds. The losses of all "
        "variants agree at the first step.",
        "Memory: peak resident memory of a process that trains for two steps, with MALLOC_MMAP_THRESHOLD_=65536; the",
        "last column excludes what Python and the libraries take before the model is built.",
        "",
        f"| step | seconds | against official | of the matmul rate |{columns}",
        "|---|---|---|---|" + "---|---|---|" * bool(memory),
        *rows,
    ]


def main() -> None:
    """Measure everything, print the note and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument(
        "--variants", nargs="*", choices=list(VARIANTS), help="which to measure; must contain 'official'"
    )
    parser.add_argument("--no-memory", action="store_true", help="measure only time")
    parser.add_argument("--memory-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    note.add_arguments(parser, device=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print_memory(args.memory_of, args)
        return
    if args.variants and "official" not in args.variants:
        parser.error("--variants must contain official")
    note.write(measure(args), args.note)


if __name__ == "__main__":
    main()
