"""Joins denoiser, diffusion, codec and data under Lightning."""

from latte_pl.training.module import LatteModule
from latte_pl.training.settings import Pretrained, Sampling
from latte_pl.training.weights import load

__all__ = ["LatteModule", "Pretrained", "Sampling", "load"]
