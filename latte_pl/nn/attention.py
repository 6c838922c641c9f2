"""Multi-head self-attention along one axis of (B, F, S, D) activations, without copying them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_pl.nn.positions import rotate

# What the kernels of a GPU take in one call: blocks of a grid along batch and along heads, and elements that offsets of
# 32 bits reach, with sequence and head padded to a tile. Space folded into heads gets there: XL at 1024 pixels has
# 65,536 heads.
GRID, REACH, TILE = 65_535, 2**31 - 1, 128


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend by PyTorch's fused kernel, in as many calls as the kernels of a GPU need.

    In half precision on the CPU by plain products: the fused kernel's backward pass is up to ten times slower there.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: Like ``key``.
        mask: True where a key is seen, one at least; (B or 1, H or 1, N or 1, M).
    """
    if query.device.type == "cpu" and query.dtype.itemsize == 2:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (..., N, N)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1).to(value.dtype) @ value
    batch, heads, _, width = query.shape
    head = max(map(_padded, (query.shape[2], key.shape[2]))) * _padded(width)
    for dim, size, each in ((1, heads, head), (0, batch, head * heads)):
        parts = -(-size // min(GRID, REACH // each))
        if parts > 1:
            most = -(-size // parts)  # `split`, whose backward pass makes one gradient, not one a piece
            masks = [mask] * parts if mask is None or mask.shape[dim] == 1 else mask.split(most, dim)
            pieces = zip(*(tensor.split(most, dim) for tensor in (query, key, value)), masks)
            return torch.cat([attend(*piece) for piece in pieces], dim)
    return F.scaled_dot_product_attention(query, key, value, mask)


def _padded(size: int) -> int:
    return -(-size // TILE) * TILE


class HeadNorm(nn.RMSNorm):
    """RMSNorm over the width of a head, with one scale a channel that all heads share; keeps the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to the same shape and dtype."""
        # a weight of another dtype has no fused kernel, and autocast may answer in float32, unlike the values
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class SpatialAttention(nn.Module):
    """Self-attention among the S tokens of each frame.

    Args:
        dim: width D of the activations.
        num_heads: heads, each of width D / num_heads.
        qk_norm: norm queries and keys over the width of a head, before their turn, so that no score outgrows the
            learned scales (Dehghani et al. 2023, ViT-22B; by RMSNorm as in Esser et al. 2024, Stable Diffusion 3).
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows: queries of all heads, keys, values
        self.proj = nn.Linear(dim, dim)
        self.q_norm = HeadNorm(dim // num_heads, eps=1e-6) if qk_norm else None
        self.k_norm = HeadNorm(dim // num_heads, eps=1e-6) if qk_norm else None

    def products(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of x (B, F, S, D), each contiguous (B, F, S, H, d), the first two normed."""
        slices = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        query, key, value = (F.linear(x, *slice_).unflatten(-1, (self.num_heads, -1)) for slice_ in slices)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def forward(self, x: Tensor, phases: Tensor | None = None) -> Tensor:
        """Attend within frames: (B, F, S, D) -> (B, F, S, D); ``phases`` (2, S, d / 2) turn queries and keys."""
        if self.q_norm is None:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).flatten(0, 1)  # (B F, S, 3, H, d)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B F, H, S, d)
        else:  # the fused norm would copy a strided third of the packed product
            query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in self.products(x))
        if phases is not None:
            query, key = rotate(query, phases), rotate(key, phases)
        out = attend(query, key, value)  # (B F, H, S, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)


class TemporalAttention(SpatialAttention):
    """Self-attention among the F tokens at each place of the frame; the parameters are those of `SpatialAttention`.

    Space is folded into the heads: (B, S H, F, d) is a view of (B, F, S, D), and the batch that the attention kernels
    see stays B. The fold needs queries, keys and values apart, hence a product each with a slice of the packed weight.
    """

    def forward(self, x: Tensor, phases: Tensor | None = None) -> Tensor:
        """Attend across frames: (B, F, S, D) -> (B, F, S, D); ``phases`` (2, F, d / 2) turn queries and keys."""
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in self.products(x))  # 3 x (B, S H, F, d)
        if phases is not None:
            query, key = rotate(query, phases), rotate(key, phases)
        out = attend(query, key, value)  # (B, S H, F, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)
