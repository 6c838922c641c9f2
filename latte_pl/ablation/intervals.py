"""Statistics over seeds: confidence intervals, paired tests, corrections for many tests, and detectable differences."""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
"""Coverage of intervals. Tests are two-sided with the error rate 1 - LEVEL."""
POWER = 0.8
"""Probability with which a detectable difference is found."""


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % confidence interval.

    Attributes:
        mean: Mean of ``n`` values.
        half: Half width of the interval (Student's t); None for fewer than two values.
        n: Number of values.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; minus infinity if there is none."""
        return -math.inf if self.half is None else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end of the interval; infinity if there is none."""
        return math.inf if self.half is None else self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values with its confidence interval; None for no values."""
    from scipy.stats import ttest_1samp

    if not values:
        return None
    return Estimate(float(np.mean(values)), _half(ttest_1samp, values, 0.0) if len(values) > 1 else None, len(values))


def paired(row: dict[int, float], baseline: dict[int, float]) -> Estimate | None:
    """Return the mean difference row - baseline over the seeds that both have (paired t-test).

    Args:
        row: Values of the row by seed.
        baseline: Values of the baseline by seed.
    """
    return estimate(differences(row, baseline, sorted(row.keys() & baseline.keys())))


def unpaired(row: Sequence[float], baseline: Sequence[float]) -> Estimate | None:
    """Return the difference of the means as if the two shared no seeds (Welch's t-test)."""
    from scipy.stats import ttest_ind

    if not row or not baseline:
        return None
    n = min(len(row), len(baseline))
    half = _half(ttest_ind, row, baseline, equal_var=False) if n > 1 else None
    return Estimate(float(np.mean(row) - np.mean(baseline)), half, n)


def _half(test: Any, *samples: Any, **options: Any) -> float:
    """Return half the width of the confidence interval of one of scipy's t-tests."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values have no p-value, but an interval of width 0
        interval = test(*samples, **options).confidence_interval(LEVEL)
    half = float(interval.high - interval.low) / 2.0
    return 0.0 if math.isnan(half) else half


def differences(row: dict[int, float], other: dict[int, float], seeds: Sequence[int]) -> list[float]:
    """Return the differences row - other of the seeds."""
    return [row[seed] - other[seed] for seed in seeds]


def p_value(values: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided t-test that the mean of values is 0; None for fewer than two values.

    Of paired differences, this is the paired t-test.
    """
    from scipy.stats import ttest_1samp

    if len(values) < 2:
        return None
    if np.ptp(values) == 0.0:  # the test is undefined: the spread is 0
        return 1.0 if values[0] == 0.0 else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nearly equal values, whose p-value is nearly 0
        return float(ttest_1samp(values, 0.0).pvalue)


def detectable(values: Sequence[float]) -> float | None:
    """Return the smallest mean that the t-test of so many values with their spread would find with probability `POWER`.

    Args:
        values: Paired differences by seed.

    Returns:
        The absolute mean; None for fewer than two values.
    """
    return None if len(values) < 2 else detectable_by_spread(float(np.std(values, ddof=1)), len(values))


def detectable_by_spread(spread: float, count: int) -> float:
    """Return the smallest mean that the t-test of so many values would find with probability `POWER`.

    Args:
        spread: Standard deviation of the values.
        count: Number of values, 2 or more.
    """
    return _noncentrality(count) * spread / math.sqrt(count)


@functools.cache
def _noncentrality(n: int) -> float:
    """Return the mean over its standard error at which a two-sided t-test of n values rejects with `POWER`."""
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm, t

    # the mean over the distribution of the standard deviation; scipy's noncentral t has no finite values for n = 2
    shares = (np.arange(4096) + 0.5) / 4096
    threshold = t.ppf((1.0 + LEVEL) / 2.0, n - 1) * np.sqrt(chi2.ppf(shares, n - 1) / (n - 1))

    def power(shift: float) -> float:
        return float(np.mean(norm.cdf(shift - threshold) + norm.cdf(-shift - threshold)))

    return brentq(lambda shift: power(shift) - POWER, 0.1, 200.0)


class Narrowing(NamedTuple):
    """By how much a difference shrinks.

    Attributes:
        values: Values by seed whose mean is the absolute early mean difference minus the absolute late one.
        p: p-value of the hypothesis that both are equal; None for fewer than two seeds.
    """

    values: list[float]
    p: float | None


def narrowing(early: Sequence[float], late: Sequence[float]) -> Narrowing:
    """Test whether the mean of paired differences is closer to 0 at a late point than at an early one.

    Absolute values of single seeds would be biased: where the seeds differ more at the early point, their mean absolute
    difference is larger there, although the mean difference is 0 at both. So signed differences are tested. For means E
    and L, |E| > |L| holds exactly if E - L and E + L have the same sign. Both are tested to differ from 0; the larger
    p-value is that of |E| = |L| (an intersection-union test, whose error rate is at most that of each part).

    Args:
        early: Differences by seed at the early point.
        late: Differences at the late point, of the same seeds.
    """
    sign = 1.0 if np.mean(early) >= 0.0 else -1.0
    parts = [[sign * (e + other * x) for e, x in zip(early, late)] for other in (-1.0, 1.0)]
    p_values = [p_value(part) for part in parts]
    # |E| - |L| is the smaller one of |E| - L and |E| + L
    return Narrowing(min(parts, key=np.mean), None if None in p_values else max(p_values))  # type: ignore[type-var]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for many tests by Holm's method, in the order of the arguments.

    If all hypotheses with a corrected p-value below a level are rejected, the probability of any wrong rejection is at
    most this level, however the tests depend on each other.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
