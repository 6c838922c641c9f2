"""Kernel distance (squared MMD) between two sets of features, in float64 NumPy."""

from numpy.typing import ArrayLike

from latte_pl.metrics.frechet import Array, check_same_width, feature_rows


def kernel_distance(real: ArrayLike, generated: ArrayLike, block: int = 4096) -> float:
    """Compute the unbiased squared MMD with the kernel (x.y / D + 1)^3 of KID (Bińkowski et al., arXiv 1801.01401).

    All pairs of rows are used instead of random subsets, so the value is deterministic. It can be slightly negative.

    Args:
        real: Features (N, D) of real clips.
        generated: Features (M, D) of generated clips.
        block: Rows of the Gram matrix held in memory at a time.

    Raises:
        ValueError: There are fewer than two rows, the shapes differ, or a value is not finite.
    """
    first, second = feature_rows(real), feature_rows(generated)
    check_same_width(first, second)

    def total(x: Array, y: Array) -> float:
        return sum(float((((x[i : i + block] @ y.T) / x.shape[1] + 1) ** 3).sum()) for i in range(0, len(x), block))

    def within(x: Array) -> float:
        diagonal = float((((x * x).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return within(first) + within(second) - 2 * total(first, second) / (len(first) * len(second))
