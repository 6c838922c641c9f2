"""Transformer blocks with spatial and temporal attention (Latte paper, figure 2).

Every block maps activations (B, F + N, S, D) to the same shape: F frames of the clip, then N independent images of
joint training. Spatial attention runs within each frame and image, temporal attention across the frames of the clip.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from latte_pl.nn.attention import CrossAttention, SpatialAttention, TemporalAttention
from latte_pl.nn.mlp import SwiGLU, mlp
from latte_pl.types import Text

# --------------------------------------------------------------------------------------------------------- options


def option(default: Any, read: Callable[[Any], Any]) -> Any:
    """Declare an option of a model.

    Args:
        default: Its default value.
        read: Function that reads the option back from the layers of a built `latte_pl.nn.Latte`.
    """
    return field(default=default, metadata={"read": read})


def shared_value(values: Iterable[Any]) -> Any:
    """Return the value that all layers have in common, or "mixed"."""
    first, *others = set(values)
    return "mixed" if others else first


def _read_mlp_ratio(net: Any) -> float | str:
    def ratio(layer: Any, dim: int) -> float:
        with torch.device("meta"):  # the width is rounded: return the requested ratio if it has this width
            requested: Any = mlp(dim, net.config.mlp_ratio, isinstance(layer, SwiGLU))
        hidden = layer.fc2.in_features
        return net.config.mlp_ratio if hidden == requested.fc2.in_features else hidden / dim

    return shared_value(ratio(block.mlp, block.mlp.fc2.out_features) for block in net.blocks)


def _read_injection(net: Any) -> str:
    layers = (*net.blocks, net.final_layer)
    return shared_value("tokens" if layer.adaLN_modulation is None else "adaln" for layer in layers)


def _read_qk_norm(net: Any) -> bool | str:
    attentions = [module for module in net.blocks.modules() if isinstance(module, SpatialAttention)]
    return shared_value(isinstance(norm, nn.RMSNorm) for layer in attentions for norm in (layer.q_norm, layer.k_norm))


def _read_swiglu(net: Any) -> bool | str:
    return shared_value(isinstance(block.mlp, SwiGLU) for block in net.blocks)


def _read_rms_norm(net: Any) -> bool | str:
    norms = [module for name, module in net.named_modules() if name.rpartition(".")[2].startswith("norm")]
    return shared_value(isinstance(norm, nn.RMSNorm) for norm in norms)


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options of the layers in the blocks and in the final layer.

    Args:
        mlp_ratio: Hidden width of the MLP divided by D.
        injection: How the condition (timestep and class) enters. "adaln" modulates all blocks and the final layer
            (S-AdaLN of the Latte paper, adaLN-Zero of DiT). "tokens" adds the condition as tokens to the sequences
            (see ``token_placement``); blocks and final layer are then plain pre-norm layers.
        qk_norm: Apply RMSNorm to queries and keys of each self-attention, per head and before rotary embedding
            (Dehghani et al. 2023, ViT-22B; with RMSNorm Esser et al. 2024, Stable Diffusion 3).
        swiglu: Use SwiGLU (Shazeer 2020) instead of GELU in the MLP, with 2/3 of the hidden width, so that parameters
            and FLOPs stay the same.
        rms_norm: Use RMSNorm (Zhang & Sennrich 2019) instead of LayerNorm.
    """

    mlp_ratio: float = option(4.0, _read_mlp_ratio)
    injection: Literal["adaln", "tokens"] = option("adaln", _read_injection)
    qk_norm: bool = option(False, _read_qk_norm)
    swiglu: bool = option(False, _read_swiglu)
    rms_norm: bool = option(False, _read_rms_norm)


DEFAULTS = BlockOptions()


