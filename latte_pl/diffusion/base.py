"""The base class of diffusion objectives: argument checks, noise and precision of sampling."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
"""``model(x, t) -> output`` for x (B, F, C, H, W) and timesteps t (B,); labels or captions are bound already."""
Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the iterable of steps, as tqdm does."""
Draw = Callable[[], Tensor]
"""Returns new standard normal noise of the shape, dtype and device of the sample."""


class Diffusion(ABC):
    """A training objective and its samplers.

    Computations are in float32, or in float64 for float64 inputs; the model gets inputs in their own dtype. Constructor
    arguments are attributes of the same name.

    Attributes:
        samplers: Names of the samplers that ``sample`` accepts.
        learn_sigma: Whether the model predicts a variance, and so has 2C output channels instead of C.
        training_weights: Names of the arguments that only weight the training loss and do not change its parts.
    """

    samplers: ClassVar[tuple[str, ...]]
    learn_sigma: bool
    training_weights: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def timesteps(self, u: Tensor) -> Tensor:
        """Map uniform samples (B,) in [0, 1) to timesteps (B,) as the model gets them."""

    @abstractmethod
    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Compute the loss and its parts.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,), from ``timesteps``.
            noise: Standard normal noise (B, F, C, H, W).

        Returns:
            "loss", which training minimises, and its parts, each (B, F): means over C, H and W. The parts are not
            weighted, so their sum (the held-out loss) does not depend on ``training_weights``.
        """

    @abstractmethod
    def _solve(
        self, model: Model, x: Tensor, sampler: str, steps: int, eta: float, draw: Draw, progress: Progress
    ) -> Tensor:
        """Run the sampler on validated arguments."""

    def check(self, sampler: str, steps: int, eta: float = 0.0) -> None:
        """Check the arguments of ``sample``, so that mistakes are found before training.

        Args:
            sampler: One of ``samplers``.
            steps: Number of denoising steps.
            eta: Noise level of "ddim".

        Raises:
            ValueError: The sampler is unknown, steps or eta are out of range, or the sampler does not use eta.
        """
        if sampler not in self.samplers:
            raise ValueError(f"sampler is {sampler!r}; {type(self).__name__} supports {', '.join(self.samplers)}")
        if steps < 1:
            raise ValueError(f"steps is {steps}; it must be at least 1")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta is {eta}; it must be in [0, 1]")
        if eta and sampler != "ddim":
            raise ValueError(f"eta is {eta}, but sampler {sampler!r} does not use it; set it to 0 or choose 'ddim'")

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        noise: Tensor,
        *,
        sampler: str,
        steps: int,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Generate latents from noise.

        Args:
            model: The denoiser.
            noise: Standard normal noise (B, F, C, H, W).
            sampler: One of ``samplers``.
            steps: Number of denoising steps.
            eta: Noise level of "ddim" in [0, 1]: 0 is deterministic, 1 adds as much noise as "ddpm" with the smaller
                variance.
            generator: CPU generator of the noise that a sampler adds, or one generator per sample, so that samples do
                not depend on their batch. None uses the global generator.
            progress: Wraps the iterable of steps, as tqdm does.

        Returns:
            Latents with the shape, dtype and device of ``noise``.

        Raises:
            ValueError: Arguments are invalid (see ``check``), or generators are not on the CPU or not one per sample.
        """
        self.check(sampler, steps, eta)
        x = self._solve(
            in_dtype(model, noise.dtype),
            at_least_float32(noise),
            sampler,
            steps,
            eta,
            _normal(at_least_float32(noise), generator),
            progress or (lambda iterable: iterable),
        )
        return x.to(noise.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half-precision tensors to float32; others are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Wrap a model to get its input in this dtype and to return its output in the dtype of the caller."""
    return lambda x, t: model(x.to(dtype), t).to(x.dtype)


def _normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Draw:
    """Return a function that draws noise on the CPU in float32, so that a seed has the same result on every device."""
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator or [])
    if any(g.device.type != "cpu" for g in generators):
        raise ValueError("generators must be on the CPU, where noise is drawn; create them with torch.Generator()")
    if generator is None or isinstance(generator, torch.Generator):
        return lambda: torch.randn(like.shape, generator=generator).to(like)
    if len(generators) != len(like):
        raise ValueError(f"got {len(generators)} generators for {len(like)} samples; pass one, or one per sample")
    return lambda: torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)
