"""Components of a training module as plain values: how hyperparameters and checkpoints describe them."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(component: Any) -> Any:
    """Return a value that `instantiate` turns back into an equal component, in types that every checkpoint can hold.

    Components keep each constructor argument as an attribute of the same name, or all of them in a dataclass
    ``config``, as `latte_pl.nn.Latte` does.

    Args:
        component: A denoiser, diffusion, autoencoder or text encoder; a dataclass of settings; or a plain value.

    Returns:
        ``{"class_path": ..., "init_args": ...}`` for a component, a dictionary for a dataclass, else the value. None
        for a component that does not keep its arguments: it has to be passed to `LatteModule.load_from_checkpoint`.
    """
    if isinstance(component, Path):
        return str(component)
    if component is None or isinstance(component, bool | int | float | str | list | tuple | dict):
        return component
    if dataclasses.is_dataclass(component) and not isinstance(component, type):
        return dataclasses.asdict(component)
    config = getattr(component, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        arguments = dataclasses.asdict(config)
    else:
        try:
            names = list(inspect.signature(type(component)).parameters)
        except ValueError:  # a class that Python knows no signature of
            return None
        if not all(hasattr(component, name) for name in names):
            return None
        arguments = {name: describe(getattr(component, name)) for name in names}
    kind = type(component)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def instantiate(kind: Any, description: Any) -> Any:
    """Build a component from what `describe` returned or a configuration states; any other value is returned as it is.

    Args:
        kind: Base class of the component, or a dataclass of settings. A class path that names no subclass is refused,
            so a checkpoint cannot call arbitrary code.
        description: ``{"class_path": ..., "init_args": ...}``, the fields of the dataclass, or a component.

    Raises:
        ValueError: The description does not fit ``kind``.
    """
    if not isinstance(description, Mapping):
        return description
    if dataclasses.is_dataclass(kind):
        return kind(**description)  # type: ignore[operator]
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "component")
    return parser.instantiate(parser.parse_object({"component": dict(description)})).component
