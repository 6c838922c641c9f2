import numpy as np
import pytest

from latte_pl.metrics.inception import inception_score, split_of


def test_known_values():
    assert inception_score(np.full((20, 5), 0.2), splits=2) == pytest.approx(1)  # uniform probabilities
    rows = np.eye(4)[np.arange(40) % 4]
    assert inception_score(rows, splits=1) == pytest.approx(4)  # certain, and balanced over four classes
    assert inception_score(np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)  # certain, but always the same class


def test_splits_agree_with_stylegan_v():
    shuffled = np.arange(23)
    np.random.RandomState(42).shuffle(shuffled)
    parts = split_of(23, 5)
    for k in range(5):
        assert set(shuffled[k * 23 // 5 : (k + 1) * 23 // 5]) == set(np.flatnonzero(parts == k))


def test_wrong_rows_raise():
    with pytest.raises(ValueError, match="needs class probabilities"):
        inception_score(np.ones((20, 3)))
    with pytest.raises(ValueError, match="5 samples cannot be divided into 10 splits"):
        inception_score(np.full((5, 2), 0.5), splits=10)
