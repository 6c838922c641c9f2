import numpy as np
import pytest

from latte_pl.metrics import METRICS, Moments, frechet_from_features, inception_score, jackknife, kernel_distance, score
from latte_pl.metrics.scoring import fold_of


def features(seed, clips, rows=1, size=4):
    return np.random.default_rng(seed).normal(size=(clips, rows, size)).astype(np.float32)


def test_metrics_divide_covariances_as_their_references():
    real, generated = features(0, 20), features(1, 30)
    flat = [x[:, 0].astype(np.float64) for x in (real, generated)]
    assert score("fvd", real, generated).value == frechet_from_features(*flat, ddof=0)  # StyleGAN-V
    assert score("fid", real, generated).value == frechet_from_features(*flat, ddof=1)  # clean-fid
    assert score("toy_video_distance", real, generated).value == frechet_from_features(*flat, ddof=1)
    for name in ("kvd", "kid", "toy_kernel_distance"):
        assert score(name, real, generated).value == kernel_distance(*flat)


def test_names_of_published_metrics_belong_to_their_extractors():
    extractors = {name: metric.extractor for name, metric in METRICS.items() if not name.startswith("toy_")}
    assert extractors == {
        "fvd": "i3d",
        "kvd": "i3d",
        "fid": "inception",
        "kid": "inception",
        "fid_legacy": "inception_legacy",
        "inception_score": "c3d",
    }


def test_all_rows_of_a_clip_count():
    real, generated = features(0, 10, rows=3), features(1, 8, rows=3)
    value = frechet_from_features(real.reshape(30, 4), generated.reshape(24, 4))
    assert score("fid", real, generated).value == pytest.approx(value, rel=1e-12)
    assert score("fid", real.reshape(30, 4), generated.reshape(24, 4)).value == pytest.approx(value, rel=1e-12)


def test_inception_score_needs_generated_clips_alone():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (40, 1))
    assert score("inception_score", None, probabilities).value == pytest.approx(inception_score(probabilities[:, 0]))
    with pytest.raises(ValueError, match="fvd compares with real clips, but there are none"):
        score("fvd", None, features(0, 5))


def test_as_many_rows_as_features_are_labelled_smoke():
    assert score("fvd", features(0, 5), features(1, 5)).label == "full"
    assert score("fvd", features(0, 4), features(1, 9)).label == "smoke"  # the covariance of N rows has rank N - 1
    assert score("fvd", features(0, 9), features(1, 4)).label == "smoke"
    assert score("fid", features(0, 3, rows=2), features(1, 3, rows=2)).label == "full"
    assert score("fid", features(0, 2, rows=2), features(1, 2, rows=2)).label == "smoke"


def test_repeated_clips_do_not_count():
    few, many = features(0, 4), features(1, 40)
    assert score("fvd", np.tile(few, (10, 1, 1)), many).label == "smoke"
    assert score("fvd", many, np.tile(few, (10, 1, 1)), folds=4).interval is None
    assert score("fvd", many[:39], features(2, 39), folds=4).interval is not None


def test_moments_have_the_value_of_the_features():
    real, generated = features(0, 30)[:, 0].astype(np.float64), features(1, 20)
    sums = Moments(30, real.sum(axis=0), real.T @ real)
    value = score("fid_legacy", sums, generated)
    assert value.value == pytest.approx(frechet_from_features(real, generated[:, 0], ddof=0), rel=1e-10)
    assert (value.label, value.interval) == ("full", None)


def test_interval_needs_two_clips_a_fold():
    assert score("fvd", features(0, 8), features(1, 8)).interval is None
    assert score("fvd", features(0, 7), features(1, 8), folds=4).interval is None
    found = score("fvd", features(0, 8), features(1, 8), folds=4)
    assert found.interval.low < found.value < found.interval.high
    assert (found.interval.method, found.interval.level) == ("4-fold jackknife", 0.95)


