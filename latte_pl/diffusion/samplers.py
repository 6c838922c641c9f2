"""Samplers, which integrate from noise to a sample: DDPM, DDIM, DPM-Solver++ (2M), Euler and Heun."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from latte_pl.diffusion.base import Draw, Model, Progress
from latte_pl.diffusion.schedule import NUM_TIMESTEPS, Coefficients, Schedule, linear_betas

Predict = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""``predict(x, t)`` returns the predicted noise and, if it is learned, the variance output of the model."""


def log_variance(c: Coefficients, v: Tensor | None) -> Tensor:
    """Compute the log-variance of a reverse step (Nichol and Dhariwal 2021, equation 15).

    Args:
        c: Coefficients of the step.
        v: Variance output of the model; -1 is the lower and 1 the upper bound. None is the upper bound.
    """
    if v is None:
        return c.log_variance_max
    fraction = (v + 1.0) / 2.0
    return fraction * c.log_variance_max + (1.0 - fraction) * c.log_variance_min


def ddpm_step(c: Coefficients, x: Tensor, eps: Tensor, v: Tensor | None, noise: Tensor | None) -> Tensor:
    """Draw x_{t-1} from p(x_{t-1} | x_t) (Ho et al. 2020, algorithm 2); return its mean if ``noise`` is None."""
    mean = c.mean_x0 * c.x0(x, eps) + c.mean_xt * x
    return mean if noise is None else mean + (0.5 * log_variance(c, v)).exp() * noise


def ddim_step(c: Coefficients, x: Tensor, eps: Tensor, eta: float, noise: Tensor | None) -> Tensor:
    """Compute x_{t-1} (Song et al. 2021, DDIM, equation 12); the step is deterministic if ``noise`` is None."""
    mean = c.signal_prev * c.x0(x, eps)
    if noise is None:
        return mean + c.noise_prev * eps
    sigma = eta * c.noise_prev / c.noise * (1.0 - (c.signal / c.signal_prev).square()).sqrt()
    return mean + (c.noise_prev.square() - sigma.square()).sqrt() * eps + sigma * noise


def ddpm(predict: Predict, x: Tensor, schedule: Schedule, draw: Draw, progress: Progress) -> Tensor:
    """Sample with DDPM; every step except the last adds noise."""
    for index in progress(range(len(schedule.timesteps) - 1, -1, -1)):
        eps, v = predict(x, _timestep(schedule.timesteps[index], x))
        x = ddpm_step(schedule.step(index), x, eps, v, draw() if index else None)
    return x


def ddim(predict: Predict, x: Tensor, schedule: Schedule, eta: float, draw: Draw, progress: Progress) -> Tensor:
    """Sample with DDIM, which does not use a learned variance."""
    for index in progress(range(len(schedule.timesteps) - 1, -1, -1)):
        eps, _ = predict(x, _timestep(schedule.timesteps[index], x))
        x = ddim_step(schedule.step(index), x, eps, eta, draw() if eta and index else None)
    return x


def dpm_solver_multistep(predict: Predict, x: Tensor, steps: int, progress: Progress) -> Tensor:
    """Sample with DPM-Solver++ (2M) (Lu et al. 2022) as implemented in diffusers, with coefficients in float32."""
    from diffusers import DPMSolverMultistepScheduler  # the import takes seconds

    solver: Any = DPMSolverMultistepScheduler(NUM_TIMESTEPS, trained_betas=linear_betas().tolist())
    solver.set_timesteps(steps)
    solver.set_begin_index(0)
    for t in progress(solver.timesteps.tolist()):
        eps, _ = predict(x, _timestep(t, x))
        x = solver.step(eps, t, x, return_dict=False)[0]
    return x


def euler(model: Model, x: Tensor, steps: int, progress: Progress) -> Tensor:
    """Integrate dx/ds = model(x, 1000 s) from s = 1 to 0 with Euler's method: one evaluation per step."""
    for index in progress(range(steps, 0, -1)):
        x = x - model(x, _timestep(1000.0 * index / steps, x)) / steps
    return x


def heun(model: Model, x: Tensor, steps: int, progress: Progress) -> Tensor:
    """Integrate dx/ds = model(x, 1000 s) from s = 1 to 0 with Heun's method: two evaluations per step.

    The last step is an Euler step, because the model is hardly trained at s = 0; the order stays 2.
    """
    for index in progress(range(steps, 0, -1)):
        velocity = model(x, _timestep(1000.0 * index / steps, x))
        end = x - velocity / steps
        if index > 1:
            velocity = (velocity + model(end, _timestep(1000.0 * (index - 1) / steps, x))) / 2.0
            end = x - velocity / steps
        x = end
    return x


def _timestep(t: int | float, x: Tensor) -> Tensor:
    """Return a timestep for each sample, (B,): int64, or float32 for a float."""
    return torch.full((len(x),), t, dtype=torch.int64 if isinstance(t, int) else torch.float32, device=x.device)
