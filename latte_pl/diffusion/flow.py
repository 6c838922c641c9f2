"""Rectified flow: straight paths from data to noise, velocity prediction."""

import torch
from torch import Tensor

from latte_pl.diffusion import samplers
from latte_pl.diffusion.base import Diffusion, Draw, Model, Progress, at_least_float32, in_dtype


class RectifiedFlow(Diffusion):
    """Velocity prediction on x_s = (1 - s) x + s eps, s in [0, 1] (Liu et al. 2022; Esser et al. 2024, section 3.1).

    The model gives eps - x and sees the timestep 1000 s, on the scale that a Gaussian chain has. Training draws s from
    the logit-normal distribution: sigmoid of a Gaussian. Samplers: "euler" and "heun", at equal steps of s.

    Args:
        mean: Mean of the logit of s; above 0 leans to noise.
        std: Standard deviation of the logit of s.

    Raises:
        ValueError: ``std`` is not positive.
    """

    samplers = ("euler", "heun")
    learn_sigma = False

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0.0:
            raise ValueError(f"std of the logit-normal timesteps is {std}; it must be positive")
        self.mean, self.std = mean, std

    def timesteps(self, u: Tensor) -> Tensor:
        """Map uniforms (B,) in [0, 1) to timesteps (B,), float32 in [0, 1000], by the logit-normal's inverse CDF."""
        logit = self.mean + self.std * torch.special.ndtri(u.double())
        return (1000.0 * logit.sigmoid()).float()

    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return "loss" and "mse", the same, (B, F): means over C, H and W of the squared error of the velocity.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,) float in [0, 1000].
            noise: Standard normal noise like ``x``.

        Raises:
            ValueError: The model does not give as many channels as ``x`` has.
        """
        model = in_dtype(model, x.dtype)
        x, noise = at_least_float32(x), at_least_float32(noise)
        s = t.to(x)[:, None, None, None, None] / 1000.0  # (B, 1, 1, 1, 1)
        velocity = _checked(model, torch.lerp(x, noise, s), t)  # (B, F, C, H, W)
        mse = (velocity - (noise - x)).square().mean(dim=(2, 3, 4))  # (B, F)
        return {"loss": mse, "mse": mse}

    def _solve(
        self, model: Model, x: Tensor, sampler: str, steps: int, eta: float, draw: Draw, progress: Progress
    ) -> Tensor:
        solve = samplers.euler if sampler == "euler" else samplers.heun
        return solve(lambda x, t: _checked(model, x, t), x, steps, progress)


def _checked(model: Model, x: Tensor, t: Tensor) -> Tensor:
    """Evaluate a model and refuse an output that is not a velocity."""
    output = model(x, t)
    if output.shape != x.shape:
        raise ValueError(
            f"the model gives {tuple(output.shape)} for {tuple(x.shape)}; a velocity has the shape of x, and "
            "no variance is learned: set the model's learn_sigma to false"
        )
    return output
