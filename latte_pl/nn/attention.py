"""Multi-head attention on activations (B, F, S, D): within frames, across frames, and to the tokens of captions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_pl.nn.positions import apply_rotary
from latte_pl.types import Text

# Limits of one attention call on a GPU: the grid size along batch and heads, and the number of elements that 32-bit
# offsets can address when sequence length and head width are padded to a tile. Temporal attention folds space into the
# heads and can exceed them: XL at 1024 x 1024 pixels has 65,536 heads.
MAX_GRID, MAX_ELEMENTS, TILE = 65_535, 2**31 - 1, 128

# Longest sequence for which plain matmuls are faster than fused kernels on a GPU in half precision. Temporal attention
# of XL over 16 frames takes 0.83 instead of 1.37 ms on an H100 (benchmarks/attention.py).
SHORT = 32


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention with PyTorch's fused kernel.

    Inputs that exceed the limits of GPU kernels are split along heads and batch. In half precision, plain matmuls
    replace the fused kernel on the CPU, where its backward pass is up to ten times slower, and for short sequences on a
    GPU, where its tiles are mostly empty.

    Args:
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        mask: (B or 1, H or 1, N or 1, M) bool, True where a query attends to a key; at least one key per query.

    Returns:
        (B, H, N, d).
    """
    short = max(query.shape[2], key.shape[2]) <= SHORT
    if query.dtype.itemsize == 2 and (query.device.type == "cpu" or short):
        return _attend_by_matmuls(query, key, value, mask)
    batch, heads, _, width = query.shape
    per_head = max(_padded(query.shape[2]), _padded(key.shape[2])) * _padded(width)
    for dim, size, elements in ((1, heads, per_head), (0, batch, heads * per_head)):
        num_calls = -(-size // min(MAX_GRID, MAX_ELEMENTS // elements))
        if num_calls > 1:
            chunk = -(-size // num_calls)  # `split` allocates one gradient, slices one each
            masks = [mask] * num_calls if mask is None or mask.shape[dim] == 1 else mask.split(chunk, dim)
            chunks = zip(*(tensor.split(chunk, dim) for tensor in (query, key, value)), masks)
            return torch.cat([attend(*inputs) for inputs in chunks], dim)
    return F.scaled_dot_product_attention(query, key, value, mask)


def _attend_by_matmuls(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention as `attend` does, with scores (B, H, N, M) in memory."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _padded(size: int) -> int:
    """Round a size up to a multiple of the tile."""
    return -(-size // TILE) * TILE


class HeadNorm(nn.RMSNorm):
    """RMSNorm over the width of a head; all heads share the scale, and the output has the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., d)."""
        # the fused kernel needs a weight of the same dtype, and autocast may return float32
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class SpatialAttention(nn.Module):
    """Self-attention among the S tokens of each frame.

    Args:
        dim: Width D of the activations.
        num_heads: Number of heads, each of width d = D / num_heads.
        qk_norm: Apply RMSNorm to the queries and keys of each head, before rotary embedding. It bounds the attention
            scores (Dehghani et al. 2023, ViT-22B; with RMSNorm Esser et al. 2024, Stable Diffusion 3).
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)  # rows: queries of all heads, then keys, then values
        self.proj = nn.Linear(dim, dim)
        self.q_norm = HeadNorm(dim // num_heads, eps=1e-6) if qk_norm else None
        self.k_norm = HeadNorm(dim // num_heads, eps=1e-6) if qk_norm else None

    def qkv_projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (B, F, S, D) to queries, keys and values, contiguous (B, F, S, H, d) each, and apply the norms."""
        slices = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3))
        query, key, value = (F.linear(x, *slice_).unflatten(-1, (self.num_heads, -1)) for slice_ in slices)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        return query, key, value

    def forward(self, x: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Attend within frames: (B, F, S, D) -> (B, F, S, D), with an optional rotary table (2, S, d / 2)."""
        if self.q_norm is None:
            qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).flatten(0, 1)  # (B F, S, 3, H, d)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B F, H, S, d)
        else:  # separate projections, because the fused norm would copy strided slices of a packed one
            query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in self.qkv_projections(x))
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        out = attend(query, key, value)  # (B F, H, S, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)


class TemporalAttention(SpatialAttention):
    """Self-attention among the F tokens at each position of the frame, with the parameters of `SpatialAttention`.

    Space is folded into the heads: (B, S H, F, d) is a view of (B, F, S, D), and the batch size of the attention call
    stays B. The view needs contiguous queries, keys and values, so each has its own projection.
    """

    def forward(self, x: Tensor, rotary: Tensor | None = None) -> Tensor:
        """Attend across frames: (B, F, S, D) -> (B, F, S, D), with an optional rotary table (2, F, d / 2)."""
        query, key, value = (part.flatten(2, 3).transpose(1, 2) for part in self.qkv_projections(x))  # (B, S H, F, d)
        if rotary is not None:
            query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        out = attend(query, key, value)  # (B, S H, F, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # (B, F, S, D)


class CrossAttention(nn.Module):
    """Attention from the patches to the caption tokens; the clip and each image attend to their own caption.

    Args:
        dim: Width D of activations and caption tokens.
        num_heads: Number of heads, each of width d = D / num_heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)  # rows: keys of all heads, then values
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Text, num_clip_frames: int) -> Tensor:
        """Attend to captions.

        Args:
            x: Activations (B, F + N, S, D).
            text: Caption tokens (B, 1 + N, L, D) and mask (B, 1 + N, L), the clip's first.
            num_clip_frames: F.

        Returns:
            (B, F + N, S, D).
        """
        clip, images = self.q(x).split([num_clip_frames, x.shape[1] - num_clip_frames], dim=1)
        key, value = self.kv(text.embeddings).chunk(2, dim=-1)  # (B, 1 + N, L, D) each
        out = self._attend(clip.flatten(1, 2)[:, None], key[:, :1], value[:, :1], text.mask[:, :1]).view_as(clip)
        if images.shape[1]:
            out = torch.cat([out, self._attend(images, key[:, 1:], value[:, 1:], text.mask[:, 1:])], dim=1)
        return self.proj(out)  # (B, F + N, S, D)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attend within G groups: query (B, G, Q, D), key and value (B, G, L, D), mask (B, G, L) -> (B, G, Q, D)."""
        q, k, v = (
            part.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (B G, H, Q or L, d) each
        out = attend(q, k, v, mask.flatten(0, 1)[:, None, None])  # (B G, H, Q, d)
        return out.transpose(1, 2).reshape(query.shape)
