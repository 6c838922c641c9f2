"""Import and export of checkpoints of other code bases: official Latte, DiT, and diffusers."""

from latte_pl.interop.dit import load_dit
from latte_pl.interop.official import export_official, load_official, with_ucf101_order
from latte_pl.interop.read import load, read_config, read_weights
from latte_pl.interop.t2v import TextToVideo

__all__ = [
    "TextToVideo",
    "export_official",
    "load",
    "load_dit",
    "load_official",
    "read_config",
    "read_weights",
    "with_ucf101_order",
]
