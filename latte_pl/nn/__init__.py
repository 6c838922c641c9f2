"""The denoising network `Latte` and its layers, in pure PyTorch."""

from latte_pl.nn.latte import Latte, LatteConfig

__all__ = ["Latte", "LatteConfig"]
