"""Checkpoints of other code bases in and out."""

from latte_pl.interop.dit import load_dit
from latte_pl.interop.official import export_official, load_official

__all__ = ["export_official", "load_dit", "load_official"]
