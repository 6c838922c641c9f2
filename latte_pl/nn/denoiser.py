"""The interface of a denoiser: what training, samplers and commands expect from the network."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from latte_pl.types import Conditioning, Text


class Denoiser(nn.Module, ABC):
    """Base class of the networks that predict noise.

    ``forward(x, timesteps, labels, text, num_images)`` maps noisy latents (B, F + N, C, H, W) at timesteps (B,) in
    [0, 1000] to the predicted noise, or to noise and variance (2C channels) with ``learn_sigma``.
    """

    in_channels: int
    """Channels C of the latents."""
    input_size: tuple[int, ...]
    """Height and width (H, W) of the latents."""
    num_frames: int
    """Frames F of a clip that the network is built for."""
    learn_sigma: bool
    """Whether the output has 2C channels: noise, then variance."""
    conditioning: Conditioning
    """Condition besides the timestep."""
    num_classes: int
    """Number of classes; 0 if not class-conditional."""
    text_dim: int
    """Width E of the caption embeddings; 0 if not text-conditional."""
    text_length: int
    """Number of caption tokens L; 0 if not text-conditional."""
    class_dropout: float
    """Rate at which the caller drops labels or captions in training."""
    blocks: Iterable[nn.Module]
    """Modules that are sharded and compiled one by one."""

    @property
    def null_label(self) -> int:
        """Label of the null class, which follows the last class."""
        return self.num_classes

    @abstractmethod
    def null_text(self, text: Text) -> Text:
        """Return a batch of null captions with the shape of ``text``."""

    @abstractmethod
    def init_weights(self, seed: int | None = None) -> None:
        """Initialise all parameters; with a seed, each from its own generator (seed, "init", name)."""

    @abstractmethod
    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Predict noise (and variance); subclasses add the arguments of their condition."""

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block in place by `torch.compile`; blocks of a type share code, parameters keep their names."""
        for block in self.blocks:
            block.compile(backend=backend)

    def check_text(self, text: Text | None, num_clips: int, num_images: int) -> Text:
        """Return captions in the shapes (B, 1 + N, L, E) and (B, 1 + N, L).

        Args:
            text: Embeddings (B, L, E) and mask (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L) with the clip's first.
            num_clips: B.
            num_images: N.

        Raises:
            ValueError: Captions are missing, or their shapes do not match.
        """
        if text is None:
            raise ValueError("the model is text-conditional: pass text, or net.null_text(text) for null captions")
        embeddings, mask = text
        shapes = [(num_clips, 1 + num_images)] + [(num_clips,)] * (num_images == 0)
        if tuple(embeddings.shape[:-2]) not in shapes or embeddings.shape[-1] != self.text_dim:
            expected = ", ".join(map(str, (*shapes[-1], "L", self.text_dim)))
            raise ValueError(
                f"text embeddings must have the shape ({expected}), one caption for the clip and one per image; got "
                f"{tuple(embeddings.shape)}"
            )
        if mask.shape != embeddings.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(
                f"the text mask must be bool of shape {tuple(embeddings.shape[:-1])}; got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        shape = (num_clips, 1 + num_images, *embeddings.shape[-2:])
        return Text(embeddings.reshape(shape), mask.reshape(shape[:-1]))
