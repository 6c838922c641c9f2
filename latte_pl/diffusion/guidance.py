"""Classifier-free guidance with the null class or the null caption of the denoiser."""

import math
from typing import Any

import torch
from torch import Tensor

from latte_pl.diffusion.base import at_least_float32
from latte_pl.types import Text


class Guidance:
    """Bind a condition to a denoiser and guide it: ``guidance(x, t)`` is uncond + scale * (cond - uncond).

    See Ho and Salimans 2022, and Kynkäänniemi et al. 2024 for the interval. Only the prediction is guided; a learned
    variance is the conditional one, as in the official code. With scale 1 and at timesteps outside of the interval, a
    call costs one forward pass of the batch, otherwise one of twice the batch.

    Args:
        net: The denoiser, ``net(x, t, labels=...)`` with ``null_label`` or ``net(x, t, text=...)`` with ``null_text``;
            its ``conditioning`` and ``in_channels`` are read.
        labels: Class of each sample (B,) int64, for ``conditioning="class"``.
        scale: Guidance scale: 1 is conditional without guidance, 0 unconditional.
        interval: Lowest and highest timestep with guidance (inclusive), in 0 to 1000.
        channels: Number of leading output channels that are guided; None guides ``net.in_channels``.
        text: Caption of each sample, (B, L, E) and (B, L), for ``conditioning="text"``.

    Raises:
        ValueError: The scale is negative, the condition for guidance is missing, or the interval is empty.
    """

    def __init__(
        self,
        net: Any,
        labels: Tensor | None,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1000.0),
        channels: int | None = None,
        text: Text | None = None,
    ) -> None:
        if not 0.0 <= scale < math.inf:
            raise ValueError(f"guidance scale is {scale}; it must be 0 or more, and 1 is without guidance")
        condition: dict[str, Any] = {}  # arguments of the net
        if net.conditioning != "none":
            condition = {"text": text} if net.conditioning == "text" else {"labels": labels}
        if scale != 1.0 and all(value is None for value in condition.values()):
            missing = "captions" if net.conditioning == "text" else "classes"
            raise ValueError(f"guidance scale is {scale}, but there are no {missing}; set it to 1")
        if not interval[0] <= interval[1]:
            raise ValueError(f"guidance interval is {tuple(interval)}; the lowest timestep comes first")
        self.net, self.condition, self.scale = net, condition, scale
        self.low, self.high = interval
        self.channels = net.in_channels if channels is None else channels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided output (B, F, C or 2C, H, W) for x (B, F, C, H, W) and timesteps (B,)."""
        if self.scale == 1.0:
            return self.net(x, t, **self.condition)
        scale: Tensor | float = self.scale
        if self.low > 0.0 or self.high < 1000.0:
            guided = (t >= self.low) & (t <= self.high)
            if not guided.any():  # synchronises the device, which costs little compared to a forward pass
                return self.net(x, t, **self.condition)
            scale = torch.where(guided[:, None, None, None, None], self.scale, 1.0)  # (B, 1, 1, 1, 1)
        # in at least float32: a large scale amplifies the rounding errors of the difference
        both = at_least_float32(self.net(x.repeat(2, 1, 1, 1, 1), t.repeat(2), **self._with_null()))
        cond, uncond = both.chunk(2)  # (B, F, C or 2C, H, W) each
        c, u = cond[:, :, : self.channels], uncond[:, :, : self.channels]
        return torch.cat([u + scale * (c - u), cond[:, :, self.channels :]], dim=2)

    def _with_null(self) -> dict[str, Any]:
        """Return the condition of the doubled batch: the conditions of the samples, then as many null conditions."""
        if "text" in self.condition:
            text = self.condition["text"]
            pairs = zip(text, self.net.null_text(text))
            return {"text": Text(*(torch.cat(pair) for pair in pairs))}  # (2B, L, E) and (2B, L)
        labels = self.condition["labels"]
        return {"labels": torch.cat([labels, torch.full_like(labels, self.net.null_label)])}  # (2B,)
