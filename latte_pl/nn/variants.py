"""The arrangements of spatial and temporal attention (Latte paper, figure 2): one short class each, one signature.

Every block maps activations (B, F + N, S, D) to the same shape. The first F frames are the clip, the N others are the
independent images of joint training: spatial attention sees them, temporal attention doesn't.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latte_pl.nn.attention import SpatialAttention, TemporalAttention
from latte_pl.nn.conditioning import Modulation, modulate, norm_layer
from latte_pl.nn.perceptron import perceptron
from latte_pl.nn.text import CrossAttention
from latte_pl.types import Injection, Text, Variant


class Recipe(NamedTuple):
    """Layers of later transformers, which a block has in the place of DiT's where True; see `latte_pl.nn.Latte`."""

    qk_norm: bool = False
    swiglu: bool = False
    rms_norm: bool = False


DIT = Recipe()


class Context(NamedTuple):
    """What a block needs beside the activations."""

    condition: Tensor | None
    """(B, 1 or 1 + N, D), one for all frames or the clip's and each image's; None where tokens carry it."""
    num_clip_frames: int
    """F, the temporal tokens of the clip."""
    temporal_phases: Tensor | None
    """(2, F, d / 2) rotary phases of the clip's temporal tokens; None without RoPE in time."""
    spatial_phases: Tensor | None = None
    """(2, S, d / 2) rotary phases of the tokens of a frame; None without RoPE in space."""
    text: Text | None = None
    """Caption tokens (B, 1 or 1 + N, L, D) and their mask, the clip's first; None without text."""


Triple = tuple[Tensor, ...] | None


def on_clip(function: Callable[[Tensor], Tensor], x: Tensor, num_clip_frames: int) -> Tensor:
    """Apply a function to the clip's frames of (B, F + N, S, D) and leave the images as they are."""
    num_images = x.shape[1] - num_clip_frames
    if num_images == 0:
        return function(x)
    clip, images = x.split([num_clip_frames, num_images], dim=1)  # backward is one concatenation
    return torch.cat([function(clip), images], dim=1)


