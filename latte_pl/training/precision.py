"""Fast precisions: TF32 on CUDA, gathering in bf16 under FSDP2, and a warning where bf16 is slow."""

import time

import torch
from lightning import Trainer
from torch.distributed.fsdp import MixedPrecisionPolicy

SLOW = 2.0  # times as long as float32


def allow_tf32(trainer: Trainer) -> None:
    """Let CUDA devices multiply float32 matrices in TF32: several times as fast, with 11 significant bits."""
    if trainer.strategy.root_device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def gather_policy(precision: str) -> MixedPrecisionPolicy:
    """Return in which precision FSDP2 gathers the weights of the blocks and sums their gradients.

    In ``bf16-mixed``, autocast would round the gathered weights to bf16 anyway, so they are gathered in it. Gradients
    are summed in float32, and activations keep the dtype that autocast gives them.

    Args:
        precision: The trainer's precision.
    """
    if precision != "bf16-mixed":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def slow_bf16(trainer: Trainer) -> str:
    """Return a warning if the trainer multiplies in bf16 on a processor that only emulates it; otherwise "".

    Processors without bf16 instructions convert each matrix to float32 and back.
    """
    if trainer.strategy.root_device.type != "cpu" or "bf16" not in str(trainer.precision):
        return ""
    ratio = bf16_ratio()
    if ratio <= SLOW:
        return ""
    return (
        f"warning: matrix products in bf16 take {ratio:.1f} times as long as in float32 on this processor; "
        "use --trainer.precision 32-true\n"
    )


def bf16_ratio(size: int = 256) -> float:
    """Return the time of a matrix product in bf16 over that in float32 on this CPU.

    Args:
        size: Rows and columns of the matrices.
    """
    best = []
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.ones(size, size, dtype=dtype)
        times = []
        for _ in range(6):  # the first one sets up the kernel
            began = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - began)
        best.append(min(times[1:]))
    return best[0] / best[1]
