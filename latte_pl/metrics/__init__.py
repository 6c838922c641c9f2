"""Metrics of generated videos, and the protocols under which their values may be compared."""

from latte_pl.metrics.embedded import ShapesR3D
from latte_pl.metrics.evaluation import Evaluation, evaluate_folders
from latte_pl.metrics.extractors import C3D, I3D, Extractor, Inception, build_extractor, clip_features
from latte_pl.metrics.frechet import (
    Interval,
    Score,
    bootstrap,
    frechet_distance,
    frechet_from_features,
    inception_score,
    jackknife,
    kernel_distance,
)
from latte_pl.metrics.protocol import METRICS, Protocol
from latte_pl.metrics.record import Record, compare, table, text
from latte_pl.metrics.store import FeatureStore
from latte_pl.metrics.streaming import (
    EmbeddedVideoDistance,
    FrechetDistance,
    FrechetInceptionDistance,
    FrechetVideoDistance,
    InceptionScore,
    KernelVideoDistance,
)

__all__ = [
    "C3D",
    "I3D",
    "METRICS",
    "EmbeddedVideoDistance",
    "Evaluation",
    "Extractor",
    "FeatureStore",
    "FrechetDistance",
    "FrechetInceptionDistance",
    "FrechetVideoDistance",
    "Inception",
    "InceptionScore",
    "Interval",
    "KernelVideoDistance",
    "Protocol",
    "Record",
    "Score",
    "ShapesR3D",
    "bootstrap",
    "build_extractor",
    "clip_features",
    "compare",
    "evaluate_folders",
    "frechet_distance",
    "frechet_from_features",
    "inception_score",
    "jackknife",
    "kernel_distance",
    "table",
    "text",
]