class Block(nn.Module):
    """Base of all blocks: norms, modulation and perceptron around the attention that a subclass adds.

    With ``injection="adaln"`` it is the adaLN-Zero block of DiT: two triples (shift, scale, gate) computed from the
    condition, one for attention, one for the perceptron. With "tokens" it is a plain pre-norm block, whose layer norms
    have affine parameters in place of the modulation.

    Args:
        dim: width D.
        num_heads: attention heads.
        mlp_ratio: hidden width of the perceptron over D.
        injection: how the condition enters.
        text: whether captions enter, after the spatial attention.
        recipe: layers in the place of DiT's.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, injection: Injection, text: bool = False, recipe: Recipe = DIT
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim, injection, recipe.rms_norm)
        self.norm2 = norm_layer(dim, injection, recipe.rms_norm)
        self.mlp = perceptron(dim, mlp_ratio, recipe.swiglu)
        self.adaLN_modulation = Modulation(dim, 6) if injection == "adaln" else None
        self.cross_attn = CrossAttention(dim, num_heads) if text else None

    def read(self, x: Tensor, context: Context) -> Tensor:
        """Add what each token of (B, F + N, S, D) reads in its caption; no norm, no gate, as in PixArt-alpha."""
        if self.cross_attn is None or context.text is None:
            return x
        return x + self.cross_attn(x, context.text, context.num_clip_frames)

    def triples(self, context: Context) -> tuple[Triple, Triple]:
        """Compute (shift, scale, gate) of attention and perceptron, (B, 1 or F + N, 1, D) each."""
        if self.adaLN_modulation is None or context.condition is None:
            return None, None
        vectors = self.adaLN_modulation.vectors(context.condition, context.num_clip_frames)
        return vectors[:3], vectors[3:]


def residual(x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], triple: Triple) -> Tensor:
    """Compute ``x + gate * branch(norm(x) * (1 + scale) + shift)``, or ``x + branch(norm(x))`` without a triple."""
    if triple is None:
        return x + branch(norm(x))
    shift, scale, gate = triple
    return torch.addcmul(x, gate, branch(modulate(norm(x), shift, scale)))


def clip_row(triple: Triple) -> Triple:
    """Keep the vectors of the clip: its frames share the first row."""
    return triple and tuple(vector[:, :1] for vector in triple)


class SpatialBlock(Block):
    """Spatial attention, then the perceptron: DiT's block, and half of those of "interleaved" and "late_fusion"."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, injection: Injection, text: bool = False, recipe: Recipe = DIT
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio, injection, text, recipe)
        self.attn = SpatialAttention(dim, num_heads, recipe.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape; no frame sees another."""
        attention, feed_forward = self.triples(context)
        spatial = partial(self.attn, phases=context.spatial_phases)
        x = self.read(residual(x, self.norm1, spatial, attention), context)
        return residual(x, self.norm2, self.mlp, feed_forward)


class TemporalBlock(Block):
    """Temporal attention, then the perceptron, on the clip; images pass unchanged, as in the official code; no text."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, injection: Injection, text: bool = False, recipe: Recipe = DIT
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio, injection, recipe=recipe)
        self.attn = TemporalAttention(dim, num_heads, recipe.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape; no place of the frame sees another."""
        attention, feed_forward = map(clip_row, self.triples(context))

        def block(clip: Tensor) -> Tensor:
            clip = residual(clip, self.norm1, partial(self.attn, phases=context.temporal_phases), attention)
            return residual(clip, self.norm2, self.mlp, feed_forward)

        return on_clip(block, x, context.num_clip_frames)


class SplitAttentionBlock(Block):
    """Spatial attention, temporal attention and the perceptron, each with its norm and residual (variant 3).

    Both attentions share one triple, as the printed parameter count implies.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, injection: Injection, text: bool = False, recipe: Recipe = DIT
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio, injection, text, recipe)
        self.attn = SpatialAttention(dim, num_heads, recipe.qk_norm)
        self.norm_temporal = norm_layer(dim, injection, recipe.rms_norm)
        self.attn_temporal = TemporalAttention(dim, num_heads, recipe.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape."""
        attention, feed_forward = self.triples(context)

        def temporal(clip: Tensor) -> Tensor:
            branch = partial(self.attn_temporal, phases=context.temporal_phases)
            return residual(clip, self.norm_temporal, branch, clip_row(attention))

        spatial = partial(self.attn, phases=context.spatial_phases)
        x = self.read(residual(x, self.norm1, spatial, attention), context)
        x = on_clip(temporal, x, context.num_clip_frames)
        return residual(x, self.norm2, self.mlp, feed_forward)


class SplitHeadsBlock(Block):
    """Spatial and temporal attention in parallel, each with half of the heads, summed; then the perceptron (variant 4).

    Both attentions are as wide as the block, as the printed parameter count implies, so their heads are twice as wide.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, injection: Injection, text: bool = False, recipe: Recipe = DIT
    ) -> None:
        super().__init__(dim, num_heads, mlp_ratio, injection, text, recipe)
        self.attn = SpatialAttention(dim, num_heads // 2, recipe.qk_norm)
        self.attn_temporal = TemporalAttention(dim, num_heads // 2, recipe.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape."""
        attention, feed_forward = self.triples(context)

        def both(h: Tensor) -> Tensor:
            temporal = self.attn_temporal(h[:, : context.num_clip_frames], context.temporal_phases)
            return on_clip(temporal.add, self.attn(h, context.spatial_phases), context.num_clip_frames)

        x = self.read(residual(x, self.norm1, both, attention), context)
        return residual(x, self.norm2, self.mlp, feed_forward)


def arrangement(variant: Variant, depth: int) -> list[type[Block]]:
    """Name the class of each of the ``depth`` blocks of a variant.

    "late_fusion" has the blocks of "interleaved", the spatial ones first. "spatial" has no others: DiT, frame by frame.
    """
    if variant == "spatial":
        return [SpatialBlock] * depth
    if variant == "split_attention":
        return [SplitAttentionBlock] * depth
    if variant == "split_heads":
        return [SplitHeadsBlock] * depth
    interleaved: list[type[Block]] = [TemporalBlock if i % 2 else SpatialBlock for i in range(depth)]
    return interleaved if variant == "interleaved" else sorted(interleaved, key=lambda block: block is TemporalBlock)
