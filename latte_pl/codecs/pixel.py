"""The codec that leaves pixels as they are, for models without an autoencoder and for exact tests."""

import torch
from torch import Tensor

from latte_pl.codecs.codec import Codec


class PixelCodec(Codec):
    """Pixels in [-1, 1] as latents of three channels; the posterior is a point (log-variance -30)."""

    def __init__(self) -> None:
        super().__init__(name="pixel", channels=3, factor=1)

    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return frames, torch.full_like(frames, -30.0)  # the floor at which diffusers clamps log-variances

    def _decode(self, latents: Tensor) -> Tensor:
        return latents