class Context(NamedTuple):
    """Inputs of a block besides the activations."""

    condition: Tensor | None
    """(B, 1, D) for all frames, or (B, 1 + N, D) for the clip and each image; None with condition tokens."""
    num_clip_frames: int
    """F, the number of temporal tokens of the clip."""
    temporal_rotary: Tensor | None = None
    """(2, F, d / 2) rotary table of the temporal tokens; None without RoPE in time."""
    spatial_rotary: Tensor | None = None
    """(2, S, d / 2) rotary table of the tokens of a frame; None without RoPE in space."""
    text: Text | None = None
    """Caption tokens (B, 1 or 1 + N, L, D) and their mask, the clip's first; None without text."""


# ------------------------------------------------------------------------------------------ norms and modulation


def norm_layer(dim: int, options: BlockOptions) -> nn.Module:
    """Build a norm over D; it has affine parameters only if there is no modulation."""
    norm = nn.RMSNorm if options.rms_norm else nn.LayerNorm
    return norm(dim, eps=1e-6, elementwise_affine=options.injection == "tokens")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute ``x * (1 + scale) + shift`` on x (B, F, S, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def expand_per_frame(groups: Tensor, num_clip_frames: int) -> Tensor:
    """Repeat the clip's vector for each of its frames; each image keeps its own vector.

    Args:
        groups: (B, 1, D), one vector for all frames, or (B, 1 + N, D), the clip's first.
        num_clip_frames: F, frames of the clip.

    Returns:
        (B, 1, 1, D) or (B, F + N, 1, D), which broadcasts over frames and space.
    """
    if groups.shape[1] > 1:
        clip, images = groups[:, :1], groups[:, 1:]
        groups = torch.cat([clip.expand(-1, num_clip_frames, -1), images], dim=1)
    return groups[:, :, None]


class Modulation(nn.Sequential):
    """Regress the parameters of adaptive layer norm from the condition, once per clip and image (adaLN-Zero of DiT).

    Args:
        dim: Width D.
        num_chunks: Number of modulation parameters, such as shift, scale and gate.
    """

    def __init__(self, dim: int, num_chunks: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, num_chunks * dim))
        self.num_chunks = num_chunks

    def per_frame(self, condition: Tensor, num_clip_frames: int) -> tuple[Tensor, ...]:
        """Map conditions (B, 1 or 1 + N, D) to ``num_chunks`` tensors (B, 1 or F + N, 1, D)."""
        return expand_per_frame(self(condition), num_clip_frames).chunk(self.num_chunks, dim=-1)


ModulationParameters = tuple[Tensor, ...] | None
"""Shift, scale and gate, each (B, 1 or F + N, 1, D); None in blocks without modulation."""


def residual(
    x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], parameters: ModulationParameters
) -> Tensor:
    """Compute ``x + gate * branch(modulate(norm(x), shift, scale))``, or ``x + branch(norm(x))`` without modulation."""
    if parameters is None:
        return x + branch(norm(x))
    shift, scale, gate = parameters
    change = branch(modulate(norm(x), shift, scale))
    if not torch.amp.is_autocast_available(x.device.type):  # the meta device
        return torch.addcmul(x, gate, change)
    # CUDA's autocast would write a float32 copy of `change`; the kernel itself adds in float32 without one
    with torch.autocast(x.device.type, enabled=False):
        return torch.addcmul(x, gate, change)


def clip_only(parameters: ModulationParameters) -> ModulationParameters:
    """Keep the modulation parameters of the clip (index 0 of dimension 1), which all its frames share."""
    return parameters and tuple(parameter[:, :1] for parameter in parameters)


def apply_to_clip(function: Callable[[Tensor], Tensor], x: Tensor, num_clip_frames: int) -> Tensor:
    """Apply a function to the clip's frames of (B, F + N, S, D) and leave the images unchanged."""
    num_images = x.shape[1] - num_clip_frames
    if num_images == 0:
        return function(x)
    clip, images = x.split([num_clip_frames, num_images], dim=1)  # cheaper than two slices in the backward pass
    return torch.cat([function(clip), images], dim=1)


# ---------------------------------------------------------------------------------------------------------- blocks


