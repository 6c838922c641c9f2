import numpy as np
import pytest
import scipy.linalg
import torch
from cdfvd.third_party.i3d.utils import frechet_distance as cd_fvd_frechet
from cleanfid.fid import frechet_distance as cleanfid_frechet
from cleanfid.fid import kernel_distance as cleanfid_kernel

from latte_pl.metrics.frechet import (
    bootstrap,
    frechet_distance,
    frechet_from_features,
    inception_score,
    jackknife,
    kernel_distance,
    moments,
    split_of,
)


def correlated(rng, rows, size, offset=0.0, rank=None):
    mix = rng.normal(size=(rank or size, size)) / np.sqrt(size)
    return rng.normal(size=(rows, rank or size)) @ mix + offset


def by_sqrtm(real, fake):
    (mean1, cov1), (mean2, cov2) = moments(real), moments(fake)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    return ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root)


# rows and features: full rank, deficient on one side or both, at the edge, and features that live in a subspace
CASES = [(300, 250, 32, None), (20, 250, 32, None), (250, 20, 32, None), (20, 15, 32, None), (33, 32, 32, None)]
CASES += [(300, 250, 32, 10)]


@pytest.mark.parametrize(("rows1", "rows2", "size", "rank"), CASES)
def test_agrees_with_sqrtm_and_clean_fid(rows1, rows2, size, rank):
    rng = np.random.default_rng(0)
    real, fake = correlated(rng, rows1, size, 3.0, rank), correlated(rng, rows2, size, 2.5, rank)
    (mean1, cov1), (mean2, cov2) = moments(real), moments(fake)
    value = frechet_from_features(real, fake)
    assert value == pytest.approx(by_sqrtm(real, fake), rel=1e-6)
    assert value == pytest.approx(cleanfid_frechet(mean1, cov1, mean2, cov2), rel=1e-6)
    assert value == pytest.approx(frechet_distance(mean1, cov1, mean2, cov2), rel=1e-9)
    assert value == pytest.approx(frechet_distance(mean1, cov1, mean2, cov2, (rows1, rows2)), rel=1e-9)


@pytest.mark.parametrize(("rows1", "rows2", "size", "rank"), CASES[:4])
def test_agrees_with_cd_fvd(rows1, rows2, size, rank):
    rng = np.random.default_rng(1)
    real, fake = correlated(rng, rows1, size, 3.0, rank), correlated(rng, rows2, size, 2.5, rank)
    reference = float(cd_fvd_frechet(torch.from_numpy(real), torch.from_numpy(fake)))
    assert frechet_from_features(real, fake) == pytest.approx(reference, rel=1e-6)


def test_moments_are_numpys():
    rows = correlated(np.random.default_rng(0), 9, 4)
    for ddof in (0, 1):
        mean, cov = moments(rows, ddof)
        np.testing.assert_allclose(mean, rows.mean(axis=0))
        np.testing.assert_allclose(cov, np.cov(rows.T, ddof=ddof))


def test_known_values():
    # commuting covariances: |m1 - m2|^2 + sum of (s1 - s2)^2
    value = frechet_distance(np.zeros(3), np.diag([1.0, 4, 9]), np.array([1.0, 2, 0]), np.diag([4.0, 4, 0]))
    assert value == pytest.approx(5 + 1 + 0 + 9, rel=1e-12)
    rows = correlated(np.random.default_rng(1), 200, 16)
    assert frechet_from_features(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet_from_features(rows[:10], rows[:10]) == pytest.approx(0, abs=1e-9)
    assert frechet_from_features(rows, rows + 2) == pytest.approx(4 * 16, rel=1e-9)


def test_symmetric():
    rng = np.random.default_rng(2)
    real, fake = correlated(rng, 12, 20), correlated(rng, 90, 20)
    assert frechet_from_features(real, fake) == pytest.approx(frechet_from_features(fake, real), rel=1e-12)


def test_kernel_distance_is_clean_fids_on_whole_sets():
    rng = np.random.default_rng(3)
    real, fake = correlated(rng, 60, 16, 0.5), correlated(rng, 60, 16)
    assert kernel_distance(real, fake) == pytest.approx(cleanfid_kernel(real, fake, 1, 60), rel=1e-9)
    assert kernel_distance(real, fake, block=7) == pytest.approx(kernel_distance(real, fake), rel=1e-12)


def test_kernel_distance_has_no_bias():
    values = [kernel_distance(*np.random.default_rng(n).normal(size=(2, 20, 4))) for n in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_inception_score_known_values():
    assert inception_score(np.full((20, 5), 0.2), splits=2) == pytest.approx(1)  # says nothing
    rows = np.eye(4)[np.arange(40) % 4]
    assert inception_score(rows, splits=1) == pytest.approx(4)  # sure, and balanced over four classes


def test_splits_are_those_of_the_papers_code():
    rows = np.arange(23)
    shuffled = rows.copy()
    np.random.RandomState(42).shuffle(shuffled)
    parts = split_of(23, 5)
    for k in range(5):
        assert set(shuffled[k * 23 // 5 : (k + 1) * 23 // 5]) == set(np.flatnonzero(parts == k))


@pytest.mark.parametrize("method", [jackknife, bootstrap])
def test_interval_of_a_mean_has_its_standard_error(method):
    rows = np.random.default_rng(4).normal(size=(400, 1))
    interval = method(lambda x: float(x.mean()), rows)
    assert (interval.low + interval.high) / 2 == pytest.approx(rows.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(2 * rows.std() / 20, rel=0.5)
    assert interval == method(lambda x: float(x.mean()), rows)


def test_refusals():
    rows = np.ones((5, 3))
    with pytest.raises(ValueError, match="two or more rows"):
        frechet_from_features(rows[:1], rows)
    with pytest.raises(ValueError, match="NaN"):
        frechet_from_features(rows, np.full((5, 3), np.nan))
    with pytest.raises(ValueError, match="one extractor"):
        frechet_from_features(rows, np.ones((5, 4)))
    with pytest.raises(ValueError, match="class probabilities"):
        inception_score(np.ones((20, 3)))
    with pytest.raises(ValueError, match="splits"):
        inception_score(np.full((5, 2), 0.5), splits=10)
    with pytest.raises(ValueError, match="folds"):
        jackknife(lambda x: 0.0, rows, folds=5)
