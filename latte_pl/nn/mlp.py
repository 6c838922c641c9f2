"""The MLP of a block: two linear layers with GELU as in DiT, or SwiGLU."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Gated MLP ``fc2(value * silu(gate))`` (Shazeer 2020).

    Args:
        dim: Width D.
        hidden: Hidden width of the GELU MLP to match in parameters and FLOPs. Value and gate have 2/3 of this width,
            rounded to a multiple of 8.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        gated = 8 * max(round(2 * hidden / 3 / 8), 1)
        self.fc1 = nn.Linear(dim, 2 * gated)  # rows: values, then gates
        self.fc2 = nn.Linear(gated, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.silu(gate))


def mlp(dim: int, mlp_ratio: float, swiglu: bool = False) -> nn.Module:
    """Build the MLP of a block, (..., D) -> (..., D) with hidden width ``mlp_ratio * D``, or a SwiGLU of equal size."""
    hidden = int(dim * mlp_ratio)
    if swiglu:
        return SwiGLU(dim, hidden)
    return nn.Sequential(OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU("tanh"), fc2=nn.Linear(hidden, dim)))
