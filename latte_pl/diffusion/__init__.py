"""Diffusion objectives, samplers and classifier-free guidance; the model is any callable ``model(x, t)``."""

from latte_pl.diffusion.base import Diffusion
from latte_pl.diffusion.flow import RectifiedFlow
from latte_pl.diffusion.gaussian import GaussianDiffusion
from latte_pl.diffusion.guidance import Guidance

__all__ = ["Diffusion", "GaussianDiffusion", "Guidance", "RectifiedFlow"]
