"""Training under Lightning: the module, EMA, checkpoints, callbacks and strategies."""

from latte_pl.training.module import LatteModule
from latte_pl.training.settings import Pretrained, Sampling
from latte_pl.training.spike_guard import SpikeGuard
from latte_pl.training.weights import load

__all__ = ["LatteModule", "Pretrained", "Sampling", "SpikeGuard", "load"]
