"""Distances between two sets of features: Fréchet, kernel (MMD) and inception score, with intervals; float64 NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from latte_pl.streams import numpy_stream

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-13  # an eigenvalue below this share of the largest is rounding noise of a float64 covariance


class Interval(NamedTuple):
    """A confidence interval of a score, and how it was found."""

    low: float
    high: float
    method: str
    level: float


class Score(NamedTuple):
    """A value with what is needed to judge it.

    ``label`` is "smoke" when either side has fewer rows than features: the covariances are then rank-deficient, the
    value is far too large, and only good to see that the code runs. Otherwise it is "full".
    """

    value: float
    label: str
    interval: Interval | None = None


def label_of(num_real: int, num_fake: int, num_features: int) -> str:
    """Return "smoke" when either side has fewer rows than features, else "full"."""
    return "smoke" if min(num_real, num_fake) < num_features else "full"


def moments(features: ArrayLike, ddof: int = 1) -> tuple[Array, Array]:
    """Return mean (D,) and covariance (D, D) of features (N, D), divided by N - ddof."""
    rows = _rows(features, ddof)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - ddof)


def frechet_distance(
    mean1: ArrayLike,
    cov1: ArrayLike,
    mean2: ArrayLike,
    cov2: ArrayLike,
    num_rows: tuple[int, int] | None = None,
) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians (Dowson and Landau 1982).

    With S1 = L L^T, the eigenvalues of S1 S2 are those of L^T S2 L, which is symmetric: no matrix square root, no
    complex numbers. L is the Cholesky factor, or the scaled eigenvectors when S1 is rank-deficient.

    Args:
        mean1, cov1, mean2, cov2: (D,) and (D, D).
        num_rows: rows behind each covariance. They bound its rank, so that eigenvalues which are zero but for
            rounding (and whose roots are not small) are dropped exactly; None if unknown.

    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(x, np.float64) for x in (mean1, cov1, mean2, cov2))
    size = len(mean1)
    if mean2.shape != (size,) or cov1.shape != (size, size) or cov2.shape != (size, size):
        raise ValueError(f"moments of {mean1.shape}, {cov1.shape} and {mean2.shape}, {cov2.shape} can't be compared")
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        raise ValueError("moments hold NaN or infinity; look for it in the clips or the extractor")
    rank1, rank2 = (min(n - 1, size) for n in num_rows) if num_rows else (size, size)
    factor = _factor(cov1, rank1)  # (D, rank)
    values = scipy.linalg.eigvalsh(factor.T @ cov2 @ factor)  # ascending
    root = np.sqrt(_significant(values, min(rank1, rank2))).sum()
    return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root)


def frechet_from_features(real: ArrayLike, fake: ArrayLike, ddof: int = 1) -> float:
    """Return the Fréchet distance of features (N, D) and (M, D).

    With fewer rows than features it works on the centred features A / sqrt(N - ddof) themselves: the trace of
    (S1 S2)^(1/2) is the sum of the singular values of A1 A2^T, exact however deficient the rank is.

    Args:
        real, fake: (N, D) and (M, D).
        ddof: 1 divides by N - 1 (clean-fid), 0 by N (StyleGAN-V's FVD).

    Raises:
        ValueError: fewer than two rows, other shapes, or a value is not finite.
    """
    first, second = _rows(real, ddof), _rows(fake, ddof)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{first.shape[1]} and {second.shape[1]} features can't be compared; use one extractor")
    if min(len(first), len(second)) > first.shape[1]:
        return frechet_distance(*moments(first, ddof), *moments(second, ddof), (len(first), len(second)))
    means = first.mean(axis=0), second.mean(axis=0)
    factors = [(x - m) / np.sqrt(len(x) - ddof) for x, m in zip((first, second), means)]
    # R of a QR decomposition stands in for a tall factor: A^T A = R^T R
    small = [scipy.linalg.qr(a, mode="r")[0][: a.shape[1]] if len(a) > a.shape[1] else a for a in factors]
    root = scipy.linalg.svdvals(small[0] @ small[1].T).sum()
    trace = sum((a * a).sum() for a in factors)
    return float(((means[0] - means[1]) ** 2).sum() + trace - 2 * root)


def kernel_distance(real: ArrayLike, fake: ArrayLike, block: int = 4096) -> float:
    """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3 (KID, arXiv 1801.01401), over all pairs.

    It uses every row once, so there is no random choice of subsets, and may be slightly negative.

    Args:
        real, fake: (N, D) and (M, D).
        block: rows of the Gram matrix held at a time.

    Raises:
        ValueError: fewer than two rows, other shapes, or a value is not finite.
    """
    first, second = _rows(real, 1), _rows(fake, 1)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{first.shape[1]} and {second.shape[1]} features can't be compared; use one extractor")

    def total(x: Array, y: Array) -> float:
        return sum(float((((x[i : i + block] @ y.T) / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), block))

    def within(x: Array) -> float:
        diagonal = float((((x * x).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return within(first) + within(second) - 2 * total(first, second) / (len(first) * len(second))


def inception_score(probabilities: ArrayLike, splits: int = 10) -> float:
    """Return the mean over splits of exp(E KL(p(y|x) || p(y))) (arXiv 1606.03498, equation 1).

    Rows are dealt to splits by ``split_of``, as the code behind the paper's values does.

    Args:
        probabilities: (N, K), in the order of the samples' numbers.
        splits: number of equal parts.

    Raises:
        ValueError: fewer rows than splits, or rows that are not probabilities.
    """
    rows = np.asarray(probabilities, np.float64)
    check_probabilities(rows)
    parts = split_of(len(rows), splits)
    scores = []
    for part in range(splits):
        p = rows[parts == part]
        scores.append(np.exp(_xlogx(p).sum() / len(p) - _xlogx(p.mean(axis=0)).sum()))
    return float(np.mean(scores))


def split_of(num_samples: int, splits: int) -> NDArray[np.int64]:
    """Return the split (num_samples,) that each sample number belongs to: shuffled with the fixed seed 42, then cut.

    Raises:
        ValueError: there are fewer samples than splits.
    """
    if not 1 <= splits <= num_samples:
        raise ValueError(f"{num_samples} samples can't be cut into {splits} splits; use more samples or fewer splits")
    order = np.random.RandomState(42).permutation(num_samples)
    bounds = np.arange(1, splits) * num_samples // splits
    parts = np.empty(num_samples, np.int64)
    parts[order] = np.searchsorted(bounds, np.arange(num_samples), side="right")
    return parts


def check_probabilities(rows: Array) -> None:
    """Refuse rows (N, K) that are not probabilities: an extractor that returns logits would give a senseless score."""
    if rows.ndim != 2 or (rows < -1e-6).any() or not np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
        raise ValueError("the inception score needs class probabilities (N, K); this extractor returns something else")


def jackknife(statistic: Callable[..., float], *samples: Array, folds: int = 10, level: float = 0.95) -> Interval:
    """Return a K-fold interval: each fold is left out once of every sample (delete-a-group jackknife, Student's t).

    The estimate on K separate folds would be far too large, because Fréchet distances grow when samples get few; with
    one fold left out the bias is nearly that of the whole. Fold of row n is n modulo K, nothing is drawn.

    Args:
        statistic: function of as many arrays as there are samples.
        samples: each (N, ...), rows are clips.
        folds: K.
        level: coverage.

    Raises:
        ValueError: a sample has fewer rows than twice the folds.
    """
    if folds < 2 or min(len(x) for x in samples) < 2 * folds:
        sizes = [len(x) for x in samples]
        raise ValueError(f"{folds} folds need at least {2 * folds} clips a side (and 2 folds), not {sizes}")
    value = statistic(*samples)
    partial = np.array([statistic(*(x[np.arange(len(x)) % folds != k] for x in samples)) for k in range(folds)])
    error = np.sqrt((folds - 1) / folds * ((partial - partial.mean()) ** 2).sum())
    reach = float(error * scipy.stats.t.ppf((1 + level) / 2, folds - 1))
    return Interval(value - reach, value + reach, f"{folds}-fold jackknife", level)


def bootstrap(
    statistic: Callable[..., float], *samples: Array, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return a normal interval around the value with the bootstrap's standard error (Efron and Tibshirani, chapter 13).

    Percentiles would not do: resamples repeat rows, which raises a Fréchet distance beyond the value itself.

    Args:
        statistic: function of as many arrays as there are samples.
        samples: each (N, ...), rows are clips.
        resamples: number of draws with replacement.
        seed: names the draws.
        level: coverage.
    """
    value = statistic(*samples)
    draws = []
    for n in range(resamples):
        rng = numpy_stream(seed, "bootstrap", n)
        draws.append(statistic(*(x[rng.integers(len(x), size=len(x))] for x in samples)))
    reach = float(np.std(draws, ddof=1) * scipy.stats.norm.ppf((1 + level) / 2))
    return Interval(value - reach, value + reach, f"bootstrap of {resamples}", level)


def _rows(features: ArrayLike, ddof: int) -> Array:
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) <= ddof or len(rows) < 2:
        raise ValueError(f"features have shape {rows.shape}; two or more rows (N, D) are needed")
    if not np.isfinite(rows).all():
        raise ValueError("features hold NaN or infinity; look for it in the clips or the extractor")
    return rows


def _factor(cov: Array, rank: int) -> Array:
    """Return L (D, r) with L L^T = cov, r at most ``rank``."""
    if rank == len(cov):
        try:
            lower = scipy.linalg.cholesky(cov, lower=True)
        except scipy.linalg.LinAlgError:
            pass  # singular: take eigenvectors
        else:
            pivots = np.diagonal(lower)
            if pivots.min() > 1e-5 * pivots.max():  # smaller pivots are noise
                return lower
    values, vectors = scipy.linalg.eigh(cov)
    kept = _significant(values, rank)
    return vectors[:, len(values) - len(kept) :] * np.sqrt(kept)


def _significant(values: Array, rank: int) -> Array:
    """Return the largest ``rank`` of ascending eigenvalues, without those that are rounding noise."""
    values = values[max(len(values) - rank, 0) :]
    return values[values > RANK_TOLERANCE * max(values.max(initial=0), 0)]


def _xlogx(p: Array) -> Array:
    return np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0)
