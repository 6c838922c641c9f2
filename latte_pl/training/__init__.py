"""Joins denoiser, diffusion, codec and data under Lightning."""

from latte_pl.training.module import LatteModule, Sampling
from latte_pl.training.weights import load

__all__ = ["LatteModule", "Sampling", "load"]
