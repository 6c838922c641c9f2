"""A training step against the official code's: time and memory, as ratios measured in one run.

    pip install timm
    git clone https://github.com/Vchitect/Latte official
    python benchmarks/train_step.py --official official --hardware "2 cores AMD EPYC Zen 4" \
        --note benchmarks/results/train-step_2-core-cpu_2026-11.md

A step is forward pass, loss, backward pass, AdamW and moving average on latents at hand. All arms start from the
same weights and see the same latents, timesteps and noise; that their losses agree is checked first. The arms take
turns, so that another load on the machine meets all of them; a ratio is the median of the ratios of the rounds. Each
arm's memory is the high-water mark of a process of its own.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import official
import torch
from torch import Tensor

from latte_pl.diffusion import GaussianDiffusion
from latte_pl.interop import load_official
from latte_pl.training.cost import count_cost

NUM_CLASSES = 101
ARMS = {
    "official": "official code, float32",
    "official bf16": "official code under bf16 autocast",
    "eager": "eager, float32",
    "compiled": "compiled by block, float32",
    "bf16": "eager, bf16",
    "compiled bf16": "compiled by block, bf16",
    "selective bf16": "eager, bf16, selective activation checkpointing",
    "checkpointing": "eager, float32, activation checkpointing",
    "checkpointing bf16": "eager, bf16, activation checkpointing",
}


def inputs(batch: int, side: int, device: str) -> dict[str, Tensor]:
    """Draw one micro-batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 16, 4, side, side)
    drawn = {
        "x": torch.randn(shape, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "t": torch.randint(0, 1000, (batch,), generator=generator),
        "y": torch.randint(0, NUM_CLASSES, (batch,), generator=generator),
    }
    return {name: value.to(device) for name, value in drawn.items()}


def step_of(arm: str, args: argparse.Namespace, data: dict[str, Tensor] | None = None) -> Callable[[], Tensor]:
    """Build an arm: a function that makes one training step on what ``data`` holds then, and returns its loss."""
    torch.manual_seed(0)
    theirs = official.build(args.official, args.size, NUM_CLASSES, args.side)
    data = inputs(args.batch, args.side, args.device) if data is None else data
    autocast = torch.autocast(args.device, torch.bfloat16, enabled="bf16" in arm)
    if arm.startswith("official"):
        net = theirs.to(args.device).train()
        net.y_embedder.dropout_prob = 0.0  # its draws come from the global generator; labels are equal without
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        chain = official.diffusion(args.official)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)

        def step() -> Tensor:
            with autocast:
                losses = chain.training_losses(net, data["x"], data["t"], {"y": data["y"]}, noise=data["noise"])
            loss = losses["loss"].mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            official.update_ema(ema, net)
            return loss.detach()

        return step
    how = "selective" if "selective" in arm else "checkpointing" in arm
    ours = load_official(theirs.state_dict(), activation_checkpointing=how).to(args.device)
    del theirs
    average = copy.deepcopy(ours).eval().requires_grad_(False)
    if "compiled" in arm:
        ours.compile_blocks()
    objective = GaussianDiffusion()
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-4, weight_decay=0, fused=True)

    def fused_step() -> Tensor:
        with autocast:
            losses = objective.loss(lambda x, t: ours(x, t, data["y"]), data["x"], data["t"], data["noise"])
        loss = losses["loss"].mean()
        loss.backward()
        fused.step()
        fused.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(ours.parameters()), 1.0 - 0.9999)
        return loss.detach()

    return fused_step


def seconds(function: Callable[[], object], device: str) -> float:
    """Time one call: on one thread in CPU seconds, which another load on the machine stretches least."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def matmul_rate(dtype: torch.dtype, device: str, side: int = 2048) -> float:
    """Return the FLOP a second of a square matrix product, the best of ten."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(10))


def memory(arm: str, args: argparse.Namespace) -> None:
    """Print the peak memory in MiB of two steps of an arm, and the part that was there before it."""
    if args.device == "cuda":
        step = step_of(arm, args)
        step(), step()
        print(json.dumps({"before": 0.0, "peak": torch.cuda.max_memory_allocated() / 2**20}))
        return
    torch.nn.Linear(64, 64)(torch.zeros(1, 64)).sum().backward()  # what the libraries allocate on first use
    before = resident("VmRSS")
    step = step_of(arm, args)
    step(), step()
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def resident(field: str) -> float:
    """Return a resident-memory figure of this process in MiB; getrusage would count the parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measured_memory(arms: list[str], args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the memory of each arm in a process of its own."""
    found = {}
    for arm in arms:
        command = [sys.executable, __file__, "--official", str(args.official), "--memory-of", arm]
        command += ["--size", args.size, "--batch", str(args.batch), "--side", str(args.side), "--device", args.device]
        command += ["--threads", str(args.threads)]
        # freed tensors go back to the system: else the mark counts the holes in the C library's heap, too
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        found[arm] = json.loads(output.splitlines()[-1])
    return found


