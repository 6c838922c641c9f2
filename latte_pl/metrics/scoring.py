"""From features to scores: the value of a metric with its confidence interval."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latte_pl.metrics.frechet import Array, Moments
from latte_pl.metrics.protocol import METRICS, EvaluationProtocol

Labels = Sequence[int] | None
"""Class of each clip; None if there are no classes."""


class Interval(NamedTuple):
    """A confidence interval of a score.

    It is for the value at these numbers of clips: where the value would lie if other clips were drawn. It is not for
    the distance between the distributions, which a Fréchet distance of few clips exceeds by far.
    """

    low: float
    """Lower end; at least the smallest value of the metric, such as 0 for a Fréchet distance."""
    high: float
    """Upper end."""
    method: str
    """How it was computed, such as "8-fold jackknife"."""
    level: float
    """Coverage, such as 0.95."""


class Score(NamedTuple):
    """The value of a metric with what is needed to judge it."""

    value: float
    """The value."""
    label: str
    """Either "full", or "smoke" unless each side has more distinct rows than features. Without them the covariances are
    rank-deficient and the value is far too large: it only shows that the code runs."""
    interval: Interval | None = None
    """Confidence interval; None if the protocol asks for none or there are too few clips."""


def score(
    metric: str,
    real: np.ndarray | Moments | None,
    generated: np.ndarray,
    folds: int = 0,
    real_labels: Labels = None,
    generated_labels: Labels = None,
) -> Score:
    """Compute a metric from features.

    Args:
        metric: A name in ``METRICS``.
        real: Features (N, k, D) of real clips with k rows a clip, or (N, D); ``Moments`` where the metric accepts them;
            None for metrics of generated clips alone.
        generated: Features of the generated clips, in the order of their indices.
        folds: Number of folds of the jackknife interval; 0 computes none. There is no interval either if a side has
            fewer than two distinct clips a fold.
        real_labels: Class of each real clip, so that every fold has the same classes.
        generated_labels: The same for the generated clips.

    Raises:
        ValueError: The metric compares with real clips and there are none, or the features do not fit the metric.
    """
    entry = METRICS[metric]
    sides = [generated.astype(np.float64)]
    labels = [generated_labels]
    num_rows = [_num_distinct(generated.reshape(-1, generated.shape[-1]))]
    given: tuple[Moments, ...] = ()
    if entry.needs_real:
        if real is None:
            raise ValueError(f"{metric} compares with real clips, but there are none; set the protocol's num_real")
        if isinstance(real, Moments):
            given = (real,)
            num_rows.append(real.num_rows)
        else:
            sides.insert(0, real.astype(np.float64))
            labels.insert(0, real_labels)
            num_rows.append(_num_distinct(real.reshape(-1, real.shape[-1])))

    def value(*sides: Array) -> float:
        return entry.compute(*given, *(x.reshape(-1, x.shape[-1]) for x in sides))  # (N k, D) each

    label = "full" if min(num_rows) > generated.shape[-1] else "smoke"
    interval = None
    if folds and not given and min(_num_distinct(x) for x in sides) >= 2 * folds:
        interval = jackknife(value, *sides, folds=folds, labels=labels, minimum=entry.minimum)
    return Score(value(*sides), label, interval)


def scores(
    protocol: EvaluationProtocol,
    real: np.ndarray | Moments | None,
    generated: np.ndarray,
    real_labels: Labels = None,
    generated_labels: Labels = None,
) -> dict[str, Score]:
    """Compute all metrics of a protocol from features (N, k, D); see ``score``."""
    labels = {"real_labels": real_labels, "generated_labels": generated_labels}
    return {metric: score(metric, real, generated, protocol.folds, **labels) for metric in protocol.metrics}


def jackknife(
    statistic: Callable[..., float],
    *samples: Array,
    folds: int = 10,
    level: float = 0.95,
    labels: Sequence[Labels] | None = None,
    minimum: float | None = None,
) -> Interval:
    """Compute a confidence interval by the delete-a-group jackknife with Student's t.

    Each fold is left out once, of all samples at the same time. The statistic on single folds would be far too large,
    because Fréchet distances grow when there are few samples; with one fold left out the bias is nearly that of all
    samples.

    Args:
        statistic: Function of as many arrays as there are samples.
        samples: Arrays (N, ...) with one row a clip, so that all features of a clip stay in one fold.
        folds: Number of folds.
        level: Coverage.
        labels: Class of each row of each sample; see ``fold_of``.
        minimum: Smallest possible value of the statistic, below which the interval does not reach.

    Raises:
        ValueError: A sample has fewer than two distinct rows a fold.
    """
    import scipy.stats

    sizes = [_num_distinct(x) for x in samples]
    if folds < 2 or min(sizes) < 2 * folds:
        raise ValueError(
            f"folds={folds}: at least 2 folds and {2 * folds} distinct clips a side are needed, found {sizes}"
        )
    classes = labels or [None] * len(samples)
    parts = [fold_of(x, folds, c, number) for number, (x, c) in enumerate(zip(samples, classes))]
    value = statistic(*samples)
    partial = np.array([statistic(*(x[part != k] for x, part in zip(samples, parts))) for k in range(folds)])
    error = np.sqrt((folds - 1) / folds * ((partial - partial.mean()) ** 2).sum())
    reach = float(error * scipy.stats.t.ppf((1 + level) / 2, folds - 1))
    low = value - reach if minimum is None else max(value - reach, minimum)
    return Interval(low, value + reach, f"{folds}-fold jackknife", level)


def fold_of(rows: np.ndarray, folds: int, labels: Labels = None, sample: int = 0) -> NDArray[np.int64]:
    """Return the fold of each clip: a seeded permutation, stratified by class, so that all folds have the same classes.

    Equal clips are in the same fold, so that a clip that is left out is not among those that remain.

    Args:
        rows: One row a clip (N, ...); only their equality matters.
        folds: Number of folds.
        labels: Class of each clip; None if there are no classes.
        sample: Number of the sample, because each has a permutation of its own.

    Returns:
        Folds (N,), from 0 to ``folds`` - 1.
    """
    from latte_pl.rng import numpy_generator  # which imports PyTorch

    _, first, group = np.unique(_keys(rows), return_index=True, return_inverse=True)
    distinct = np.sort(first)  # the first of equal clips each
    order = numpy_generator(0, "folds", sample).permutation(len(distinct))
    classes = np.zeros(len(distinct), np.int64) if labels is None else np.asarray(labels)[distinct]
    order = order[np.argsort(classes[order], kind="stable")]  # by class, shuffled within a class
    parts = np.empty(len(rows), np.int64)
    parts[distinct[order]] = np.arange(len(distinct)) % folds
    return parts[first[group]]


def _num_distinct(rows: np.ndarray) -> int:
    return len(np.unique(_keys(rows)))


def _keys(rows: np.ndarray) -> np.ndarray:
    """Return one comparable item (N,) for each row, equal where the rows are equal."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
    return flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
