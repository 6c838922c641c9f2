"""Metrics of generated videos, and the evaluation protocols under which their values may be compared.

Everything that needs PyTorch is imported on first use, so that records and protocols can be read quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latte_pl.metrics.frechet import Moments, frechet_distance, frechet_from_features
from latte_pl.metrics.inception import inception_score
from latte_pl.metrics.kernel import kernel_distance
from latte_pl.metrics.paper import PublishedValue, differences_from_paper, paper_values, published_values
from latte_pl.metrics.protocol import METRICS, EvaluationProtocol, Metric
from latte_pl.metrics.record import Record, table, text
from latte_pl.metrics.scoring import Interval, Score, jackknife, score

if TYPE_CHECKING:
    from latte_pl.metrics.clips import RealClips
    from latte_pl.metrics.evaluation import Evaluation, evaluate_clips
    from latte_pl.metrics.extractors import C3D, I3D, Extractor, Inception, InceptionLegacy, clip_features
    from latte_pl.metrics.store import FeatureStore, MomentStore

__all__ = [
    "C3D",
    "I3D",
    "METRICS",
    "Evaluation",
    "EvaluationProtocol",
    "Extractor",
    "FeatureStore",
    "Inception",
    "InceptionLegacy",
    "Interval",
    "Metric",
    "MomentStore",
    "Moments",
    "PublishedValue",
    "RealClips",
    "Record",
    "Score",
    "clip_features",
    "differences_from_paper",
    "evaluate_clips",
    "frechet_distance",
    "frechet_from_features",
    "inception_score",
    "jackknife",
    "kernel_distance",
    "paper_values",
    "published_values",
    "score",
    "table",
    "text",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("clips", "evaluation", "extractors", "store"):
            found = import_module(f"latte_pl.metrics.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
