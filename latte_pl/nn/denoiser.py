"""What training, samplers and commands ask of a denoiser, whatever it is inside."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from latte_pl.types import Text


class Denoiser(nn.Module, ABC):
    """Base of the networks that a training module takes.

    ``forward(x, timesteps, labels, ..., num_images)`` maps noisy latents (B, F + N, C, H, W) at timesteps (B,) in
    [0, 1000] to the noise, or to noise and variance (2C channels) with ``learn_sigma``.
    """

    in_channels: int
    """C, channels of the latents."""
    input_size: tuple[int, ...]
    """(H, W) of the latents."""
    num_frames: int
    """F, frames of a clip that the network is built for."""
    learn_sigma: bool
    conditioning: str
    """What enters beside the timestep: one of `latte_pl.types.Conditioning`."""
    num_classes: int
    text_dim: int
    """E, width of the captions' embeddings; 0 without."""
    text_length: int
    """L, tokens of a caption; 0 without."""
    class_dropout: float
    """Rate at which the caller drops the condition in training."""
    blocks: Iterable[nn.Module]
    """Parts that are sharded and compiled one by one."""

    @property
    def null_label(self) -> int:
        """The label that means no class: the row after the last class."""
        return self.num_classes

    @abstractmethod
    def null_text(self, text: Text) -> Text:
        """Return as many null captions as there are captions."""

    @abstractmethod
    def init_weights(self, seed: int | None = None) -> None:
        """Draw all parameters; with a seed, each from its own stream (seed, "init", name)."""

    @abstractmethod
    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Predict noise (and variance); a network adds the arguments of its condition."""

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block in place by `torch.compile`; blocks of a kind share code, parameters keep their names.

        Raises:
            ValueError: The blocks choose what to keep themselves, which the compiler does as well.
        """
        if getattr(self, "activation_checkpointing", False) == "selective":
            raise ValueError(
                "compiled blocks choose themselves what to compute again: set model.compile to false, or "
                "model.net.init_args.activation_checkpointing to false or true"
            )
        for block in self.blocks:
            block.compile(backend=backend)
