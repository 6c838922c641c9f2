"""Intervals are Student's, differences are paired, verdicts follow the interval."""

import math

import numpy as np
import pytest
from scipy import stats

from latte_pl.ablation.statistics import Estimate, estimate, paired, read_at, unpaired, verdict

BASE = {0: 1.00, 1: 1.30, 2: 0.90, 3: 1.15}
ROW = {0: 1.11, 1: 1.38, 2: 1.02, 3: 1.27}


def test_the_interval_of_a_mean_is_students():
    values = list(ROW.values())
    found = estimate(values)
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.n == 4


def test_a_paired_difference_is_that_of_the_paired_t_test():
    found = paired(ROW, BASE)
    wanted = stats.ttest_rel(list(ROW.values()), list(BASE.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_only_seeds_that_both_have_are_paired():
    found = paired(ROW, {1: 1.30, 3: 1.15, 7: 99.0})
    assert found.n == 2
    assert found.mean == pytest.approx((0.08 + 0.12) / 2)


def test_an_unpaired_difference_is_welchs():
    found = unpaired(list(ROW.values()), list(BASE.values()))
    wanted = stats.ttest_ind(list(ROW.values()), list(BASE.values()), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_pairing_narrows_what_a_shared_seed_moves():
    assert unpaired(list(ROW.values()), list(BASE.values())).half > 5 * paired(ROW, BASE).half


@pytest.mark.parametrize(
    ("mean", "half", "side", "answer"),
    [
        (0.2, 0.1, "worse", "agrees"),
        (0.2, 0.1, "better", "disagrees"),
        (-0.2, 0.1, "better", "agrees"),
        (-0.2, 0.1, "worse", "disagrees"),
        (0.2, 0.3, "worse", "undecided"),
        (0.2, 0.1, "narrows", "agrees"),
        (-0.2, 0.1, "narrows", "disagrees"),
        (0.2, None, "worse", "undecided"),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_zero(mean, half, side, answer):
    assert verdict(Estimate(mean, half, 3), side) == answer


def test_nothing_measured_is_no_verdict():
    assert estimate([]) is None
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert verdict(None, "worse") == "not measured"


def test_one_seed_has_no_interval():
    found = estimate([0.5])
    assert found.half is None
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_the_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    inside = [abs((found := estimate(list(row))).mean) <= found.half for row in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.01)


def test_curves_are_read_between_their_points_and_not_beyond():
    curve = [(10, 4.0), (20, 2.0), (40, 1.0)]
    assert read_at(curve, 15) == 3.0
    assert read_at(curve, 40) == 1.0
    with pytest.raises(ValueError, match="step 5 lies outside"):
        read_at(curve, 5)
