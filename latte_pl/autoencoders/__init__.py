"""Frozen networks around the denoiser: autoencoders between pixels and scaled latents, and text encoders."""

from .base import Autoencoder, from_uint8, to_uint8
from .kl import KLAutoencoder
from .pixel import PixelAutoencoder
from .text_encoders import MiniLMEncoder, T5Encoder, TextEncoder
from .toy_text import ToyTextEncoder

__all__ = [
    "Autoencoder",
    "KLAutoencoder",
    "MiniLMEncoder",
    "PixelAutoencoder",
    "T5Encoder",
    "TextEncoder",
    "ToyTextEncoder",
    "from_uint8",
    "to_uint8",
]