def test_intervals_do_not_reach_below_the_smallest_value():
    rng = np.random.default_rng(0)
    near = [rng.normal(size=(64, 1, 2)) * rng.exponential(size=(64, 1, 1)) for _ in range(2)]
    distance = score("fvd", *near, folds=4)
    assert distance.interval.low == 0
    assert distance.interval.high > distance.value > 0
    assert score("kvd", *near, folds=4).interval.low < 0  # the kernel distance has no bias and can be negative
    equal = np.tile(rng.dirichlet(np.ones(3)), (40, 1)) + rng.normal(size=(40, 3)) * 1e-5
    found = score("inception_score", None, equal[:, None] / equal.sum(axis=1)[:, None, None], folds=4)
    assert found.interval.low >= 1


def test_jackknife_of_a_mean_agrees_with_its_standard_error():
    rows = np.random.default_rng(4).normal(size=(400, 1))
    interval = jackknife(lambda x: float(x.mean()), rows)
    assert (interval.low + interval.high) / 2 == pytest.approx(rows.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(2 * rows.std() / 20, rel=0.5)


def test_jackknife_of_four_folds_is_the_t_interval_of_their_mean():
    rows = np.random.default_rng(5).normal(size=(40, 1))
    interval = jackknife(lambda x: float(x.mean()), rows, folds=4)
    means = np.array([rows[fold_of(rows, 4) == k].mean() for k in range(4)])
    # t quantile 3.1824463 of three degrees of freedom
    reach = 3.1824463 * means.std(ddof=1) / 2
    assert (interval.low, interval.high) == pytest.approx((means.mean() - reach, means.mean() + reach), rel=1e-6)


def test_jackknife_with_too_few_clips_raises():
    with pytest.raises(
        ValueError, match=r"folds=5: at least 2 folds and 10 distinct clips a side are needed, found \[1\]"
    ):
        jackknife(lambda x: 0.0, np.ones((50, 3)), folds=5)


@pytest.mark.parametrize(("classes", "folds"), [(8, 8), (1, 8), (3, 4), (101, 8), (8, 5)])
def test_every_fold_has_the_same_classes(classes, folds):
    labels = np.arange(320) % classes
    parts = fold_of(np.arange(320)[:, None], folds, labels)
    counts = np.array([[((parts == k) & (labels == c)).sum() for c in range(classes)] for k in range(folds)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert not np.array_equal(parts, np.arange(320) % folds)


def test_folds_depend_on_the_order_of_clips_and_not_on_their_features():
    first, second = (features(seed, 64)[:, 0] for seed in (0, 1))
    assert np.array_equal(fold_of(first, 8), fold_of(second, 8))
    assert not np.array_equal(fold_of(first, 8), fold_of(first, 8, sample=1))


def test_equal_clips_share_a_fold():
    rows = np.repeat(features(0, 20)[:, 0], 3, axis=0)
    parts = fold_of(rows, 4)
    assert (parts.reshape(20, 3) == parts[::3, None]).all()
    assert set(parts) == {0, 1, 2, 3}


def test_half_width_fits_the_spread_where_folds_and_classes_are_eight():
    """The ratio is 2.4 for an exact 95 % interval. If each fold leaves out one class (index modulo 8), it is 28."""
    rng = np.random.default_rng(0)
    centres, errors = 3 * rng.normal(size=(8, 16)), rng.normal(size=(8, 16)) * np.linspace(0, 2, 8)[:, None]
    labels = np.arange(256) % 8
    found = []
    for seed in range(16):
        rng = np.random.default_rng(100 + seed)
        sides = [centre[labels] + rng.normal(size=(256, 16)) for centre in (centres, centres + errors)]
        found.append(score("fvd", sides[0][:, None], sides[1][:, None], 8, labels, labels))
    spread = np.std([s.value for s in found], ddof=1)
    half = np.mean([s.interval.high - s.value for s in found])
    assert 1 < half / spread < 4
