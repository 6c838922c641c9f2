"""From samples to features to scores: trained models and folders of finished videos."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latte_pl.evaluation.distance import VideoDistance
    from latte_pl.evaluation.models import ProtocolEvaluation
    from latte_pl.evaluation.writer import VideoWriter

__all__ = ["ProtocolEvaluation", "VideoDistance", "VideoWriter"]

_HOMES = {"ProtocolEvaluation": "models", "VideoDistance": "distance", "VideoWriter": "writer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
