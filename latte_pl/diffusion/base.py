"""The interface that objectives share, and what every sampler needs: checked arguments and noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]
"""``model(x, t) -> output``: x (B, F, C, H, W), t (B,) as ``Diffusion.timesteps`` gives it, conditions closed over."""
Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps the iterable of steps, as tqdm does."""
Draw = Callable[[], Tensor]
"""Returns fresh standard normal noise of the sample's shape, dtype and device."""


class Diffusion(ABC):
    """An objective and its samplers.

    Everything is computed in float32, or in float64 for a float64 input; the model sees the input's own dtype.

    Attributes:
        samplers: Names that ``sample`` knows.
        learn_sigma: Whether the model must give 2C channels, a prediction and a variance, instead of C.
        training_weights: Names of the settings that weigh the loss of training and change none of its parts.
    """

    samplers: ClassVar[tuple[str, ...]]
    learn_sigma: bool
    training_weights: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def timesteps(self, u: Tensor) -> Tensor:
        """Map uniforms (B,) in [0, 1) to timesteps (B,) as the model sees them."""

    @abstractmethod
    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return "loss" and its parts, each (B, F): means over C, H and W.

        "loss" is what training minimises. The parts bear no weights of training: their sum is the held-out loss,
        which so means the same whatever those weights are.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,), from ``timesteps``.
            noise: Standard normal noise like ``x``.
        """

    @abstractmethod
    def _solve(
        self, model: Model, x: Tensor, sampler: str, steps: int, eta: float, draw: Draw, progress: Progress
    ) -> Tensor:
        """Carry noise to a sample; the arguments are checked."""

    def check(self, sampler: str, steps: int, eta: float = 0.0) -> None:
        """Refuse arguments that ``sample`` cannot take, before anything is trained or drawn with them.

        Args:
            sampler: One of ``samplers``.
            steps: Number of denoising steps.
            eta: Share of ancestral noise.

        Raises:
            ValueError: A sampler that is not known, steps or eta out of range, or eta without "ddim".
        """
        if sampler not in self.samplers:
            raise ValueError(f"sampler is {sampler!r}; {type(self).__name__} knows {', '.join(self.samplers)}")
        if steps < 1:
            raise ValueError(f"steps is {steps}; sampling takes at least 1")
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta is {eta}; it must lie in [0, 1]")
        if eta and sampler != "ddim":
            raise ValueError(f"eta is {eta}, which sampler {sampler!r} does not use; leave it at 0 or take 'ddim'")

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
        """Turn noise into latents.

        Args:
            model: The denoiser.
            noise: Standard normal noise (B, F, C, H, W).
            sampler: One of ``samplers``.
            steps: Number of denoising steps.
            eta: Share of the ancestral noise that "ddim" adds, in [0, 1]; 0 is deterministic.
            generator: Source of the noise that a sampler adds, a CPU generator; or one for each sample, so that a
                sample does not depend on its batch. None is torch's global one.
            progress: Wraps the iterable of steps, as tqdm does.

        Returns:
            Latents of the shape, dtype and device of ``noise``.

        Raises:
            ValueError: Arguments that ``check`` refuses, or generators that are not on the CPU or not one a sample.
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
    """Return a half-precision tensor in float32, any other as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """Let a model see this dtype and answer in that of its caller."""
    return lambda x, t: model(x.to(dtype), t).to(x.dtype)


def _normal(like: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Draw:
    """Return a source of noise, drawn on the CPU in float32 so that a seed means the same on every device."""
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator or [])
    if any(g.device.type != "cpu" for g in generators):
        raise ValueError("a generator is not on the CPU; noise is drawn there, make it with torch.Generator()")
    if generator is None or isinstance(generator, torch.Generator):
        return lambda: torch.randn(like.shape, generator=generator).to(like)
    if len(generators) != len(like):
        raise ValueError(f"{len(generators)} generators for {len(like)} samples; give one, or one a sample")
    return lambda: torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)
