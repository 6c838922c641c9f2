"""The noise schedule of Gaussian diffusion: coefficients of its steps, and respacing to fewer steps."""

from collections.abc import Sequence
from itertools import accumulate, repeat
from typing import NamedTuple

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000


class Coefficients(NamedTuple):
    """Coefficients of one step, each a scalar or (B, 1, 1, 1, 1); equations of Ho et al. 2020 (DDPM).

    a is the product of 1 - beta up to this step, p the product up to the step before (1 at the first step).
    """

    signal: Tensor
    """sqrt(a): x_t = signal x_0 + noise eps (equation 4)."""
    noise: Tensor
    """sqrt(1 - a)."""
    signal_prev: Tensor
    """sqrt(p)."""
    noise_prev: Tensor
    """sqrt(1 - p)."""
    ratio: Tensor
    """sqrt(1 / a - 1): x_0 = x_t / signal - ratio eps."""
    mean_x0: Tensor
    """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (equation 7)."""
    mean_xt: Tensor
    """Weight of x_t in this mean."""
    log_variance_min: Tensor
    """Logarithm of the variance of q(x_{t-1} | x_t, x_0); at the first step, where it is 0, that of the second step."""
    log_variance_max: Tensor
    """log(beta)."""

    def x0(self, x: Tensor, eps: Tensor) -> Tensor:
        """Compute x_0 from x_t and its noise ``eps``."""
        return x / self.signal - self.ratio * eps


class Schedule:
    """Coefficients of the 1000 linear betas from 1e-4 to 0.02, or of a subset of their timesteps.

    A respaced schedule keeps the noise levels of its timesteps; its betas lead from one level to the next.

    Args:
        timesteps: Ascending timesteps in 0..999; None uses all.
    """

    def __init__(self, timesteps: Sequence[int] | None = None) -> None:
        self.timesteps = list(range(NUM_TIMESTEPS) if timesteps is None else timesteps)
        a = (1.0 - linear_betas()).cumprod(0)[self.timesteps]
        p = torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])
        beta = 1.0 - a / p
        variance = beta * (1.0 - p) / (1.0 - a)
        variance[0] = variance[1]
        rows = Coefficients(
            signal=a.sqrt(),
            noise=(1.0 - a).sqrt(),
            signal_prev=p.sqrt(),
            noise_prev=(1.0 - p).sqrt(),
            ratio=(1.0 / a - 1.0).sqrt(),
            mean_x0=beta * p.sqrt() / (1.0 - a),
            mean_xt=(1.0 - p) * (1.0 - beta).sqrt() / (1.0 - a),
            log_variance_min=variance.log(),
            log_variance_max=beta.log(),
        )
        self.table = torch.stack(rows)  # (coefficients, steps) float64
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def step(self, index: int) -> Coefficients:
        """Return the coefficients of one step of this schedule, scalars on the CPU that combine with any device."""
        return Coefficients(*self.table[:, index].unbind())

    def at(self, index: Tensor, like: Tensor) -> Coefficients:
        """Return the coefficients of steps (B,), each (B, 1, 1, 1, 1) in the dtype and on the device of ``like``."""
        key = (like.device, like.dtype)
        if key not in self._copies:  # copied once, so that training steps do not wait for the transfer
            self._copies[key] = self.table.to(like.dtype).to(like.device)
        return Coefficients(*self._copies[key][:, index, None, None, None, None].unbind())


def linear_betas() -> Tensor:
    """Return the 1000 linear betas from 1e-4 to 0.02 in float64 (Ho et al. 2020, section 4)."""
    return torch.linspace(1e-4, 0.02, NUM_TIMESTEPS, dtype=torch.float64)


def evenly_spaced(steps: int) -> list[int]:
    """Return timesteps from 0 to 999 with equal fractional stride, rounded (Nichol and Dhariwal 2021).

    Raises:
        ValueError: There are fewer than 2 or more than 1000 steps.
    """
    if not 2 <= steps <= NUM_TIMESTEPS:
        raise ValueError(f"steps is {steps}; this sampler takes 2 to {NUM_TIMESTEPS}")
    stride = (NUM_TIMESTEPS - 1) / (steps - 1)
    # a running sum as in the official code: products would round some ties differently
    return [round(t) for t in accumulate(repeat(stride, steps - 1), initial=0.0)]


def integer_stride(steps: int) -> list[int]:
    """Return timesteps 0, s, 2s, ... for the integer stride s with this number of steps (Song et al. 2021, DDIM).

    Raises:
        ValueError: No integer stride has this number of steps.
    """
    strides = {len(range(0, NUM_TIMESTEPS, s)): s for s in range(NUM_TIMESTEPS - 1, 0, -1)}  # the smallest s is kept
    if steps not in strides:
        near = sorted(sorted(strides, key=lambda count: abs(count - steps))[:2])
        raise ValueError(
            f"steps is {steps}, but no integer stride through {NUM_TIMESTEPS} timesteps has this number of steps; "
            f"take {near[0]} or {near[1]}"
        )
    return list(range(0, NUM_TIMESTEPS, strides[steps]))
