"""Multi-head self-attention along one axis of (B, F, S, D) activations, without copying them."""

import torch.nn.functional as F
from torch import Tensor, nn

from latte_pl.nn.positions import rotate


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend by PyTorch's fused kernel; (..., N, d) each, ``mask`` True where a key is seen, one at least.

    In half precision on the CPU by plain products: the fused kernel's backward pass is up to ten times slower there.
    """
    if query.device.type == "cpu" and query.dtype.itemsize == 2:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (..., N, N)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, mask)


class SpatialAttention(nn.Module):
    """Self-attention among the S tokens of each frame.

    Args:
        dim: width D of the activations.
        num_heads: heads, each of width D / num_heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows: queries of all heads, keys, values
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within frames: (B, F, S, D) -> (B, F, S, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).flatten(0, 1)  # (B F, S, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B F, H, S, d)
        out = attend(query, key, value)  # (B F, H, S, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)


class TemporalAttention(SpatialAttention):
    """Self-attention among the F tokens at each place of the frame; the parameters are those of `SpatialAttention`.

    Space is folded into the heads: (B, S H, F, d) is a view of (B, F, S, D), and the batch that the attention kernels
    see stays B. The fold needs queries, keys and values apart, hence a product each with a slice of the packed weight.
    """

    def forward(self, x: Tensor, phases: Tensor | None = None) -> Tensor:
        """Attend across frames: (B, F, S, D) -> (B, F, S, D); ``phases`` (2, F, d / 2) turn queries and keys."""
        slices = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        fold = (x.shape[2] * self.num_heads, -1)
        query, key, value = (
            F.linear(x, weight, bias).flatten(2).unflatten(2, fold).transpose(1, 2) for weight, bias in slices
        )  # 3 x (B, S H, F, d)
        if phases is not None:
            query, key = rotate(query, phases), rotate(key, phases)
        out = attend(query, key, value)  # (B, S H, F, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)
