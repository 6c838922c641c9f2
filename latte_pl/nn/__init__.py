"""The denoiser: Latte and the parts that its ablations exchange; pure torch."""

from latte_pl.nn.latte import Latte

__all__ = ["Latte"]
