"""Latte, the latent diffusion transformer for video (Ma et al., arXiv 2401.03048), and all axes of its ablations."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latte_pl.nn.checkpointing import Checkpointing, checkpointed
from latte_pl.nn.conditioning import LabelEmbedder, Modulation, TimestepEmbedder, modulate, norm_layer, per_frame
from latte_pl.nn.denoiser import Denoiser
from latte_pl.nn.patches import TubeletFrames, TubeletPatches, UniformPatches, unpatch
from latte_pl.nn.positions import rotary_phases, rotary_phases_2d, sincos_1d, sincos_2d
from latte_pl.nn.text import TextEmbedder
from latte_pl.nn.variants import Context, Recipe, SpatialBlock, arrangement
from latte_pl.streams import torch_stream
from latte_pl.types import Conditioning, Injection, PatchEmbed, Size, SpatialPosition, TemporalPosition, Text, Variant

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
"""Width, blocks of the interleaved model, and heads of each size (those of DiT)."""

TokenPlacement = Literal["spatial", "both"]


class FinalLayer(nn.Module):
    """Norm, modulation where the blocks have it, and the linear layer that decodes the patches."""

    def __init__(self, dim: int, out_features: int, injection: Injection, rms_norm: bool) -> None:
        super().__init__()
        self.norm_final = norm_layer(dim, injection, rms_norm)
        self.linear = nn.Linear(dim, out_features)
        self.adaLN_modulation = Modulation(dim, 2) if injection == "adaln" else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Decode (B, F + N, S, D) to (B, F + N, S, out_features)."""
        x = self.norm_final(x)
        if self.adaLN_modulation is not None and context.condition is not None:
            shift, scale = self.adaLN_modulation.vectors(context.condition, context.num_clip_frames)
            x = modulate(x, shift, scale)
        return self.linear(x)


