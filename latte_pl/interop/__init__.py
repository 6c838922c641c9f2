"""Checkpoints of other code bases in and out."""

from latte_pl.interop.dit import load_dit
from latte_pl.interop.official import export_official, load_official, with_ucf101_order
from latte_pl.interop.t2v import TextToVideo

__all__ = ["TextToVideo", "export_official", "load_dit", "load_official", "with_ucf101_order"]
