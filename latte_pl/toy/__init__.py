"""The bundled world of moving shapes: drawn videos, captions, a motion tracker and a feature extractor.

The public names are imported when they are first used, because the datamodule imports Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latte_pl.toy.datamodule import Shapes as Shapes
    from latte_pl.toy.shapes import MovingShapes as MovingShapes

_MODULES = {"MovingShapes": "shapes", "Shapes": "datamodule"}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