class Block(nn.Module):
    """Base class of the blocks: norms, modulation, MLP and cross-attention; subclasses add self-attention.

    With ``injection="adaln"`` it is the adaLN-Zero block of DiT: shift, scale and gate of the attention and of the MLP
    are regressed from the condition. With "tokens" it is a plain pre-norm block.

    Args:
        dim: Width D.
        num_heads: Number of attention heads.
        options: Options of the layers.
        text: Add cross-attention to captions after the spatial attention.
    """

    def __init__(self, dim: int, num_heads: int, options: BlockOptions = DEFAULTS, text: bool = False) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim, options)
        self.norm2 = norm_layer(dim, options)
        self.mlp = mlp(dim, options.mlp_ratio, options.swiglu)
        self.adaLN_modulation = Modulation(dim, 6) if options.injection == "adaln" else None
        self.cross_attn = CrossAttention(dim, num_heads) if text else None

    def modulation(self, context: Context) -> tuple[ModulationParameters, ModulationParameters]:
        """Compute the modulation parameters of the attention and of the MLP."""
        if self.adaLN_modulation is None or context.condition is None:
            return None, None
        parameters = self.adaLN_modulation.per_frame(context.condition, context.num_clip_frames)
        return parameters[:3], parameters[3:]

    def cross_attend(self, x: Tensor, context: Context) -> Tensor:
        """Add the cross-attention of x (B, F + N, S, D) to the captions, without norm and gate as in PixArt-alpha."""
        if self.cross_attn is None or context.text is None:
            return x
        return x + self.cross_attn(x, context.text, context.num_clip_frames)


