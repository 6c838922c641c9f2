"""Measure attention kernels: forward and backward pass of one layer's attention, by layout and kernel.

    python benchmarks/attention.py --hardware "2 cores AMD EPYC (Zen 4)" --threads 2 \
        --note benchmarks/results/attention_2-core-cpu_2026-11.md

Spatial layers have the layout (B F, H, S, d). Temporal layers have (B, S H, F, d), with space folded into the heads, as
in this package, or (B S, H, F, d), with space folded into the batch, as in the official code, which needs copies.
Queries, keys and values start and the output ends as (B, F, S, H, d), so the time of copies is included. Kernels that
the device does not have, or that fail for ``--batch`` clips, have no result. The results of all kernels are compared
before they are timed.
"""

import argparse
import statistics
from collections.abc import Callable

import note
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from latte_pl.nn.attention import attend
from latte_pl.nn.latte import SIZES

OURS = "latte_pl"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention with two matmuls."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def fused(backend: SDPBackend) -> Kernel:
    """Return the kernel of one backend of PyTorch's attention."""

    def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return kernel


KERNELS: dict[str, Kernel] = {
    OURS: attend,
    **{name: fused(backend) for name, backend in BACKENDS.items()},
    "matmuls": plain,
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
    """Return the output and the gradients of a layer's attention."""
    fold, unfold = LAYERS[layer]
    out = unfold(kernel(*map(fold, tensors)), weight.shape)
    return out, *torch.autograd.grad(out, tensors, weight)


def measure(shape: tuple[int, ...], dtype: torch.dtype, device: str, rounds: int) -> list[tuple[str, str, float]]:
    """Return (layer, kernel, seconds) of each pair that works on inputs (B, F, S, H, d); kernels take turns."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    tensors, weight = [tensor.requires_grad_() for tensor in drawn[:3]], drawn[3]
    found: dict[tuple[str, str], list[float]] = {}
    reference: dict[str, tuple[Tensor, ...]] = {}
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for layer in LAYERS:
        for name, kernel in KERNELS.items():
            try:
                results = step(layer, kernel, tensors, weight)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if device != "cpu":
                    torch.cuda.synchronize()  # raises if the context is broken
                print(f"{layer}, {name}: {str(error).splitlines()[0]}")
                continue
            kind = layer.split(",")[0]
            for one, other in zip(results, reference.setdefault(kind, results)):
                difference = float((one.float() - other.float()).norm() / other.float().norm())
                if difference > tolerance:
                    raise SystemExit(f"{layer}, {name}: the relative difference to {OURS} is {difference:.1e}")
            found[layer, name] = []
    for _ in range(rounds):
        for (layer, name), seconds in found.items():
            about = {"step": step, "layer": layer, "kernel": KERNELS[name], "tensors": tensors, "weight": weight}
            timer = Timer("step(layer, kernel, tensors, weight)", globals=about, num_threads=torch.get_num_threads())
            seconds.append(timer.blocked_autorange(min_run_time=0.2).median)
    return [(layer, name, statistics.median(seconds)) for (layer, name), seconds in found.items()]


def main() -> None:
    """Measure everything, print the note and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["S", "XL"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=2, help="clips")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a frame")
    parser.add_argument("--rounds", type=int, default=3)
    note.add_arguments(parser, device=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for size in args.sizes:
        width, _, heads = SIZES[size]
        for dtype in (torch.float32, torch.bfloat16):
            shape = (args.batch, args.frames, args.tokens, heads, width // heads)
            times = {(layer, name): s for layer, name, s in measure(shape, dtype, args.device, args.rounds)}
            for layer in LAYERS:
                best = min(seconds for (at, _), seconds in times.items() if at == layer)
                cells = []
                for name in KERNELS:
                    seconds = times.get((layer, name))
                    cell = "-" if seconds is None else f"{1e3 * seconds:.1f}"
                    cells.append(f"**{cell}**" if seconds == best else cell)
                rows.append(f"| {size}/2 | {str(dtype).split('.')[1]} | {layer} | " + " | ".join(cells) + " |")
    note.write(
        [
            "# Attention kernels",
            "",
            note.environment(args),
            f"Command: `python benchmarks/attention.py --sizes {' '.join(args.sizes)} --batch {args.batch} "
            f"--frames {args.frames} --tokens {args.tokens} --rounds {args.rounds} --device {args.device} "
            f"--threads {args.threads}`.",
            "",
            f"Forward and backward pass of one layer's attention without its projections, on {args.batch} clips of "
            f"{args.frames} x {args.tokens} tokens.",
            f"Milliseconds, medians of {args.rounds} rounds in which the kernels take turns.",
            "",
            "| model | type | layer | " + " | ".join(KERNELS) + " |",
            "|---|---|---|" + "---|" * len(KERNELS),
            *rows,
        ],
        args.note,
    )


if __name__ == "__main__":
    main()
