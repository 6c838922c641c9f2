"""Latte's released text-to-video model, the `LatteTransformer3DModel` of diffusers, behind this package's forward."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import LatteTransformer3DModel
from torch import Tensor, nn

from latte_pl.nn.denoiser import Denoiser
from latte_pl.streams import torch_stream
from latte_pl.types import Text

# what else the released model is; its width, depth and the like are arguments
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "num_embeds_ada_norm": 1000,
    "dropout": 0.0,
}
# tables computed from these are no weights, so a model may have others
FREE = ("sample_size", "video_length")
# added to the attention score of a token that a mask hides: none is left of it in any precision
HIDDEN = -10000.0


class TextToVideo(Denoiser):
    """Predict noise and variance of video latents from captions by the text-to-video model of Latte (Latte-1).

    The defaults are those of the released weights ("maxin-cn/Latte-1"), which `load` reads: 28 spatial blocks with
    cross-attention to T5's embeddings, each followed by a temporal block.

    A caption without tokens, one whose mask is False throughout, is the null caption of classifier-free guidance: one
    trained embedding, which `set_null_caption` sets to what the text encoder makes of the empty prompt. The released
    weights were guided so, and know no other.

    Args:
        hidden_size: width D.
        depth: number of spatial blocks, and of temporal ones.
        num_heads: attention heads of a block.
        patch_size: p, in latent cells.
        input_size: (H, W) of the latents, or one number for both; divisible by ``patch_size``.
        sample_size: side of the square latents that the weights were trained on; the position code of latents of
            another size is the same one, stretched.
        in_channels: channels C of the latents.
        num_frames: frames F of a clip; the model takes these or one.
        learn_sigma: 2C output channels (noise, then variance) for C.
        text_dim: width E of the text encoder's embeddings.
        text_length: tokens L of a caption. `forward` takes any number.
        class_dropout: rate at which the caller drops captions in training.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Raises:
        ValueError: sizes that do not divide.
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
        super().__init__()
        self.input_size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        if len(self.input_size) != 2 or any(side <= 0 or side % patch_size for side in self.input_size):
            raise ValueError(f"input_size {self.input_size} must be (H, W), both divisible by patch_size {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size {hidden_size} must be divisible by num_heads {num_heads} and by 4")
        self.in_channels, self.num_frames, self.learn_sigma = in_channels, num_frames, learn_sigma
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
        # a tuple: a ModuleList would give each parameter a second name
        self.blocks = (*self.transformer.transformer_blocks, *self.transformer.temporal_transformer_blocks)
        self.init_weights()

    @classmethod
    def from_pretrained(cls, source: str | Path, **overrides: Any) -> Self:
        """Build the model that released weights need, and load them.

        Args:
            source: see `load`.
            overrides: arguments that may differ, such as ``input_size`` and ``num_frames``.
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
        model._take(released, source)
        return model

    def load(self, source: str | Path) -> None:
        """Load released weights in place.

        Args:
            source: a folder as ``save_pretrained`` of the model or of a diffusers pipeline writes it, or a hub name
                such as "maxin-cn/Latte-1". Only safetensors are read.

        Raises:
            FileNotFoundError: neither such a folder nor a hub name that is cached or reachable.
            ValueError: weights of another model; both values are named.
        """
        self._take(_read(source), source)

    def set_null_caption(self, embedding: Tensor) -> None:
        """Set the null caption to the text encoder's embedding (1, E) of the empty prompt, T5's end token."""
        if embedding.shape != self.null_caption.shape:
            raise ValueError(
                f"the null caption is {tuple(self.null_caption.shape)}, the embedding of one token, got "
                f"{tuple(embedding.shape)}"
            )
        with torch.no_grad():
            self.null_caption.copy_(embedding)

    def null_text(self, text: Text) -> Text:
        """Return as many null captions."""
        return Text(text.embeddings, torch.zeros_like(text.mask))

    def init_weights(self, seed: int | None = None) -> None:
        """Initialise all parameters as those of `latte_pl.nn.Latte` are.

        Linear and patch layers are Xavier-uniform with zero bias; the embedders of timestep and caption and the
        modulation are N(0, 0.02^2); the modulation's tables, the null caption, the output of the cross-attention and
        the last linear layer are zero.

        Args:
            seed: where given, each parameter is drawn from the stream (seed, "init", name). Parameters must be on the
                CPU then.
        """
        zero = ("bias", "attn2.to_out.0.weight", "proj_out.weight", "scale_shift_table", "null_caption")
        for name, parameter in self.named_parameters():
            generator = None if seed is None else torch_stream(seed, "init", name)
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
            x: (B, F + N, C, H, W); the last N frames are independent images, which pass the temporal blocks unchanged.
            timesteps: (B,), integer or float, in [0, 1000]; shared by clip and images.
            labels: ignored; the model knows captions alone.
            text: embeddings (B, L, E) and mask (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L) with the clip's caption
                first. Masked tokens are not seen.
            num_images: N.

        Returns:
            (B, F + N, C, H, W), or 2C channels with ``learn_sigma``.

        Raises:
            ValueError: shapes that do not fit the model, or no captions.
        """
        num_clip = x.shape[1] - num_images
        embeddings, mask = self._check_inputs(x, timesteps, text, num_images)
        empty = ~mask.any(dim=-1, keepdim=True)  # (B, 1 + N, 1)
        null = empty & (torch.arange(mask.shape[-1], device=mask.device) == 0)  # (B, 1 + N, L)
        embeddings = torch.where(null[..., None], self.null_caption.to(embeddings.dtype), embeddings)
        bias = torch.where(mask | null, 0.0, HIDDEN)  # (B, 1 + N, L)

        out = self._run(x[:, :num_clip], timesteps, embeddings[:, 0], bias[:, 0])
        if num_images:
            images = x[:, num_clip:].flatten(0, 1)[:, None]  # (B N, 1, C, H, W)
            steps = timesteps.repeat_interleave(num_images)
            still = self._run(images, steps, embeddings[:, 1:].flatten(0, 1), bias[:, 1:].flatten(0, 1), moving=False)
            out = torch.cat([out, still.view(len(x), num_images, *still.shape[2:])], dim=1)
        return out  # (B, F + N, C', H, W)

    def _run(self, x: Tensor, timesteps: Tensor, embeddings: Tensor, bias: Tensor, moving: bool = True) -> Tensor:
        """Run diffusers' model on clips (B, F, C, H, W), captions (B, L, E) and their bias (B, L)."""
        bias = bias.repeat_interleave(x.shape[1], dim=0)[:, None]  # (B F, 1, L): it repeats captions, but no mask
        out = self.transformer(
            hidden_states=x.transpose(1, 2),  # (B, C, F, H, W)
            timestep=timesteps,
            encoder_hidden_states=embeddings.to(x.dtype),
            encoder_attention_mask=bias.to(x.dtype),
            enable_temporal_attentions=moving,
            return_dict=False,
        )[0]
        return out.transpose(1, 2)  # (B, F, C', H, W)

    def _check_inputs(self, x: Tensor, timesteps: Tensor, text: Text | None, num_images: int) -> Text:
        """Refuse inputs of `forward` that do not fit; return the captions as (B, 1 + N, L, E) and (B, 1 + N, L)."""
        expected = (self.in_channels, *self.input_size)
        if x.ndim != 5 or tuple(x.shape[2:]) != expected:
            raise ValueError(f"x must be (B, F, C, H, W) with (C, H, W) = {expected}, got {tuple(x.shape)}")
        if num_images < 0 or x.shape[1] - num_images not in (1, self.num_frames):
            raise ValueError(
                f"x has {x.shape[1]} frames, num_images {num_images} of them images: the clip must have "
                f"{self.num_frames}, or be one frame; build the model with another num_frames"
            )
        if tuple(timesteps.shape) != (len(x),):
            raise ValueError(f"timesteps must be ({len(x)},), one per clip, got {tuple(timesteps.shape)}")
        if text is None:
            raise ValueError("the model is text-conditional: give text, net.null_text(text) for no caption")
        embeddings, mask = text
        groups = [(len(x), 1 + num_images)] + [(len(x),)] * (num_images == 0)
        if tuple(embeddings.shape[:-2]) not in groups or embeddings.shape[-1] != self.text_dim:
            wanted = ", ".join(map(str, (*groups[-1], "L", self.text_dim)))
            raise ValueError(f"the embeddings must be ({wanted}), got {tuple(embeddings.shape)}")
        if mask.shape != embeddings.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(
                f"the text mask must be bool of shape {tuple(embeddings.shape[:-1])}, got {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
        shape = (len(x), 1 + num_images, *embeddings.shape[-2:])
        return Text(embeddings.reshape(shape), mask.reshape(shape[:-1]))

    def _take(self, released: Any, source: str | Path) -> None:
        """Copy the weights of another model of diffusers' class."""
        own, theirs = self.transformer.config, released.config
        for name in own:
            if not name.startswith("_") and name not in FREE and own[name] != theirs.get(name):
                raise ValueError(
                    f"{source} has {name} {theirs.get(name)} and the model {own[name]}: they must be equal"
                )
        self.transformer.load_state_dict(released.state_dict())


def _read(source: str | Path) -> Any:  # diffusers' classes hide their attributes from mypy
    """Load weights as float32 from a folder, else from the hub's cache, else from the hub."""
    options = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "use_safetensors": True}
    folder = Path(source)
    if folder.is_dir():
        inside = folder / "transformer" if (folder / "transformer").is_dir() else folder
        try:
            name = json.loads((inside / "config.json").read_text()).get("_class_name")
            if name != LatteTransformer3DModel.__name__:
                raise ValueError(f"the folder {inside} holds a {name}, not a {LatteTransformer3DModel.__name__}")
            return LatteTransformer3DModel.from_pretrained(inside, local_files_only=True, **options)
        except OSError as error:
            raise FileNotFoundError(
                f"the folder {source} holds no text-to-video model: give the one with config.json and "
                "diffusion_pytorch_model.safetensors (often called transformer), or the pipeline's above it"
            ) from error
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise FileNotFoundError(
            f"the model {str(source)!r} is no folder; give a folder, or a hub name like 'maxin-cn/Latte-1'"
        )
    for local_files_only in (True, False):
        try:
            return LatteTransformer3DModel.from_pretrained(
                str(source), subfolder="transformer", local_files_only=local_files_only, **options
            )
        except (OSError, ValueError) as error:
            cause = error
    raise FileNotFoundError(
        f"the model {source!r} is no folder, not in the hub's cache and can't be downloaded: run "
        f"'hf download {source} --local-dir FOLDER' where there is a network, and give that FOLDER instead"
    ) from cause
