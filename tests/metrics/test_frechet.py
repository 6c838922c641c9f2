import numpy as np
import pytest
import scipy.linalg
import torch
from cdfvd.third_party.i3d.utils import frechet_distance as cd_fvd_frechet
from cleanfid.fid import frechet_distance as cleanfid_frechet

from latte_pl.metrics.frechet import frechet_distance, frechet_from_features, moments


def correlated(rng, rows, size, offset=0.0, rank=None):
    mix = rng.normal(size=(rank or size, size)) / np.sqrt(size)
    return rng.normal(size=(rows, rank or size)) @ mix + offset


def by_sqrtm(real, generated):
    (mean1, cov1), (mean2, cov2) = moments(real), moments(generated)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root)


# rows, features, rank: full rank, deficient on one side or both, one row more than features, features in a subspace
CASES = [(300, 250, 32, None), (20, 250, 32, None), (250, 20, 32, None), (20, 15, 32, None), (33, 32, 32, None)]
CASES += [(300, 250, 32, 10)]


@pytest.mark.parametrize(("rows1", "rows2", "size", "rank"), CASES)
def test_agrees_with_sqrtm_and_clean_fid(rows1, rows2, size, rank):
    rng = np.random.default_rng(0)
    real, generated = correlated(rng, rows1, size, 3.0, rank), correlated(rng, rows2, size, 2.5, rank)
    (mean1, cov1), (mean2, cov2) = moments(real), moments(generated)
    value = frechet_from_features(real, generated)
    assert value == pytest.approx(by_sqrtm(real, generated), rel=1e-6)
    assert value == pytest.approx(cleanfid_frechet(mean1, cov1, mean2, cov2), rel=1e-6)
    assert value == pytest.approx(frechet_distance(mean1, cov1, mean2, cov2), rel=1e-9)
    assert value == pytest.approx(frechet_distance(mean1, cov1, mean2, cov2, (rows1, rows2)), rel=1e-9)


@pytest.mark.parametrize(("rows1", "rows2", "size", "rank"), CASES[:4])
def test_agrees_with_cd_fvd(rows1, rows2, size, rank):
    rng = np.random.default_rng(1)
    real, generated = correlated(rng, rows1, size, 3.0, rank), correlated(rng, rows2, size, 2.5, rank)
    reference = float(cd_fvd_frechet(torch.from_numpy(real), torch.from_numpy(generated)))
    assert frechet_from_features(real, generated) == pytest.approx(reference, rel=1e-6)


def test_moments_agree_with_numpy():
    rows = correlated(np.random.default_rng(0), 9, 4)
    for ddof in (0, 1):
        mean, cov = moments(rows, ddof)
        np.testing.assert_allclose(mean, rows.mean(axis=0))
        np.testing.assert_allclose(cov, np.cov(rows.T, ddof=ddof))


def test_known_values():
    # for commuting covariances the distance is |m1 - m2|^2 plus the sum of (s1 - s2)^2 of the standard deviations
    value = frechet_distance(np.zeros(3), np.diag([1.0, 4, 9]), np.array([1.0, 2, 0]), np.diag([4.0, 4, 0]))
    assert value == pytest.approx(5 + 1 + 0 + 9, rel=1e-12)
    rows = correlated(np.random.default_rng(1), 200, 16)
    assert frechet_from_features(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_from_features(rows[:10], rows[:10]) == pytest.approx(0, abs=1e-9)
    assert frechet_from_features(rows, rows + 2) == pytest.approx(4 * 16, rel=1e-9)


def test_ddof_changes_the_divisor():
    real, generated = np.array([[0.0], [2.0]]), np.array([[0.0], [6.0]])
    # means 1 and 3; standard deviations 1 and 3 with divisor N, sqrt(2) and 3 sqrt(2) with N - 1
    assert frechet_from_features(real, generated, ddof=0) == pytest.approx(4 + 4)
    assert frechet_from_features(real, generated, ddof=1) == pytest.approx(4 + 8)


def test_distance_is_symmetric():
    rng = np.random.default_rng(2)
    real, generated = correlated(rng, 12, 20), correlated(rng, 90, 20)
    assert frechet_from_features(real, generated) == pytest.approx(frechet_from_features(generated, real), rel=1e-12)


def test_wrong_features_raise():
    rows = np.ones((5, 3))
    with pytest.raises(ValueError, match=r"N of at least 2, found \(1, 3\)"):
        frechet_from_features(rows[:1], rows)
    with pytest.raises(ValueError, match="NaN"):
        frechet_from_features(rows, np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="3 and 4 features a row; use the same extractor"):
        frechet_from_features(rows, np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"found \(3,\), \(3, 3\) and \(3,\), \(2, 2\)"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="moments contain NaN"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(3), np.eye(3) * np.nan)