class Latte(Denoiser):
    """Predict noise (and variance) of video latents by spatial and temporal attention on the patches of all frames.

    Activations are (B, F, S, D) from the first block to the last; the parameters of the interleaved, class-conditional
    model bear the names of the official code. The net draws no random numbers: dropout of the condition is the
    caller's, who puts `null_label` or `null_text` in its place at the rate `class_dropout`.

    Args:
        size: "S", "B", "L" or "XL", which give ``hidden_size``, ``depth`` and ``num_heads`` where these are None. The
            split variants have round(18 / 22 * depth) blocks of a size: a block with two attentions has 22 D^2
            parameters for 18, so all variants of a size have nearly equal counts.
        hidden_size: width D, divisible by 4 and by ``num_heads``.
        depth: number of blocks, taken as it is for every variant.
        num_heads: attention heads of a block.
        patch_size: p, in latent cells.
        input_size: (H, W) of the latents, or one number for both; divisible by ``patch_size``.
        in_channels: channels C of the latents.
        num_frames: frames F that the model is built for. `forward` takes any number.
        mlp_ratio: hidden width of the perceptrons over D.
        learn_sigma: 2C output channels (noise, then variance) for C.
        variant: arrangement of spatial and temporal attention. "spatial" has no temporal attention and no code in time:
            it is DiT on each frame by itself, the image model that a video model can start from.
        patch_embed: "uniform" embeds the patches of each frame, "compression" tubelets of ``temporal_stride`` frames.
        temporal_stride: s of "compression". The paper doesn't give it; 2 is the tubelet of ViViT's small variants, and
            the smallest that compresses. With 1 the model is that of "uniform".
        injection: "adaln" modulates every block by the condition (S-AdaLN of the paper); "tokens" adds timestep and
            class as tokens, beside which blocks and final layer are those of a plain pre-norm transformer.
        token_placement: where the tokens of ``injection="tokens"`` sit, which the paper leaves open. "spatial": in
            front of every frame's tokens, DiT's in-context conditioning frame by frame; temporal layers attend along
            the columns that the tokens make, but the patches read the condition in spatial layers only. "both": also
            in front of every temporal sequence, so that all layers read it, as with "adaln"; with class tokens and 16
            frames that costs 1/8 more. The cheap one is the default: interleaved layers spread what it brings.
        temporal_position: "absolute" adds sin-cos codes once, before the first block with temporal attention; "rope"
            turns queries and keys of the temporal attention.
        conditioning: "class" embeds labels; "text" reads captions by cross-attention after the spatial attention of a
            block, as Latte's text-to-video model; "none" has timesteps alone. What a model has no use for is ignored.
        num_classes: number of classes; needed with "class".
        text_dim: width E of the text encoder's embeddings; needed with "text".
        text_length: tokens L of a caption that the model is built for. `forward` takes any number.
        class_dropout: rate at which the caller drops labels or captions in training.
        spatial_position: "absolute" adds sin-cos codes of the patches' places; "rope" turns queries and keys of the
            spatial attention instead, half of a head by the column and half by the row (axial RoPE, Heo et al. 2024).
        qk_norm: RMSNorm of the queries and keys of each self-attention over the width of a head, before any turn
            (Dehghani et al. 2023, ViT-22B; with RMSNorm Esser et al. 2024, Stable Diffusion 3).
        swiglu: gated perceptrons (Shazeer 2020) 2/3 as wide, of the same parameters and FLOPs, for those with GELU.
        rms_norm: RMSNorm (Zhang & Sennrich 2019) for the layer norms of blocks and final layer.
        activation_checkpointing: True computes blocks again in the backward pass, "selective" all but their products.

    Raises:
        ValueError: an unknown name, a size that does not divide, or a missing argument.
    """

    blocks: nn.ModuleList
    pos_embed: Tensor
    temp_embed: Tensor

    def __init__(
        self,
        *,
        size: Size | None = None,
        hidden_size: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        patch_size: int = 2,
        input_size: int | Sequence[int] = (32, 32),
        in_channels: int = 4,
        num_frames: int = 16,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = True,
        variant: Variant = "interleaved",
        patch_embed: PatchEmbed = "uniform",
        temporal_stride: int = 2,
        injection: Injection = "adaln",
        token_placement: TokenPlacement = "spatial",
        temporal_position: TemporalPosition = "absolute",
        conditioning: Conditioning = "none",
        num_classes: int = 0,
        text_dim: int = 0,
        text_length: int = 120,
        class_dropout: float = 0.1,
        spatial_position: SpatialPosition = "absolute",
        qk_norm: bool = False,
        swiglu: bool = False,
        rms_norm: bool = False,
        activation_checkpointing: Checkpointing = False,
    ) -> None:
        super().__init__()
        if size is not None:
            _one_of("size", size, tuple(SIZES))
            preset_width, preset_depth, preset_heads = SIZES[size]
            if variant.startswith("split"):
                preset_depth = round(18 / 22 * preset_depth)
            hidden_size = preset_width if hidden_size is None else hidden_size
            depth = preset_depth if depth is None else depth
            num_heads = preset_heads if num_heads is None else num_heads
        if hidden_size is None or depth is None or num_heads is None:
            raise ValueError("give a size (S, B, L or XL), or hidden_size, depth and num_heads")
        self.hidden_size = hidden_size
        self.depth = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        self.num_frames = num_frames
        self.mlp_ratio = mlp_ratio
        self.learn_sigma = learn_sigma
        self.variant = variant
        self.patch_embed = patch_embed
        self.temporal_stride = temporal_stride if patch_embed == "compression" else 1
        self.injection = injection
        self.token_placement = token_placement
        self.temporal_position = temporal_position
        self.spatial_position = spatial_position
        self.qk_norm, self.swiglu, self.rms_norm = qk_norm, swiglu, rms_norm
        self.conditioning = conditioning
        self.num_classes = num_classes if conditioning == "class" else 0
        self.text_dim = text_dim if conditioning == "text" else 0
        self.text_length = text_length if conditioning == "text" else 0
        self.class_dropout = class_dropout
        self.activation_checkpointing = activation_checkpointing
        self._check_arguments()

        self.grid = (self.input_size[0] // patch_size, self.input_size[1] // patch_size)
        stride = self.temporal_stride
        self.x_embedder = (
            TubeletPatches(in_channels, hidden_size, patch_size, stride)
            if patch_embed == "compression"
            else UniformPatches(in_channels, hidden_size, patch_size)
        )
        self.register_buffer("pos_embed", torch.empty(self.grid[0] * self.grid[1], hidden_size), persistent=False)
        self.register_buffer("temp_embed", torch.empty(num_frames // stride, hidden_size), persistent=False)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size) if conditioning == "class" else None
        text = conditioning == "text"
        self.text_embedder = TextEmbedder(text_dim, hidden_size) if text else None
        blocks = arrangement(variant, depth)
        arguments = (hidden_size, num_heads, mlp_ratio, injection, text, Recipe(qk_norm, swiglu, rms_norm))
        self.blocks = nn.ModuleList(block(*arguments) for block in blocks)
        self.first_temporal = next((i for i, block in enumerate(blocks) if block is not SpatialBlock), None)
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * stride * self.out_channels, injection, rms_norm)
        self.frames = TubeletFrames(self.out_channels, stride) if stride > 1 else None
        self.init_weights()

    @property
    def head_dim(self) -> int:
        """Width of an attention head; "split_heads" has half as many heads, twice as wide."""
        return self.hidden_size // (self.num_heads // 2 if self.variant == "split_heads" else self.num_heads)

    def null_text(self, text: Text) -> Text:
        """Return as many captions that say nothing: their tokens are masked, and the model's learned one is read."""
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def init_weights(self, seed: int | None = None) -> None:
        """Initialise all parameters as the official code does.

        Linear and patch layers are Xavier-uniform with zero bias, the embedders of timestep and class and the null
        caption N(0, 0.02^2), the modulations, what cross-attention adds and the final linear layer zero: the output of
        a new model is zero, and with "adaln" its blocks are identities.

        Args:
            seed: where given, each parameter is drawn from the stream (seed, "init", name), so models that differ in
                one part share the values of all others. Parameters must be on the CPU then.
        """
        if not self.pos_embed.is_meta:
            self.pos_embed.copy_(sincos_2d(*self.grid, self.hidden_size))
            self.temp_embed.copy_(sincos_1d(len(self.temp_embed), self.hidden_size))
        for name, parameter in self.named_parameters():
            generator = None if seed is None else torch_stream(seed, "init", name)
            zero = ("bias", "cross_attn.proj.weight", "final_layer.linear.weight")
            if name.endswith(zero) or "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            elif name.startswith(("t_embedder", "y_embedder", "text_embedder.null")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(parameter.data.flatten(1), generator=generator)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        labels: Tensor | None = None,
        text: Text | None = None,
        num_images: int = 0,
    ) -> Tensor:
        """Predict the noise (and variance) of noisy latents.

        Args:
            x: (B, F + N, C, H, W), any number of frames F; the last N frames are independent images. "compression"
                needs F divisible by ``temporal_stride``; an image becomes a tubelet of its own (the image repeated),
                whose frames are averaged in the output.
            timesteps: (B,), integer or float, in [0, 1000]; shared by clip and images.
            labels: (B,) int64, or (B, 1 + N) with the clip's label first, in [0, num_classes], where the last is
                `null_label`. The range is checked on the CPU only: on a GPU the check would wait for the device.
            text: embeddings (B, L, E) and mask (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L) with the clip's caption
                first. Masked tokens are not seen; a caption without any is the null caption, see `null_text`.
            num_images: N.

        Returns:
            (B, F + N, C, H, W), or 2C channels with ``learn_sigma``.

        Raises:
            ValueError: shapes, labels or captions that do not fit the model.
        """
        self._check_inputs(x, timesteps, labels, num_images)
        num_clip = (x.shape[1] - num_images) // self.temporal_stride
        x = self.x_embedder(x, num_images)  # (B, T + N, S, D)
        # under autocast either brings the residual stream to the precision of the parameters
        x = x + self.pos_embed if self.spatial_position == "absolute" else x.to(self.pos_embed.dtype)

        groups = self._conditions(timesteps, labels, num_images)
        condition, num_rows, num_columns = None, 0, 0
        if self.injection == "adaln":
            condition = sum(groups[1:], start=groups[0])  # (B, 1 or 1 + N, D)
        else:
            num_columns = len(groups)
            num_rows = num_columns if self.token_placement == "both" else 0
            x = self._prepend_tokens(x, groups, num_clip)  # (B, rows + T + N, columns + S, D)

        phases = self._phases(num_clip, num_rows, num_columns)
        tokens = None
        if self.text_embedder is not None:
            tokens = self.text_embedder(self.text_embedder.groups(text, len(x), num_images))
        context = Context(condition, num_rows + num_clip, *phases, tokens)
        for i, block in enumerate(self.blocks):
            if i == self.first_temporal and self.temporal_position == "absolute":
                x = x + F.pad(self._temporal_code(num_clip), (0, 0, num_rows, num_images))[:, None]
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpointed(block, self.activation_checkpointing == "selective", x, context)
            else:
                x = block(x, context)
        x = x[:, num_rows:, num_columns:]  # (B, T + N, S, D)
        x = self.final_layer(x, context)
        x = unpatch(x, *self.grid, self.patch_size)  # (B, T + N, s C', H, W)
        if self.frames is not None:
            x = self.frames(x, num_images)
        return x  # (B, F + N, C', H, W)

    def _temporal_code(self, num_clip: int) -> Tensor:
        """Return the codes (T, D) of the clip's temporal tokens; a clip longer than the model's has its own table."""
        if num_clip <= len(self.temp_embed):
            return self.temp_embed[:num_clip]
        return sincos_1d(num_clip, self.hidden_size).to(self.temp_embed)

    def _phases(self, num_clip: int, num_rows: int, num_columns: int) -> tuple[Tensor | None, Tensor | None]:
        """Return the rotary phases (2, rows + T, d / 2) in time and (2, columns + S, d / 2) in space, where wanted."""
        dtype, device = self.pos_embed.dtype, self.pos_embed.device
        temporal = spatial = None  # condition tokens stay unturned
        if self.temporal_position == "rope":
            positions = F.pad(torch.arange(num_clip, device=device), (num_rows, 0))
            temporal = rotary_phases(positions, self.head_dim, dtype)
        if self.spatial_position == "rope":
            places = torch.arange(len(self.pos_embed), device=device)
            rows, columns = (F.pad(axis, (num_columns, 0)) for axis in (places // self.grid[1], places % self.grid[1]))
            spatial = rotary_phases_2d(rows, columns, self.head_dim, dtype)
        return temporal, spatial

    def _conditions(self, timesteps: Tensor, labels: Tensor | None, num_images: int) -> list[Tensor]:
        """Embed timestep (B, 1, D) and, if the model has classes, labels (B, 1 or 1 + N, D)."""
        conditions = [self.t_embedder(timesteps)[:, None]]
        if self.y_embedder is not None and labels is not None:
            conditions.append(self.y_embedder(labels.reshape(len(timesteps), 1 + num_images)))
        return conditions

    def _prepend_tokens(self, x: Tensor, conditions: list[Tensor], num_clip: int) -> Tensor:
        """Put the K conditions as tokens in front of each frame's tokens, with "both" of each temporal sequence too."""
        columns = [per_frame(condition, num_clip).expand(-1, x.shape[1], -1, -1) for condition in conditions]
        x = torch.cat([*columns, x], dim=2)  # (B, T + N, K + S, D)
        if self.token_placement == "both":
            rows = [condition[:, :1, None].expand(-1, -1, x.shape[2], -1) for condition in conditions]
            x = torch.cat([*rows, x], dim=1)  # (B, K + T + N, K + S, D)
        return x

    def _check_arguments(self) -> None:
        """Refuse arguments of the constructor that no model fits."""
        for name, choices in (
            ("variant", Variant),
            ("patch_embed", PatchEmbed),
            ("injection", Injection),
            ("token_placement", TokenPlacement),
            ("temporal_position", TemporalPosition),
            ("spatial_position", SpatialPosition),
            ("conditioning", Conditioning),
        ):
            _one_of(name, getattr(self, name), get_args(choices))
        _one_of("activation_checkpointing", self.activation_checkpointing, (False, True, "selective"))
        if min(self.hidden_size, self.num_heads, self.patch_size, self.in_channels, self.num_frames) < 1:
            raise ValueError("hidden_size, num_heads, patch_size, in_channels and num_frames must be positive")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads} and by 4")
        if self.variant == "split_heads" and self.num_heads % 2:
            raise ValueError(f"split_heads halves the heads: num_heads {self.num_heads} must be even")
        if self.temporal_position == "rope" and self.head_dim % 2:
            raise ValueError(f"rope turns pairs: the head width {self.head_dim} (hidden_size / num_heads) must be even")
        if self.spatial_position == "rope" and self.head_dim % 4:
            raise ValueError(
                f"spatial rope: head width {self.head_dim} (hidden_size / num_heads) must be divisible by 4"
            )
        min_depth = 2 if self.variant in ("interleaved", "late_fusion") else 1
        if self.depth < min_depth:
            raise ValueError(f"depth {self.depth} is too small: {self.variant} needs {min_depth} blocks or more")
        if len(self.input_size) != 2 or any(side <= 0 or side % self.patch_size for side in self.input_size):
            raise ValueError(
                f"input_size {self.input_size} must be (H, W), both divisible by patch_size {self.patch_size}"
            )
        if self.temporal_stride < 1 or self.num_frames % self.temporal_stride:
            raise ValueError(
                f"num_frames {self.num_frames} must be divisible by temporal_stride {self.temporal_stride}"
            )
        if self.conditioning == "class" and self.num_classes < 1:
            raise ValueError('conditioning="class" needs num_classes, the number of classes of the data set')
        if self.conditioning == "text" and min(self.text_dim, self.text_length) < 1:
            raise ValueError('conditioning="text" needs text_dim, the width of the text encoder, and text_length')

    def _check_inputs(self, x: Tensor, timesteps: Tensor, labels: Tensor | None, num_images: int) -> None:
        """Refuse inputs of `forward` that do not fit the model."""
        expected = (self.in_channels, *self.input_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != expected:
            raise ValueError(f"x must be (B, F, C, H, W) with (C, H, W) = {expected}, got {tuple(x.shape)}")
        num_videos, num_frames = len(x), x.shape[1] - num_images
        if num_images < 0 or num_frames < 1:
            raise ValueError(f"x has {x.shape[1]} frames, of which num_images = {num_images} cannot be images")
        if num_frames % self.temporal_stride:
            raise ValueError(
                f"{num_frames} frames cannot be cut into tubelets of temporal_stride {self.temporal_stride}: "
                "take a multiple, or patch_embed='uniform'"
            )
        if tuple(timesteps.shape) != (num_videos,):
            raise ValueError(f"timesteps must be ({num_videos},), one per clip, got {tuple(timesteps.shape)}")
        if self.conditioning != "class":
            return
        if labels is None:
            raise ValueError("the model is class-conditional: give labels, net.null_label for no class")
        shapes = [(num_videos, 1 + num_images)] + [(num_videos,)] * (num_images == 0)
        if tuple(labels.shape) not in shapes:
            raise ValueError(
                f"labels must be {shapes[-1]}, the clip's first and one per image, got {tuple(labels.shape)}"
            )
        # fake tensors, a subclass, have no values to check
        if (
            type(labels) is Tensor
            and labels.device.type == "cpu"
            and ((labels < 0) | (labels > self.num_classes)).any()
        ):
            raise ValueError(f"labels must be 0 to {self.num_classes} (the null class), got {labels.tolist()}")


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
