"""Frozen codecs: autoencoders between pixels and latents, the only home of the latent scale, and text encoders."""

from .codec import Codec, from_uint8, to_uint8
from .kl import KLCodec
from .pixel import PixelCodec
from .text import MiniLMEncoder, T5Encoder, TextEncoder

__all__ = [
    "Codec",
    "KLCodec",
    "MiniLMEncoder",
    "PixelCodec",
    "T5Encoder",
    "TextEncoder",
    "from_uint8",
    "to_uint8",
]
