"""Which attention kernel suits which layer: forward and backward pass of each, by shape, measured in turns.

    python benchmarks/attention.py --hardware "2 cores AMD EPYC (Zen 4)" --threads 2 \
        --note benchmarks/results/attention_2-core-cpu_2026-11.md

Spatial layers have (B F, H, S, d), temporal ones (B, S H, F, d) with space folded into the heads, or (B S, H, F, d)
folded into the batch, as the official code has it, with the copies that this takes. Each kernel gets the queries, keys
and values that the layer has, in the layout it has them in, and gives what the layer goes on with, (B, F, S, D). A
kernel that a device does not have, or whose grid is too small for `--batch` clips, has no figure. All agree before any
is timed.
"""

import argparse
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from latte_pl.metrics.record import git_commit
from latte_pl.nn.attention import attend
from latte_pl.nn.latte import SIZES

OURS = "as in latte_pl"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend by two matrix products."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def fused(backend: SDPBackend) -> Kernel:
    """Return one backend of PyTorch's fused attention."""

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return kernel


KERNELS: dict[str, Kernel] = {
    OURS: attend,
    **{name: fused(backend) for name, backend in BACKENDS.items()},
    "plain products": plain,
}


def spatial(x: Tensor) -> Tensor:
    """View (B, F, S, H, d) as (B F, H, S, d)."""
    return x.flatten(0, 1).transpose(1, 2)


def into_heads(x: Tensor) -> Tensor:
    """View (B, F, S, H, d) as (B, S H, F, d)."""
    return x.flatten(2, 3).transpose(1, 2)


def into_batch(x: Tensor) -> Tensor:
    """Copy (B, F, S, H, d) to (B S, H, F, d)."""
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)


LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, torch.Size], Tensor]]] = {
    "spatial": (spatial, lambda out, shape: out.transpose(1, 2).reshape(shape)),
    "temporal, space in heads": (into_heads, lambda out, shape: out.transpose(1, 2).reshape(shape)),
    "temporal, space in batch": (
        into_batch,
        lambda out, shape: out.unflatten(0, (shape[0], shape[2])).permute(0, 3, 1, 2, 4).contiguous(),
    ),
}


def step(layer: str, kernel: Kernel, tensors: list[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """Return output and gradients of one layer's attention."""
    fold, unfold = LAYERS[layer]
    out = unfold(kernel(*map(fold, tensors)), weight.shape)
    return out, *torch.autograd.grad(out, tensors, weight)


def measure(shape: tuple[int, ...], dtype: torch.dtype, device: str, rounds: int) -> list[tuple[str, str, float]]:
    """Return (layer, kernel, seconds) of every pair that works on (B, F, S, H, d), kernels taking turns."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    tensors, weight = [tensor.requires_grad_() for tensor in drawn[:3]], drawn[3]
    found: dict[tuple[str, str], list[float]] = {}
    reference: dict[str, tuple[Tensor, ...]] = {}
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for layer in LAYERS:
        for name, kernel in KERNELS.items():
            try:
                made = step(layer, kernel, tensors, weight)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if device != "cpu":
                    torch.cuda.synchronize()  # a broken context ends the run here
                print(f"{layer}, {name}: {str(error).splitlines()[0]}")
                continue
            kind = layer.split(",")[0]
            for one, other in zip(made, reference.setdefault(kind, made)):
                difference = (one.float() - other.float()).norm() / other.float().norm()
                assert difference < tolerance, (layer, name, float(difference))
            found[layer, name] = []
    for _ in range(rounds):
        for (layer, name), seconds in found.items():
            about = {"step": step, "layer": layer, "kernel": KERNELS[name], "tensors": tensors, "weight": weight}
            timer = Timer("step(layer, kernel, tensors, weight)", globals=about, num_threads=torch.get_num_threads())
            seconds.append(timer.blocked_autorange(min_run_time=0.2).median)
    return [(layer, name, statistics.median(seconds)) for (layer, name), seconds in found.items()]


def main() -> None:
    """Measure and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["S", "XL"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of a frame")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hardware", default="", help="for the note")
    parser.add_argument("--note", type=Path, help="file to write; printed without")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    lines = [
        "# Attention kernels",
        "",
        f"Hardware: {options.hardware or platform.processor()}, {torch.get_num_threads()} threads. "
        f"Python {platform.python_version()}, torch {torch.__version__}. Commit {git_commit()[:7]}.",
        f"Command: `python benchmarks/attention.py --sizes {' '.join(options.sizes)} --batch {options.batch} "
        f"--frames {options.frames} --tokens {options.tokens} --rounds {options.rounds} --device {options.device} "
        f"--threads {torch.get_num_threads()}`.",
        "",
        f"Forward and backward pass of one layer's attention, without its projections, on {options.batch} clips of "
        f"{options.frames} x {options.tokens} tokens.",
        f"Milliseconds, medians of {options.rounds} interleaved rounds.",
        "",
        "| model | type | layer | " + " | ".join(KERNELS) + " |",
        "|---|---|---|" + "---|" * len(KERNELS),
    ]
    for size in options.sizes:
        width, _, heads = SIZES[size]
        for dtype in (torch.float32, torch.bfloat16):
            shape = (options.batch, options.frames, options.tokens, heads, width // heads)
            times = {(layer, name): s for layer, name, s in measure(shape, dtype, options.device, options.rounds)}
            for layer in LAYERS:
                best = min(seconds for (at, _), seconds in times.items() if at == layer)
                cells = []
                for name in KERNELS:
                    seconds = times.get((layer, name))
                    cell = "-" if seconds is None else f"{1e3 * seconds:.1f}"
                    cells.append(f"**{cell}**" if seconds == best else cell)
                lines.append(f"| {size}/2 | {str(dtype).split('.')[1]} | {layer} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.note:
        options.note.write_text(text)


if __name__ == "__main__":
    main()