class SpatialBlock(Block):
    """Spatial attention and MLP: the block of DiT, applied to each frame."""

    def __init__(self, dim: int, num_heads: int, options: BlockOptions = DEFAULTS, text: bool = False) -> None:
        super().__init__(dim, num_heads, options, text)
        self.attn = SpatialAttention(dim, num_heads, options.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape; frames do not interact."""
        attention, feed_forward = self.modulation(context)
        x = residual(x, self.norm1, partial(self.attn, rotary=context.spatial_rotary), attention)
        x = self.cross_attend(x, context)
        return residual(x, self.norm2, self.mlp, feed_forward)


class TemporalBlock(Block):
    """Temporal attention and MLP on the clip; images pass through unchanged, as in the official code.

    It has no cross-attention: the argument ``text`` is ignored.
    """

    def __init__(self, dim: int, num_heads: int, options: BlockOptions = DEFAULTS, text: bool = False) -> None:
        super().__init__(dim, num_heads, options)
        self.attn = TemporalAttention(dim, num_heads, options.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape; positions of the frame do not interact."""
        attention, feed_forward = map(clip_only, self.modulation(context))

        def block(clip: Tensor) -> Tensor:
            clip = residual(clip, self.norm1, partial(self.attn, rotary=context.temporal_rotary), attention)
            return residual(clip, self.norm2, self.mlp, feed_forward)

        return apply_to_clip(block, x, context.num_clip_frames)


class SplitAttentionBlock(Block):
    """Spatial attention, temporal attention and MLP, each with its own norm and residual (variant 3 of the paper).

    Both attentions share the modulation parameters, as the parameter count of the paper implies.
    """

    def __init__(self, dim: int, num_heads: int, options: BlockOptions = DEFAULTS, text: bool = False) -> None:
        super().__init__(dim, num_heads, options, text)
        self.attn = SpatialAttention(dim, num_heads, options.qk_norm)
        self.norm_temporal = norm_layer(dim, options)
        self.attn_temporal = TemporalAttention(dim, num_heads, options.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape."""
        attention, feed_forward = self.modulation(context)

        def temporal(clip: Tensor) -> Tensor:
            branch = partial(self.attn_temporal, rotary=context.temporal_rotary)
            return residual(clip, self.norm_temporal, branch, clip_only(attention))

        x = residual(x, self.norm1, partial(self.attn, rotary=context.spatial_rotary), attention)
        x = self.cross_attend(x, context)
        x = apply_to_clip(temporal, x, context.num_clip_frames)
        return residual(x, self.norm2, self.mlp, feed_forward)


class SplitHeadsBlock(Block):
    """Spatial and temporal attention in parallel, each with half of the heads, summed; then MLP (variant 4).

    Each attention has width D and num_heads / 2 heads of width 2 D / num_heads, as the paper's parameter count implies.
    """

    def __init__(self, dim: int, num_heads: int, options: BlockOptions = DEFAULTS, text: bool = False) -> None:
        super().__init__(dim, num_heads, options, text)
        self.attn = SpatialAttention(dim, num_heads // 2, options.qk_norm)
        self.attn_temporal = TemporalAttention(dim, num_heads // 2, options.qk_norm)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map (B, F + N, S, D) to the same shape."""
        attention, feed_forward = self.modulation(context)

        def both(h: Tensor) -> Tensor:
            temporal = self.attn_temporal(h[:, : context.num_clip_frames], context.temporal_rotary)
            return apply_to_clip(temporal.add, self.attn(h, context.spatial_rotary), context.num_clip_frames)

        x = residual(x, self.norm1, both, attention)
        x = self.cross_attend(x, context)
        return residual(x, self.norm2, self.mlp, feed_forward)


class FinalLayer(nn.Module):
    """Norm, modulation with ``injection="adaln"``, and the linear layer that decodes the patches.

    Args:
        dim: Width D.
        out_features: Output values per patch.
        options: Options of the layers.
    """

    def __init__(self, dim: int, out_features: int, options: BlockOptions = DEFAULTS) -> None:
        super().__init__()
        self.norm_final = norm_layer(dim, options)
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = Modulation(dim, 2) if options.injection == "adaln" else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Decode (B, F + N, S, D) to (B, F + N, S, out_features)."""
        x = self.norm_final(x)
        if self.adaLN_modulation is not None and context.condition is not None:
            shift, scale = self.adaLN_modulation.per_frame(context.condition, context.num_clip_frames)
            x = modulate(x, shift, scale)
        return self.linear(x)


Variant = Literal["interleaved", "late_fusion", "split_attention", "split_heads", "spatial"]


def block_types(variant: Variant, depth: int) -> list[type[Block]]:
    """Return the class of each of the ``depth`` blocks of a variant.

    "interleaved" alternates spatial and temporal blocks, "late_fusion" has the same blocks with the spatial ones first.
    The blocks of "split_attention" and "split_heads" have both attentions. "spatial" has spatial blocks only.
    """
    if variant == "spatial":
        return [SpatialBlock] * depth
    if variant == "split_attention":
        return [SplitAttentionBlock] * depth
    if variant == "split_heads":
        return [SplitHeadsBlock] * depth
    interleaved: list[type[Block]] = [TemporalBlock if i % 2 else SpatialBlock for i in range(depth)]
    return interleaved if variant == "interleaved" else sorted(interleaved, key=lambda block: block is TemporalBlock)


# ---------------------------------------------------------------------------------------- activation checkpointing

EXPENSIVE_OPERATORS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def checkpoint_block(block: nn.Module, selective: bool, x: Tensor, context: Context) -> Tensor:
    """Apply a block and recompute its activations in the backward pass.

    Args:
        block: The block.
        selective: Save the outputs of matmuls and attention, which are expensive to recompute; norms, modulation,
            activation functions and casts are recomputed (selective checkpointing, Korthikanti et al. 2022).
        x: Activations (B, F + N, S, D).
        context: The block's other inputs.
    """
    if not selective:
        return checkpoint(block, x, context, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _checkpoint_policy)
    return checkpoint(block, x, context, use_reentrant=False, context_fn=contexts)


def _checkpoint_policy(context: Any, operator: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    expensive = operator.name().startswith(EXPENSIVE_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if expensive else CheckpointPolicy.PREFER_RECOMPUTE
