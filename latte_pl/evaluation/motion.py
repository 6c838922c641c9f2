"""Motion accuracy: the share of samples that move as labelled."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def motion_accuracy(observed: Sequence[int], labels: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """Return the share of samples that move as labelled, in total and by class.

    Args:
        observed: The motion that each of N samples shows, as a class; -1 for none.
        labels: The class of each sample.
        names: Names of the classes.

    Returns:
        ``value``, the share in [0, 1]; ``chance``, the share of a model that ignores the labels; ``clips``, N; and
        ``by_class``, the share by class name, for the classes among the labels.
    """
    wanted = np.asarray(labels)
    right = np.asarray(observed) == wanted
    return {
        "value": float(right.mean()),
        "chance": 1.0 / len(names),
        "clips": len(wanted),
        "by_class": {names[label]: float(right[wanted == label].mean()) for label in np.unique(wanted).tolist()},
    }


def described(accuracy: dict[str, Any]) -> str:
    """Return the result of `motion_accuracy` as one line."""
    right = round(accuracy["value"] * accuracy["clips"])
    return f"{right} of {accuracy['clips']} move as labelled ({accuracy['value']:.0%}; chance {accuracy['chance']:.1%})"
