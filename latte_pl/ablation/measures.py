"""What is measured on a trained row: held-out loss, video distance and motion accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One measure of the tables.

    Attributes:
        name: Name in tables and on pages.
        key: Name in study files and columns of data frames.
        short: Name in narrow columns.
        higher_is_better: Whether larger values are better.
        value: Function of a result that returns its value at the end of training; None if it was not measured.
        curve: Tag of its curve, measured during training.
        unit: What a value is divided by before it is shown.
        suffix: Unit of shown values.
        suffix_of_difference: Unit of shown differences.
        digits: Shown decimal places.
    """

    name: str
    key: str
    short: str
    higher_is_better: bool
    value: Callable[[Result], float | None]
    curve: str
    unit: float = 1.0
    suffix: str = ""
    suffix_of_difference: str = ""
    digits: int = 4

    def at(self, step: int) -> Callable[[Result], float | None]:
        """Return a function of a result: the value of the curve at a step; None if it was not measured there.

        Args:
            step: Number of optimizer steps.
        """
        return lambda result: value_at(result["curves"].get(self.curve, ()), step)

    def measured(self, results: Sequence[Result]) -> bool:
        """Return whether any of the results has the measure."""
        return any(self.value(result) is not None for result in results)

    def shown(self, value: float, half: float | None = None) -> str:
        """Return a value as text, with the half width of its interval."""
        return self._text(f"{value / self.unit:.{self.digits}f}", half) + self.suffix

    def shown_difference(self, value: float, half: float | None = None) -> str:
        """Return a difference as text, with its sign and the half width of its interval."""
        return self._text(f"{value / self.unit:+.{self.digits}f}", half) + self.suffix_of_difference

    def _text(self, value: str, half: float | None) -> str:
        return value if half is None else f"{value} ± {half / self.unit:.{self.digits}f}"


def _distance(result: Result) -> float | None:
    return result["distance"] and result["distance"]["value"]


def _motion(result: Result) -> float | None:
    return (result.get("motion") or {}).get("value")


def _loss(result: Result) -> float:
    return result["held_out"]["loss"]


LOSS = Measure("held-out loss", "held_out_loss", "loss", False, _loss, "val/loss")
DISTANCE = Measure("video distance", "video_distance", "distance", False, _distance, "val/toy_video_distance", digits=1)
MOTION = Measure(
    *("motion accuracy", "motion_accuracy", "motion", True, _motion, "val/motion_accuracy"),
    unit=0.01,
    suffix=" %",
    suffix_of_difference=" points",
    digits=1,
)
MEASURES = {measure.key: measure for measure in (LOSS, DISTANCE, MOTION)}
"""The measures by their name in study files, in the order of the tables."""


def step_at(share: float, steps: int) -> int:
    """Return the optimizer step after a share of a training: the nearest whole number, at least 1."""
    return max(1, round(share * steps))


def flops_share(flops: float, cheapest: float) -> float:
    """Return the share of a row's training that costs as much as the training of the cheapest row.

    Args:
        flops: FLOPs of the row's training.
        cheapest: FLOPs of the cheapest row's training.

    Returns:
        The share; 1 if they differ by less than 1 %.
    """
    return 1.0 if flops <= 1.01 * cheapest else cheapest / flops


def value_at(curve: Sequence[Sequence[float]], step: int) -> float | None:
    """Return the value of a curve of points (step, value) at a step; None if it has no point there."""
    return next((value for point, value in curve if point == step), None)
