"""The feature extractors that a protocol can name.

To add a metric, add its function and the name of its extractor to ``latte_pl.metrics.protocol.METRICS``. If the
extractor is new, add a class with the interface ``latte_pl.metrics.Extractor`` to ``EXTRACTORS`` below. Then a protocol
file can list the metric.
"""

from collections.abc import Callable
from pathlib import Path

from latte_pl.metrics.extractors import C3D, I3D, Extractor, Inception, InceptionLegacy
from latte_pl.toy.extractor import ShapesR3D

EXTRACTORS: dict[str, Callable[[Path | str | None], Extractor]] = {
    "i3d": I3D,
    "c3d": C3D,
    "inception": Inception,
    "inception_legacy": InceptionLegacy,
    "shapes_r3d": ShapesR3D,
}


def build_extractor(name: str, path: Path | str | None = None) -> Extractor:
    """Build a feature extractor.

    Args:
        name: A name in ``EXTRACTORS``.
        path: Its weights; None downloads them once to the cache folder, or uses the shipped weights of "shapes_r3d".

    Raises:
        FileNotFoundError: There is no weights file, and it cannot be downloaded.
        ValueError: The name is unknown, or the extractor needs a path.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}; choose one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](path)
