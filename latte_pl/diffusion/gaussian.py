"""The paper's objective: a Gaussian chain of 1000 steps, noise prediction, learned variance."""

import math

import torch
from torch import Tensor

from latte_pl.diffusion import samplers
from latte_pl.diffusion.base import Diffusion, Draw, Model, Progress, at_least_float32, in_dtype
from latte_pl.diffusion.schedule import NUM_TIMESTEPS, Coefficients, Schedule, evenly_spaced, integer_stride


class GaussianDiffusion(Diffusion):
    """Noise prediction on 1000 linear betas, with the variance learned between its bounds or fixed at beta.

    Loss: ``mse + vb`` (Nichol and Dhariwal 2021, L_hybrid with weight 1, as the official Latte trains), or ``mse``
    alone with a fixed variance. Samplers: "ddpm" (ancestral, respaced), "ddim", "dpm++" (diffusers' DPM-Solver++ 2M).
    Predictions of x_0 are not clipped: latents have no range.

    Args:
        learn_sigma: Learn the variance; the model then gives 2C channels, noise first.
        min_snr_gamma: Weigh the ``mse`` of a step in training by min(SNR, gamma) / SNR, its weight for noise prediction
            (Hang et al. 2023, Min-SNR-gamma; their gamma is 5), with SNR = a / (1 - a). None weighs nothing.

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
        """Map uniforms (B,) in [0, 1), float32 or float64, to timesteps (B,), int64 in 0..999, all equally likely."""
        return (u * NUM_TIMESTEPS).long()

    def loss(self, model: Model, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return "loss", "mse" and, with a learned variance, "vb" in bits; each (B, F), means over C, H and W.

        Only "loss" has the weights of ``min_snr_gamma``.

        Args:
            model: The denoiser.
            x: Clean latents (B, F, C, H, W).
            t: Timesteps (B,) int64 in 0..999.
            noise: Standard normal noise like ``x``.

        Raises:
            ValueError: The model's number of channels does not suit ``learn_sigma``.
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
        # the bound trains the variance alone
        vb = variational_bound(c, x, error.detach(), samplers.log_variance(c, v), t == 0)  # (B, F)
        return {"loss": weighted + vb, "mse": mse, "vb": vb}

    def _split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split a model's output (B, F, C or 2C, H, W) into noise and variance, each (B, F, C, H, W)."""
        channels = x.shape[2]
        expected = 2 * channels if self.learn_sigma else channels
        if output.shape[2] != expected:
            raise ValueError(
                f"the model gives {output.shape[2]} channels for {channels}; learn_sigma={self.learn_sigma} needs "
                f"{expected}, set learn_sigma of model and diffusion alike"
            )
        return (output[:, :, :channels], output[:, :, channels:]) if self.learn_sigma else (output, None)

    def check(self, sampler: str, steps: int, eta: float = 0.0) -> None:
        """Refuse arguments that ``sample`` cannot take.

        Raises:
            ValueError: As every objective's, or a number of steps that the sampler does not make.
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
            return samplers.ancestral(predict, x, Schedule(evenly_spaced(steps)), draw, progress)
        if sampler == "ddim":
            return samplers.ddim(predict, x, Schedule(integer_stride(steps)), eta, draw, progress)
        return samplers.multistep(predict, x, steps, progress)


def variational_bound(c: Coefficients, x: Tensor, error: Tensor, log_variance: Tensor, first: Tensor) -> Tensor:
    """Return one step's term of the variational bound in bits, (B, F): means over C, H and W.

    Ho et al. 2020, equation 5: the divergence of p(x_{t-1} | x_t) from q(x_{t-1} | x_t, x_0), at the first step the
    likelihood of x_0 under p(x_0 | x_1), discretised to the 256 levels of [-1, 1] as the official code has it.

    Args:
        c: Coefficients of the steps.
        x: Clean latents (B, F, C, H, W).
        error: Predicted noise minus noise, like ``x``.
        log_variance: Logarithm of the variance of p(x_{t-1} | x_t), like ``x``.
        first: (B,) bool, whether the step is the first one.
    """
    # x_0 minus its prediction is ratio * error: taken from there, nothing cancels
    distance = c.ratio * error  # (B, F, C, H, W)
    gap = c.log_variance_min - log_variance
    divergence = 0.5 * (gap.exp() - 1.0 - gap + (c.mean_x0 * distance).square() * (-log_variance).exp())
    likelihood = discretised_log_likelihood(x, distance, 0.5 * log_variance)
    nats = torch.where(first[:, None, None, None, None], -likelihood, divergence)
    return nats.mean(dim=(2, 3, 4)) / math.log(2.0)


def discretised_log_likelihood(x: Tensor, distance: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability, in nats, of the level of width 2/255 around ``x``; outer levels have no end.

    Args:
        x: Values, of which those below -0.999 and above 0.999 lie in an outer level.
        distance: ``x`` minus the mean of the Gaussian.
        log_std: Logarithm of its standard deviation.
    """
    precision = (-log_std).exp()
    upper = _normal_cdf(precision * (distance + 1.0 / 255.0))
    lower = _normal_cdf(precision * (distance - 1.0 / 255.0))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1.0 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(z: Tensor) -> Tensor:
    """Approximate the normal distribution function by a tanh, as the objective of the official code does."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z.pow(3))))
