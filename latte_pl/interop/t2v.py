"""Latte's released text-to-video model, `LatteTransformer3DModel` of diffusers, as a denoiser of this package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from latte_pl.autoencoders.hub import load_pretrained, read_config
from latte_pl.nn.denoiser import Denoiser
from latte_pl.rng import torch_generator
from latte_pl.types import Text

CLASS_NAME = "LatteTransformer3DModel"
# settings of the released model that are not arguments here
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "num_embeds_ada_norm": 1000,
    "dropout": 0.0,
}
# settings that may differ from the released model: position tables are computed from them, no weights depend on them
MAY_DIFFER = ("sample_size", "video_length")
# added to the attention scores of masked tokens; exp(MASKED) is 0 in every precision
MASKED = -10000.0


class TextToVideo(Denoiser):
    """Predict noise and variance of video latents from captions with Latte's text-to-video model (Latte-1).

    The defaults are those of the released weights ("maxin-cn/Latte-1"), which `load` reads: 28 spatial blocks with
    cross-attention to T5 embeddings, each followed by a temporal block.

    A caption whose tokens are all masked is the null caption of classifier-free guidance. It has one embedding, which
    is a parameter. `set_null_caption` sets it to the text encoder's embedding of the empty prompt, which the released
    weights need.

    Args:
        hidden_size: Width D.
        depth: Number of spatial blocks, which is also the number of temporal blocks.
        num_heads: Attention heads of a block.
        patch_size: Side of a patch, in latent cells.
        input_size: (H, W) of the latents, or one number for both; divisible by ``patch_size``.
        sample_size: Side of the square latents that the weights were trained on. Position codes of latents of another
            size are interpolated.
        in_channels: Latent channels C.
        num_frames: Frames F of a clip. `forward` takes F frames or one.
        learn_sigma: Predict noise and variance (2C output channels) instead of noise alone (C).
        text_dim: Width E of the text encoder's embeddings.
        text_length: Tokens L of a caption. `forward` takes any number.
        class_dropout: Probability with which the training module drops captions.
        activation_checkpointing: Recompute each block in the backward pass to save memory.

    Raises:
        ValueError: A size is not divisible as required.
    """

    conditioning = "text"
    num_classes = 0
    transformer: Any

    def __init__(
        self,
        *,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: int = 2,
        input_size: int | Sequence[int] = (64, 64),
        sample_size: int = 64,
        in_channels: int = 4,
        num_frames: int = 16,
        learn_sigma: bool = True,
        text_dim: int = 4096,
        text_length: int = 120,
        class_dropout: float = 0.1,
        activation_checkpointing: bool = False,
    ) -> None:
        from diffusers import LatteTransformer3DModel

        super().__init__()
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(self.input_size) != 2 or any(side <= 0 or side % patch_size for side in self.input_size):
            raise ValueError(f"input_size {self.input_size} must be (H, W), both divisible by patch_size {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size {hidden_size} must be divisible by num_heads {num_heads} and by 4")
        self.hidden_size, self.depth, self.num_heads = hidden_size, depth, num_heads
        self.patch_size, self.sample_size = patch_size, sample_size
        self.in_channels, self.num_frames, self.learn_sigma = in_channels, num_frames, learn_sigma
        self.activation_checkpointing = activation_checkpointing
        self.text_dim, self.text_length, self.class_dropout = text_dim, text_length, class_dropout
        self.transformer = LatteTransformer3DModel(
            num_attention_heads=num_heads,
            attention_head_dim=hidden_size // num_heads,
            in_channels=in_channels,
            out_channels=2 * in_channels if learn_sigma else in_channels,
            num_layers=depth,
            cross_attention_dim=hidden_size,
            sample_size=sample_size,
            patch_size=patch_size,
            caption_channels=text_dim,
            video_length=num_frames,
            **FIXED,
        )
        if activation_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.null_caption = nn.Parameter(torch.zeros(1, text_dim))
        # a tuple, because a ModuleList would register each parameter under a second name
        self.blocks = (*self.transformer.transformer_blocks, *self.transformer.temporal_transformer_blocks)
        self.init_weights()

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> Self:
        """Build the model of some released weights and load them.

        Args:
            source: Folder or Hub name; see `load`.
            overrides: Arguments of the constructor that replace those of the weights' configuration, such as
                ``input_size`` and ``num_frames``.
        """
        released = _read(source)
        config = released.config
        arguments: dict[str, Any] = {
            "hidden_size": config["num_attention_heads"] * config["attention_head_dim"],
            "depth": config["num_layers"],
            "num_heads": config["num_attention_heads"],
            "patch_size": config["patch_size"],
            "input_size": config["sample_size"],
            "sample_size": config["sample_size"],
            "in_channels": config["in_channels"],
            "num_frames": config["video_length"],
            "learn_sigma": config["out_channels"] == 2 * config["in_channels"],
            "text_dim": config["caption_channels"],
        }
        model = cls(**(arguments | overrides))
        model._copy_weights(released, source)
        return model

    def load(self, source: str | Path) -> None:
        """Load released weights in place.

        Args:
            source: Local folder that ``save_pretrained`` of the model or of a diffusers pipeline wrote, or a Hub name
                such as "maxin-cn/Latte-1". Only safetensors files are read.

        Raises:
            FileNotFoundError: The source is not such a folder, and it is not a Hub name that is cached or can be
                downloaded.
            ValueError: The weights do not fit this model; both values are named.
        """
        self._copy_weights(_read(source), source)

    def set_null_caption(self, embedding: Tensor) -> None:
        """Set the null caption to the text encoder's embedding (1, E) of the empty prompt, which is T5's end token."""
        if embedding.shape != self.null_caption.shape:
            raise ValueError(
                f"the embedding of the null caption has shape {tuple(embedding.shape)}; it must be one token, "
                f"{tuple(self.null_caption.shape)}"
            )
        with torch.no_grad():
            self.null_caption.copy_(embedding)

    def null_text(self, text: Text) -> Text:
        """Return a batch of null captions (all tokens masked)."""
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def init_weights(self, seed: int | None = None) -> None:
        """Initialise all parameters like those of `latte_pl.nn.Latte`.

        Linear and patch layers are Xavier-uniform with zero bias. The embedders of timestep and caption and the
        modulation are N(0, 0.02^2). The tables of the modulation, the null caption, the output of the cross-attention
        and the last linear layer are zero.

        Args:
            seed: Draw each parameter from its own generator, named by (seed, "init", parameter name). The parameters
                must be on the CPU. None uses PyTorch's global generator.
        """
        zero = ("bias", "attn2.to_out.0.weight", "proj_out.weight", "scale_shift_table", "null_caption")
        for name, parameter in self.named_parameters():
            generator = None if seed is None else torch_generator(seed, "init", name)
            if name.endswith(zero):
                nn.init.zeros_(parameter)
            elif "adaln_single" in name or "caption_projection" in name:
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
            x: Noisy latents (B, F + N, C, H, W). The last N frames are independent images, which skip the temporal
                blocks.
            timesteps: Timesteps (B,), integer or float, in [0, 1000], shared by a clip and its images.
            labels: Ignored.
            text: Embeddings (B, L, E) and mask (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L) with the clip's caption
                first. Masked tokens have no effect.
            num_images: Number of images N.

        Returns:
            Noise (B, F + N, C, H, W), or noise and variance (B, F + N, 2C, H, W) with ``learn_sigma``.

        Raises:
            ValueError: The shapes do not fit the model, or captions are missing.
        """
        num_clip = x.shape[1] - num_images
        self._check_inputs(x, timesteps, num_images)
        embeddings, mask = self.check_text(text, len(x), num_images)  # (B, 1 + N, L, E) and (B, 1 + N, L)
        empty = ~mask.any(dim=-1, keepdim=True)  # (B, 1 + N, 1)
        null = empty & (torch.arange(mask.shape[-1], device=mask.device) == 0)  # (B, 1 + N, L)
        embeddings = torch.where(null[..., None], self.null_caption.to(embeddings.dtype), embeddings)
        bias = torch.where(mask | null, 0.0, MASKED)  # (B, 1 + N, L)

        out = self._run(x[:, :num_clip], timesteps, embeddings[:, 0], bias[:, 0])
        if num_images:
            images = x[:, num_clip:].flatten(0, 1)[:, None]  # (B N, 1, C, H, W)
            steps = timesteps.repeat_interleave(num_images)
            captions = embeddings[:, 1:].flatten(0, 1), bias[:, 1:].flatten(0, 1)
            image_out = self._run(images, steps, *captions, temporal=False)
            out = torch.cat([out, image_out.view(len(x), num_images, *image_out.shape[2:])], dim=1)
        return out  # (B, F + N, C', H, W)

    def _run(self, x: Tensor, timesteps: Tensor, embeddings: Tensor, bias: Tensor, temporal: bool = True) -> Tensor:
        """Run diffusers' model on clips (B, F, C, H, W), captions (B, L, E) and their attention bias (B, L)."""
        # diffusers' model repeats the captions for each frame, but not the mask
        bias = bias.repeat_interleave(x.shape[1], dim=0)[:, None]  # (B F, 1, L)
        out = self.transformer(
            hidden_states=x.transpose(1, 2),  # (B, C, F, H, W)
            timestep=timesteps,
            encoder_hidden_states=embeddings.to(x.dtype),
            encoder_attention_mask=bias.to(x.dtype),
            enable_temporal_attentions=temporal,
            return_dict=False,
        )[0]
        return out.transpose(1, 2)  # (B, F, C', H, W)

    def _check_inputs(self, x: Tensor, timesteps: Tensor, num_images: int) -> None:
        """Check that latents and timesteps fit the model.

        Raises:
            ValueError: They do not.
        """
        expected = (self.in_channels, *self.input_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != expected:
            raise ValueError(f"x must be (B, F, C, H, W) with (C, H, W) = {expected}, got {tuple(x.shape)}")
        if num_images < 0 or x.shape[1] - num_images not in (1, self.num_frames):
            raise ValueError(
                f"x has {x.shape[1]} frames, of which num_images = {num_images} are images; the clip must have 1 or "
                f"{self.num_frames} frames (the model's num_frames)"
            )
        if tuple(timesteps.shape) != (len(x),):
            raise ValueError(f"timesteps must be ({len(x)},), one per clip, got {tuple(timesteps.shape)}")

    def _copy_weights(self, released: Any, source: str | Path) -> None:
        """Copy the weights of another model of diffusers' class.

        Raises:
            ValueError: The two models are not alike.
        """
        own, theirs = self.transformer.config, released.config
        for name in own:
            if not name.startswith("_") and name not in MAY_DIFFER and own[name] != theirs.get(name):
                raise ValueError(f"{source} has {name} {theirs.get(name)}, but the model has {own[name]}")
        self.transformer.load_state_dict(released.state_dict())


def _read(source: str | Path) -> Any:  # diffusers' classes hide their attributes from mypy
    """Load diffusers' model in float32 from a folder, else from the Hub's cache, else from the Hub."""
    return load_pretrained(
        _load,
        source,
        kind="text-to-video model",
        files="config.json and diffusion_pytorch_model.safetensors (a pipeline keeps them in its folder transformer)",
        example="'maxin-cn/Latte-1'",
    )


def _load(source: str | Path, **place: Any) -> Any:
    from diffusers import LatteTransformer3DModel

    options: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "use_safetensors": True}
    if isinstance(source, Path):
        source = source / "transformer" if (source / "transformer").is_dir() else source
        name = (read_config(source) or {}).get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise ValueError(f"config.json describes a model of class {name}, not {CLASS_NAME}")
    else:  # the Hub has whole pipelines
        options["subfolder"] = "transformer"
    return LatteTransformer3DModel.from_pretrained(source, **options | place)
