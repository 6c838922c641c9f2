"""The perceptrons of a block: DiT's with GELU, and the gated one of later transformers."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Gated perceptron ``fc2(value * silu(gate))`` (Shazeer 2020, SwiGLU).

    Args:
        dim: width D.
        hidden: width of the perceptron without a gate whose parameters and FLOPs this one matches: value and gate are
            2/3 as wide, rounded to a multiple of 8.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        gated = 8 * max(round(2 * hidden / 3 / 8), 1)
        self.fc1 = nn.Linear(dim, 2 * gated)  # rows: values, gates
        self.fc2 = nn.Linear(gated, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to the same shape."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


def perceptron(dim: int, mlp_ratio: float, swiglu: bool) -> nn.Module:
    """Make the perceptron of a block: GELU on ``mlp_ratio`` times the width D, or a gated one as large."""
    hidden = int(dim * mlp_ratio)
    if swiglu:
        return SwiGLU(dim, hidden)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU("tanh"), fc2=nn.Linear(hidden, dim)))
