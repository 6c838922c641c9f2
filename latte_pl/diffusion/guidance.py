"""Classifier-free guidance with the denoiser's own null class."""

import math
from typing import Any

import torch
from torch import Tensor


class Guidance:
    """A denoiser closed over its labels: ``guidance(x, t)`` is uncond + scale (cond - uncond).

    Ho and Salimans 2022; only the prediction is guided, a learned variance stays the conditional one, as in the
    official code. The interval is that of Kynkäänniemi et al. 2024. Scale 1, and a timestep outside the interval,
    cost one forward pass of the batch; guidance costs one of the doubled batch.

    Args:
        net: The denoiser, ``net(x, t, labels)``, with ``conditioning``, ``null_label`` and ``in_channels``.
        labels: Class of each sample (B,) int64; None for an unconditional net.
        scale: Strength; 1 is without guidance, 0 unconditional.
        interval: Lowest and highest timestep, 0 to 1000, at which guidance acts, both included.
        channels: Number of leading output channels that are guided; None is ``net.in_channels``.

    Raises:
        ValueError: Guidance of a net without classes or without labels, a negative scale, an empty interval.
    """

    def __init__(
        self,
        net: Any,
        labels: Tensor | None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1000.0),
        channels: int | None = None,
    ) -> None:
        if not 0.0 <= scale < math.inf:
            raise ValueError(f"guidance scale is {scale}; it must be 0 or more, 1 is without guidance")
        if scale != 1.0 and (labels is None or net.conditioning != "class"):
            raise ValueError(f"guidance scale is {scale}, but there are no classes to guide to; set it to 1")
        if not interval[0] <= interval[1]:
            raise ValueError(f"guidance interval is {tuple(interval)}; the lowest timestep comes first")
        self.net, self.labels, self.scale = net, labels, scale
        self.low, self.high = interval
        self.channels = net.in_channels if channels is None else channels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided output (B, F, C or 2C, H, W) for x (B, F, C, H, W) and timesteps (B,)."""
        if self.scale == 1.0 or self.labels is None:
            return self.net(x, t, self.labels)
        scale: Tensor | float = self.scale
        if self.low > 0.0 or self.high < 1000.0:
            acts = (t >= self.low) & (t <= self.high)
            if not acts.any():  # waits for the device: little beside the forward pass that it saves
                return self.net(x, t, self.labels)
            scale = torch.where(acts[:, None, None, None, None], self.scale, 1.0)  # (B, 1, 1, 1, 1)
        null = torch.full_like(self.labels, self.net.null_label)
        labels = torch.cat([self.labels, null])  # (2B,)
        cond, uncond = self.net(x.repeat(2, 1, 1, 1, 1), t.repeat(2), labels).chunk(2)  # (B, F, C or 2C, H, W) each
        c, u = cond[:, :, : self.channels], uncond[:, :, : self.channels]
        return torch.cat([u + scale * (c - u), cond[:, :, self.channels :]], dim=2)
