"""Classifier-free guidance with the denoiser's own null class or null caption."""

import math
from typing import Any

import torch
from torch import Tensor

from latte_pl.types import Text


class Guidance:
    """A denoiser closed over its condition: ``guidance(x, t)`` is uncond + scale (cond - uncond).

    Ho and Salimans 2022; only the prediction is guided, a learned variance stays the conditional one, as in the
    official code. The interval is that of Kynkäänniemi et al. 2024. Scale 1, and a timestep outside the interval,
    cost one forward pass of the batch; guidance costs one of the doubled batch.

    Args:
        net: The denoiser, ``net(x, t, labels=...)`` with ``null_label`` or ``net(x, t, text=...)`` with ``null_text``,
            and with ``conditioning`` and ``in_channels``.
        labels: Class of each sample (B,) int64, for ``conditioning="class"``.
        scale: Strength; 1 is without guidance, 0 unconditional.
        interval: Lowest and highest timestep, 0 to 1000, at which guidance acts, both included.
        channels: Number of leading output channels that are guided; None is ``net.in_channels``.
        text: Caption of each sample (B, L, E) and (B, L), for ``conditioning="text"``.

    Raises:
        ValueError: Guidance without the condition that the net takes, a negative scale, an empty interval.
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
            raise ValueError(f"guidance scale is {scale}; it must be 0 or more, 1 is without guidance")
        given: dict[str, Any] = {}  # to the net
        if net.conditioning != "none":
            given = {"text": text} if net.conditioning == "text" else {"labels": labels}
        if scale != 1.0 and all(value is None for value in given.values()):
            wanted = "captions" if net.conditioning == "text" else "classes"
            raise ValueError(f"guidance scale is {scale}, but there are no {wanted} to guide to; set it to 1")
        if not interval[0] <= interval[1]:
            raise ValueError(f"guidance interval is {tuple(interval)}; the lowest timestep comes first")
        self.net, self.given, self.scale = net, given, scale
        self.low, self.high = interval
        self.channels = net.in_channels if channels is None else channels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the guided output (B, F, C or 2C, H, W) for x (B, F, C, H, W) and timesteps (B,)."""
        if self.scale == 1.0:
            return self.net(x, t, **self.given)
        scale: Tensor | float = self.scale
        if self.low > 0.0 or self.high < 1000.0:
            acts = (t >= self.low) & (t <= self.high)
            if not acts.any():  # waits for the device: little beside the forward pass that it saves
                return self.net(x, t, **self.given)
            scale = torch.where(acts[:, None, None, None, None], self.scale, 1.0)  # (B, 1, 1, 1, 1)
        both = self.net(x.repeat(2, 1, 1, 1, 1), t.repeat(2), **self._with_null())
        cond, uncond = both.chunk(2)  # (B, F, C or 2C, H, W) each
        c, u = cond[:, :, : self.channels], uncond[:, :, : self.channels]
        return torch.cat([u + scale * (c - u), cond[:, :, self.channels :]], dim=2)

    def _with_null(self) -> dict[str, Any]:
        """Return the condition of the doubled batch: each sample's own, then as many null ones."""
        if "text" in self.given:
            text = self.given["text"]
            pairs = zip(text, self.net.null_text(text))
            return {"text": Text(*(torch.cat(pair) for pair in pairs))}  # (2B, L, E) and (2B, L)
        labels = self.given["labels"]
        return {"labels": torch.cat([labels, torch.full_like(labels, self.net.null_label)])}  # (2B,)
