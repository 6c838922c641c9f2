"""Fréchet distance between two sets of features, in float64 NumPy."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-13  # an eigenvalue below this share of the largest is rounding noise of a float64 covariance


class Moments(NamedTuple):
    """Sums over rows of features, where there are too many rows to store them."""

    num_rows: int
    """Number of rows N."""
    total: Array
    """Sum (D,) of the rows."""
    outer: Array
    """Sum (D, D) of the outer products of the rows with themselves."""

    def mean_and_covariance(self, ddof: int = 1) -> tuple[Array, Array]:
        """Return mean (D,) and covariance (D, D); the covariance is divided by N - ddof."""
        mean = self.total / self.num_rows
        return mean, (self.outer - self.num_rows * np.outer(mean, mean)) / (self.num_rows - ddof)


def moments(features: ArrayLike, ddof: int = 1) -> tuple[Array, Array]:
    """Compute mean (D,) and covariance (D, D) of features (N, D); the covariance is divided by N - ddof."""
    rows = feature_rows(features, ddof)
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
    """Compute |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians (Dowson and Landau 1982).

    With S1 = L L^T, the eigenvalues of S1 S2 are those of L^T S2 L, which is symmetric. So neither a matrix square root
    nor complex numbers are needed. L is the Cholesky factor, or the scaled eigenvectors if S1 is rank-deficient.

    Args:
        mean1: Mean (D,) of the first Gaussian.
        cov1: Covariance (D, D) of the first Gaussian.
        mean2: Mean (D,) of the second Gaussian.
        cov2: Covariance (D, D) of the second Gaussian.
        num_rows: Number of rows behind each covariance, or None if unknown. A covariance of N rows has at most rank
            N - 1, so all smaller eigenvalues are rounding noise and are dropped.

    Returns:
        The squared Fréchet distance, which is what FID and FVD report; never negative.

    Raises:
        ValueError: The shapes differ, or a value is not finite.
    """
    import scipy.linalg

    mean1, cov1, mean2, cov2 = (np.asarray(x, np.float64) for x in (mean1, cov1, mean2, cov2))
    size = len(mean1)
    if mean2.shape != (size,) or cov1.shape != (size, size) or cov2.shape != (size, size):
        raise ValueError(
            "the two Gaussians must have means (D,) and covariances (D, D) of the same D, "
            f"found {mean1.shape}, {cov1.shape} and {mean2.shape}, {cov2.shape}"
        )
    if not all(np.isfinite(x).all() for x in (mean1, cov1, mean2, cov2)):
        raise ValueError("the moments contain NaN or infinity; check the clips and the extractor")
    rank1, rank2 = (min(n - 1, size) for n in num_rows) if num_rows else (size, size)
    factor = _factor(cov1, rank1)  # (D, rank)
    values = scipy.linalg.eigvalsh(factor.T @ cov2 @ factor)  # ascending
    root = np.sqrt(_significant(values, min(rank1, rank2))).sum()
    return max(float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * root), 0.0)


def frechet_from_features(real: ArrayLike | Moments, generated: ArrayLike, ddof: int = 1) -> float:
    """Compute the Fréchet distance between two sets of features.

    If a set has no more rows than features, the covariances are not formed. With the centred features
    A = (X - mean) / sqrt(N - ddof), the trace of (S1 S2)^(1/2) is the sum of the singular values of A1 A2^T, which is
    exact for any rank.

    Args:
        real: Features (N, D) of real clips, or their moments.
        generated: Features (M, D) of generated clips.
        ddof: 1 divides the covariances by N - 1 (clean-fid), 0 by N (StyleGAN-V's FVD).

    Returns:
        The squared Fréchet distance, never negative.

    Raises:
        ValueError: There are fewer than two rows, the shapes differ, or a value is not finite.
    """
    import scipy.linalg

    if isinstance(real, Moments):
        num_rows = (real.num_rows, len(feature_rows(generated, ddof)))
        return frechet_distance(*real.mean_and_covariance(ddof), *moments(generated, ddof), num_rows)
    first, second = feature_rows(real, ddof), feature_rows(generated, ddof)
    check_same_width(first, second)
    if min(len(first), len(second)) > first.shape[1]:
        return frechet_distance(*moments(first, ddof), *moments(second, ddof), (len(first), len(second)))
    means = first.mean(axis=0), second.mean(axis=0)
    factors = [(x - m) / np.sqrt(len(x) - ddof) for x, m in zip((first, second), means)]
    # A^T A = R^T R, so the small R of a QR decomposition replaces a tall A
    small = [scipy.linalg.qr(a, mode="r")[0][: a.shape[1]] if len(a) > a.shape[1] else a for a in factors]
    root = scipy.linalg.svdvals(small[0] @ small[1].T).sum()
    trace = sum((a * a).sum() for a in factors)
    return max(float(((means[0] - means[1]) ** 2).sum() + trace - 2 * root), 0.0)


def feature_rows(features: ArrayLike, ddof: int = 1) -> Array:
    """Return features (N, D) as float64.

    Raises:
        ValueError: There are fewer than two rows, or a value is not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) <= ddof or len(rows) < 2:
        raise ValueError(f"features must have shape (N, D) with N of at least 2, found {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("the features contain NaN or infinity; check the clips and the extractor")
    return rows


def check_same_width(first: Array, second: Array) -> None:
    """Raise ValueError unless both sets of features (N, D) and (M, D) have the same D."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the two sets have {first.shape[1]} and {second.shape[1]} features a row; use the same extractor for both"
        )


def _factor(cov: Array, rank: int) -> Array:
    """Return L (D, r) with L L^T = cov, where r is at most ``rank``."""
    import scipy.linalg

    if rank == len(cov):
        try:
            lower = scipy.linalg.cholesky(cov, lower=True)
        except scipy.linalg.LinAlgError:
            pass  # singular: use the eigenvectors
        else:
            pivots = np.diagonal(lower)
            if pivots.min() > 1e-5 * pivots.max():  # smaller pivots are rounding noise
                return lower
    values, vectors = scipy.linalg.eigh(cov)
    kept = _significant(values, rank)
    return vectors[:, len(values) - len(kept) :] * np.sqrt(kept)


def _significant(values: Array, rank: int) -> Array:
    """Return the largest ``rank`` of ascending eigenvalues, without those that are rounding noise."""
    values = values[max(len(values) - rank, 0) :]
    return values[values > RANK_TOLERANCE * max(values.max(initial=0), 0)]
