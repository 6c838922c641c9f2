"""Gaussian diffusion, the paper's objective: 1000 steps, noise prediction, learned variance."""

import math

import torch
from torch import Tensor

from latte_pl.diffusion import samplers
from latte_pl.diffusion.base import Diffusion, Draw, Model, Progress, at_least_float32, in_dtype
from latte_pl.diffusion.schedule import NUM_TIMESTEPS, Coefficients, Schedule, evenly_spaced, integer_stride


class GaussianDiffusion(Diffusion):
    """Noise prediction with 1000 linear betas; the variance is learned, or fixed at beta.

    The loss is ``mse + vb`` (L_hybrid of Nichol and Dhariwal 2021 with weight 1, as in the official Latte), or ``mse``
    with a fixed variance. Samplers: "ddpm" (respaced), "ddim" and "dpm++" (DPM-Solver++ 2M of diffusers). Predictions
    of x_0 are not clipped, because latents are unbounded.

    Args:
        learn_sigma: Learn the variance; the model then has 2C output channels, noise first.
        min_snr_gamma: Weight the training ``mse`` of a step by min(SNR, gamma) / SNR (Min-SNR, Hang et al. 2023, with
            gamma = 5). None uses no weights.

    Raises:
        ValueError: ``min_snr_gamma`` is not positive.
    """

    samplers = ("ddpm", "ddim", "dpm++")
    training_weights = ("min_snr_gamma",)

    def __init__(self, learn_sigma: bool = True, min_snr_gamma: float | None = None) -> None:
        if min_snr_gamma is not None and not min_snr_gamma > 0.0:
            raise ValueError(f"min_snr_gamma is {min_snr_gamma}; it must be positive, or none for no weights")
        self.learn_sigma, self.min_snr_gamma = learn_sigma, min_snr_gamma
        self.schedule = Schedule()

    def timesteps(self, u: Tensor) -> Tensor:
        """Map uniform samples (B,) in [0, 1) to timesteps (B,), uniform int64 in 0..999."""
        return (u * NUM_TIMESTEPS).long()

    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Compute the squared error of the noise and the variational bound.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,) int64 in 0..999.
            noise: Standard normal noise (B, F, C, H, W).

        Returns:
            "loss", "mse" and, with a learned variance, "vb" in bits; each (B, F): means over C, H and W. Only "loss" is
            weighted by ``min_snr_gamma``.

        Raises:
            ValueError: The number of output channels does not match ``learn_sigma``.
        """
        model = in_dtype(model, x.dtype)
        x, noise = at_least_float32(x), at_least_float32(noise)
        c = self.schedule.at(t, x)
        eps, v = self._split(model(c.signal * x + c.noise * noise, t), x)  # (B, F, C, H, W) each
        error = eps - noise  # (B, F, C, H, W)
        mse = error.square().mean(dim=(2, 3, 4))  # (B, F)
        weighted = mse
        if self.min_snr_gamma is not None:
            inverse_snr = c.ratio.square()[:, :, 0, 0, 0]  # (B, 1)
            weighted = (self.min_snr_gamma * inverse_snr).clamp(max=1.0) * mse
        if v is None:
            return {"loss": weighted, "mse": mse}
        # the bound has no gradient with respect to the noise prediction
        vb = variational_bound(c, x, error.detach(), samplers.log_variance(c, v), t == 0)  # (B, F)
        return {"loss": weighted + vb, "mse": mse, "vb": vb}

    def _split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the output (B, F, C or 2C, H, W) of the model into noise and variance, each (B, F, C, H, W)."""
        channels = x.shape[2]
        expected = 2 * channels if self.learn_sigma else channels
        if output.shape[2] != expected:
            raise ValueError(
                f"the model returns {output.shape[2]} channels for {channels} input channels, but "
                f"learn_sigma={self.learn_sigma} needs {expected}; set learn_sigma of model and diffusion to the same "
                "value"
            )
        return (output[:, :, :channels], output[:, :, channels:]) if self.learn_sigma else (output, None)

    def check(self, sampler: str, steps: int, eta: float = 0.0) -> None:
        """Check the arguments of ``sample``.

        Raises:
            ValueError: As in `Diffusion.check`, or the sampler does not support this number of steps.
        """
        super().check(sampler, steps, eta)
        if sampler == "ddpm":
            evenly_spaced(steps)
        elif sampler == "ddim":
            integer_stride(steps)
        elif steps > NUM_TIMESTEPS:
            raise ValueError(f"steps is {steps}; {sampler!r} takes 1 to {NUM_TIMESTEPS}")

    def _solve(
        self, model: Model, x: Tensor, sampler: str, steps: int, eta: float, draw: Draw, progress: Progress
    ) -> Tensor:
        def predict(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            return self._split(model(x, t), x)

        if sampler == "ddpm":
            return samplers.ddpm(predict, x, Schedule(evenly_spaced(steps)), draw, progress)
        if sampler == "ddim":
            return samplers.ddim(predict, x, Schedule(integer_stride(steps)), eta, draw, progress)
        return samplers.dpm_solver_multistep(predict, x, steps, progress)


def variational_bound(c: Coefficients, x: Tensor, error: Tensor, log_variance: Tensor, first: Tensor) -> Tensor:
    """Compute the term of the variational bound of one step, in bits (Ho et al. 2020, equation 5).

    It is the KL divergence of p(x_{t-1} | x_t) from q(x_{t-1} | x_t, x_0). At the first step it is the negative
    log-likelihood of x_0 under p(x_0 | x_1), discretised to 256 levels in [-1, 1] as in the official code.

    Args:
        c: Coefficients of the steps.
        x: Clean latents (B, F, C, H, W).
        error: Predicted noise minus noise (B, F, C, H, W).
        log_variance: Logarithm of the variance of p(x_{t-1} | x_t), broadcastable to ``x``.
        first: (B,) bool, True for the first step.

    Returns:
        (B, F): means over C, H and W.
    """
    # x_0 minus its prediction, computed from the error of the noise to avoid cancellation
    distance = c.ratio * error  # (B, F, C, H, W)
    gap = c.log_variance_min - log_variance
    divergence = 0.5 * (gap.exp() - 1.0 - gap + (c.mean_x0 * distance).square() * (-log_variance).exp())
    likelihood = discretised_log_likelihood(x, distance, 0.5 * log_variance)
    nats = torch.where(first[:, None, None, None, None], -likelihood, divergence)
    return nats.mean(dim=(2, 3, 4)) / math.log(2.0)


def discretised_log_likelihood(x: Tensor, distance: Tensor, log_std: Tensor) -> Tensor:
    """Compute the log-probability, in nats, of the interval of width 2/255 around ``x`` under a Gaussian.

    Args:
        x: Values; the intervals of those below -0.999 and above 0.999 extend to infinity.
        distance: ``x`` minus the mean of the Gaussian.
        log_std: Logarithm of its standard deviation.

    Returns:
        Log-probabilities with the shape of ``x``.
    """
    precision = (-log_std).exp()
    upper = _normal_cdf(precision * (distance + 1.0 / 255.0))
    lower = _normal_cdf(precision * (distance - 1.0 / 255.0))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1.0 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(z: Tensor) -> Tensor:
    """Approximate the standard normal CDF with a tanh, as in the official code."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z.pow(3))))
