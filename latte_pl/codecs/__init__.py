"""Frozen autoencoders between pixels and latents: the only home of the latent scale."""

from .codec import Codec, from_uint8, to_uint8
from .kl import KLCodec
from .pixel import PixelCodec

__all__ = ["Codec", "KLCodec", "PixelCodec", "from_uint8", "to_uint8"]
