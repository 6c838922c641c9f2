"""Error bars over seeds: means, paired differences, and what they say about a claim. Lower is better throughout."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from latte_pl.ablation.study import Side

LEVEL = 0.95
Verdict = Literal["agrees", "disagrees", "undecided", "not measured"]


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval.

    Attributes:
        mean: Of ``n`` values.
        half: Half width of the interval by Student's t; None with fewer than two values.
        n: Number of values.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end; minus infinity where there is no interval."""
        return -math.inf if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end; infinity where there is no interval."""
        return math.inf if self.half is None else self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values with its interval; None of no values."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, float(np.std(values, ddof=1) / math.sqrt(n) * _quantile(n - 1)), n)


def paired(row: dict[int, float], baseline: dict[int, float]) -> Estimate | None:
    """Return the difference row - baseline over the seeds that both have: one difference a seed."""
    return estimate([row[seed] - baseline[seed] for seed in sorted(row.keys() & baseline.keys())])


def unpaired(row: Sequence[float], baseline: Sequence[float]) -> Estimate | None:
    """Return the difference of the means as if no run shared its seed with another (Welch)."""
    if not row or not baseline:
        return None
    difference = float(np.mean(row) - np.mean(baseline))
    if min(len(row), len(baseline)) < 2:
        return Estimate(difference, None, 1)
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (row, baseline)]
    total = sum(parts)
    if total == 0.0:
        return Estimate(difference, 0.0, len(row))
    freedom = total**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (row, baseline)))
    return Estimate(difference, math.sqrt(total) * _quantile(freedom), min(len(row), len(baseline)))


def verdict(difference: Estimate | None, side: Side) -> Verdict:
    """Return what an interval says about a claim.

    Args:
        difference: Row minus baseline of a measure where lower is better; for "narrows" the absolute difference early
            minus the one at the end.
        side: The claim's. "agrees" when the interval excludes zero on this side, "disagrees" when on the other.
    """
    if difference is None:
        return "not measured"
    sign = 1.0 if side in ("worse", "narrows") else -1.0
    low, high = sorted((sign * difference.low, sign * difference.high))
    return "agrees" if low > 0.0 else "disagrees" if high < 0.0 else "undecided"


def read_at(curve: Sequence[Sequence[float]], step: float) -> float:
    """Return a curve's value at a step, linear between its points.

    Raises:
        ValueError: The step lies outside of the curve.
    """
    steps, values = zip(*curve)
    if not steps[0] <= step <= steps[-1]:
        raise ValueError(f"step {step:g} lies outside of a curve from {steps[0]} to {steps[-1]}")
    return float(np.interp(step, steps, values))


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
