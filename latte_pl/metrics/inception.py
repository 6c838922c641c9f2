"""Inception score of class probabilities, in float64 NumPy."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latte_pl.metrics.frechet import Array


def inception_score(probabilities: ArrayLike, splits: int = 10) -> float:
    """Compute the mean over splits of exp(E KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498, equation 1).

    The rows are assigned to splits by ``split_of``, as in StyleGAN-V's code.

    Args:
        probabilities: Class probabilities (N, K), in the order of the sample indices.
        splits: Number of equal parts.

    Raises:
        ValueError: There are fewer rows than splits, or the rows are not probabilities.
    """
    rows = np.asarray(probabilities, np.float64)
    _check_probabilities(rows)
    parts = split_of(len(rows), splits)
    scores = []
    for part in range(splits):
        p = rows[parts == part]
        scores.append(np.exp(_xlogx(p).sum() / len(p) - _xlogx(p.mean(axis=0)).sum()))
    return float(np.mean(scores))


def split_of(num_samples: int, splits: int) -> NDArray[np.int64]:
    """Return the split (num_samples,) of each sample index: shuffled with the fixed seed 42, then cut into equal parts.

    Raises:
        ValueError: There are fewer samples than splits.
    """
    if not 1 <= splits <= num_samples:
        raise ValueError(f"{num_samples} samples cannot be divided into {splits} splits; use more samples")
    order = np.random.RandomState(42).permutation(num_samples)
    bounds = np.arange(1, splits) * num_samples // splits
    parts = np.empty(num_samples, np.int64)
    parts[order] = np.searchsorted(bounds, np.arange(num_samples), side="right")
    return parts


def _check_probabilities(rows: Array) -> None:
    """Raise ValueError unless the rows (N, K) are probabilities: a score of logits would be meaningless."""
    if rows.ndim != 2 or (rows < -1e-6).any() or not np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
        raise ValueError(
            "the inception score needs class probabilities (N, K) whose rows add up to 1; "
            "use an extractor that ends in a softmax"
        )


def _xlogx(p: Array) -> Array:
    return np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0)