def report(args: argparse.Namespace) -> str:
    """Measure everything and return the note."""
    names = [arm for arm in ARMS if not args.arms or arm in args.arms]
    steps = {arm: step_of(arm, args) for arm in names}
    first = {}
    for arm, step in steps.items():  # compiles, too
        first[arm] = float(step())
        print(arm, first[arm], file=sys.stderr, flush=True)
    for arm, loss in first.items():
        tolerance = 0.02 if "bf16" in arm else 1e-4
        if abs(loss - first["official"]) > tolerance * abs(first["official"]):
            raise SystemExit(f"{arm} has the loss {loss}, the official step {first['official']}")
    times: dict[str, list[float]] = {arm: [] for arm in names}
    rates: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for turn in range(args.repeats + 1):
        for dtype, found in rates.items():
            found.append(matmul_rate(dtype, args.device))
        for arm, step in steps.items():
            elapsed = seconds(step, args.device)
            if turn:  # the first round warms up
                times[arm].append(elapsed)
        print(turn, {arm: round(found[-1], 3) for arm, found in times.items() if found}, file=sys.stderr, flush=True)
    del steps
    held = measured_memory(names, args) if not args.no_memory else {}
    model = load_official(official.build(args.official, args.size, NUM_CLASSES, args.side).state_dict())
    flops = 3 * args.batch * count_cost(model).forward_flops
    best = {dtype: statistics.median(found) for dtype, found in rates.items()}
    rows = []
    for arm in names:
        taken = statistics.median(times[arm])
        gain = statistics.median(a / b for a, b in zip(times["official"], times[arm]))
        rate = flops / taken / best[torch.bfloat16 if "bf16" in arm else torch.float32]
        row = f"| {ARMS[arm]} | {taken:.3f} | {gain:.2f}x | {rate:.0%} |"
        if held:
            peak, own = held[arm]["peak"], held[arm]["peak"] - held[arm]["before"]
            base = held["official"]
            row += f" {peak:,.0f} | {peak / base['peak']:.2f} | {own / (base['peak'] - base['before']):.2f} |"
        rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    memory_columns = " peak MiB | of official | without libraries |" if held else ""
    return "\n".join(
        [
            "# A training step",
            "",
            f"Hardware: {args.hardware}, {args.threads} threads. Python {platform.python_version()}, torch "
            f"{torch.__version__}. Commit {commit.stdout.strip() or 'unknown'}.",
            f"Command: `python benchmarks/train_step.py --official PATH --size {args.size} --batch {args.batch} "
            f"--side {args.side} --repeats {args.repeats} --threads {args.threads}`.",
            "",
            f"{args.size}/2, {NUM_CLASSES} classes, batch {args.batch} of 16 x {args.side} x {args.side} latents; "
            "forward, loss, backward, AdamW and moving average.",
            f"{flops / 1e12:.2f} TFLOP a step (without recomputation). This machine's own product of two 2048 x 2048 "
            f"matrices: {best[torch.float32] / 1e9:,.0f} GFLOP/s",
            f"in float32, {best[torch.bfloat16] / 1e9:,.0f} in bf16. Medians of {args.repeats} interleaved rounds",
            f"after one to warm up, in {'CPU' if args.threads == 1 else 'wall-clock'} seconds; gains are medians "
            "of the rounds' ratios.",
            "Losses of all arms agree at the first step. Memory: high-water mark of the resident memory of a process",
            "that makes two steps, with MALLOC_MMAP_THRESHOLD_=65536; the last column leaves out what Python and the",
            "libraries take before the model is built.",
            "",
            f"| step | seconds | against official | of the matmul rate |{memory_columns}",
            "|---|---|---|---|" + "---|---|---|" * bool(held),
            *rows,
            "",
        ]
    )


def main() -> None:
    """Measure, print and keep the note."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of github.com/Vchitect/Latte")
    parser.add_argument("--note", type=Path, help="file to write the result to")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine())
    parser.add_argument("--size", default="S", choices=["S", "B", "L", "XL"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=32, help="side of the latents")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), help="only these; 'official' is needed")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        memory(args.memory_of, args)
        return
    note = report(args)
    print(note)
    if args.note:
        args.note.parent.mkdir(parents=True, exist_ok=True)
        args.note.write_text(note)


if __name__ == "__main__":
    main()
