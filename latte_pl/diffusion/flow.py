"""Rectified flow: straight paths from data to noise, with velocity prediction."""

import torch
from torch import Tensor

from latte_pl.diffusion import samplers
from latte_pl.diffusion.base import Diffusion, Draw, Model, Progress, at_least_float32, in_dtype


class RectifiedFlow(Diffusion):
    """Velocity prediction on x_s = (1 - s) x + s eps, s in [0, 1] (Liu et al. 2022; Esser et al. 2024, section 3.1).

    The model predicts eps - x and gets the timestep 1000 s, as with Gaussian diffusion. Training draws s from a
    logit-normal distribution. Samplers: "euler" and "heun", with equal steps of s.

    Args:
        mean: Mean of the logit of s; positive values favour noisy timesteps.
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
        """Map uniform samples (B,) in [0, 1) to timesteps (B,), float32 in [0, 1000], by the inverse CDF."""
        logit = self.mean + self.std * torch.special.ndtri(u.double())
        return (1000.0 * logit.sigmoid()).float()

    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Compute the squared error of the velocity.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,) float in [0, 1000].
            noise: Standard normal noise (B, F, C, H, W).

        Returns:
            "loss" and "mse", which are equal, (B, F): means over C, H and W.

        Raises:
            ValueError: The output of the model does not have the shape of ``x``.
        """
        model = in_dtype(model, x.dtype)
        x, noise = at_least_float32(x), at_least_float32(noise)
        s = t.to(x)[:, None, None, None, None] / 1000.0  # (B, 1, 1, 1, 1)
        velocity = _velocity(model, torch.lerp(x, noise, s), t)  # (B, F, C, H, W)
        mse = (velocity - (noise - x)).square().mean(dim=(2, 3, 4))  # (B, F)
        return {"loss": mse, "mse": mse}

    def _solve(
        self, model: Model, x: Tensor, sampler: str, steps: int, eta: float, draw: Draw, progress: Progress
    ) -> Tensor:
        solve = samplers.euler if sampler == "euler" else samplers.heun
        return solve(lambda x, t: _velocity(model, x, t), x, steps, progress)


def _velocity(model: Model, x: Tensor, t: Tensor) -> Tensor:
    """Evaluate the model and check the shape of its output."""
    output = model(x, t)
    if output.shape != x.shape:
        raise ValueError(
            f"the model returns shape {tuple(output.shape)} for an input of shape {tuple(x.shape)}; a velocity has the "
            "shape of the input, without a variance: set learn_sigma of the model to false"
        )
    return output
