"""The identity autoencoder, for models of pixels and for exact tests."""

import torch
from torch import Tensor

from latte_pl.autoencoders.base import Autoencoder


class PixelAutoencoder(Autoencoder):
    """Use pixels in [-1, 1] as latents of three channels. The posterior is almost a point (log-variance -30)."""

    def __init__(self) -> None:
        super().__init__(name="pixel", channels=3, factor=1)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return frames, torch.full_like(frames, -30.0)  # the minimum to which diffusers clamps log-variances

    def _decode(self, latents: Tensor) -> Tensor:
        return latents
