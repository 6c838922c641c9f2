"""Intervals and tests over seeds are Student's t, and their error rates are the stated ones."""

import math

import numpy as np
import pytest
from scipy import stats

from latte_pl.ablation.intervals import Estimate, detectable, estimate, holm, narrowing, p_value, paired, unpaired

BASE = {0: 1.00, 1: 1.30, 2: 0.90, 3: 1.15}
ROW = {0: 1.11, 1: 1.38, 2: 1.02, 3: 1.27}


def test_mean_has_students_interval():
    values = np.array(list(ROW.values()))
    found = estimate(list(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.half == pytest.approx(stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2.0)
    assert found.n == 4


def test_paired_difference_matches_the_paired_t_test():
    found = paired(ROW, BASE)
    wanted = stats.ttest_rel(list(ROW.values()), list(BASE.values())).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_only_common_seeds_are_paired():
    found = paired(ROW, {1: 1.30, 3: 1.15, 7: 99.0})
    assert found.n == 2
    assert found.mean == pytest.approx((0.08 + 0.12) / 2)


def test_unpaired_difference_has_welchs_interval():
    row, base = np.array(list(ROW.values())), np.array(list(BASE.values()))
    parts = row.var(ddof=1) / 4, base.var(ddof=1) / 4
    freedom = sum(parts) ** 2 / sum(part**2 / 3 for part in parts)
    found = unpaired(list(row), list(base))
    assert found.mean == pytest.approx(row.mean() - base.mean())
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts)))


def test_pairing_removes_what_the_seeds_share():
    assert unpaired(list(ROW.values()), list(BASE.values())).half > 5 * paired(ROW, BASE).half


def test_no_values_have_no_estimate():
    assert estimate([]) is None
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_one_seed_has_no_interval():
    found = estimate([0.5])
    assert found.half is None
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert unpaired([0.5], [0.4, 0.3]).half is None
    assert p_value([0.5]) is None
    assert detectable([0.5]) is None


def test_equal_values_have_an_interval_of_width_zero(recwarn):
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.0, 3)
    assert unpaired([0.5, 0.5], [0.25, 0.25]) == Estimate(0.25, 0.0, 2)
    assert p_value([0.5, 0.5, 0.5]) == 0.0
    assert p_value([0.0, 0.0]) == 1.0
    assert not recwarn.list


def test_interval_has_its_stated_coverage():
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    inside = [abs((found := estimate(list(row))).mean) <= found.half for row in draws]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_p_value_is_below_the_level_exactly_where_the_interval_excludes_zero():
    draws = np.random.default_rng(1).normal(0.5, 1.0, size=(300, 4))
    for row in draws:
        found = estimate(list(row))
        assert (p_value(list(row)) < 0.05) == (found.low > 0.0 or found.high < 0.0)


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_detectable_difference_is_found_four_times_of_five(n):
    """With the true spread in place of that of a sample, the test finds it with a probability of 0.8."""
    unit = [1.0, -1.0] * (n // 2) + [0.0] * (n % 2)
    shift = detectable(unit) / np.std(unit, ddof=1)  # in units of the spread
    draws = np.random.default_rng(n).normal(shift, 1.0, size=(20_000, n))
    error = draws.std(axis=1, ddof=1) / math.sqrt(n)
    found = np.abs(draws.mean(axis=1)) > stats.t.ppf(0.975, n - 1) * error
    assert found.mean() == pytest.approx(0.8, abs=0.012)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_keeps_the_rate_of_any_wrong_verdict_among_dependent_tests():
    """Ten rows are compared with the same baseline, and nothing differs: without a correction, a page errs often."""
    generator = np.random.default_rng(2)
    raw = corrected = 0
    for _ in range(400):
        seeds = generator.normal(size=(11, 4))  # the baseline and ten rows, four seeds
        p_values = list(stats.ttest_1samp(seeds[1:] - seeds[0], 0.0, axis=1).pvalue)
        raw += min(p_values) < 0.05
        corrected += min(holm(p_values)) < 0.05
    assert raw / 400 > 0.2
    assert corrected / 400 < 0.07


@pytest.mark.parametrize(("early", "late"), [(0.0, 0.0), (0.5, 0.5), (0.5, -0.5), (3.0, 3.0)])
def test_narrowing_errs_rarely_where_early_values_are_noisier(early, late):
    """The absolute means are equal, and early values spread five times as much: one of twenty is the most that errs."""
    generator = np.random.default_rng(3)
    wrong = biased = 0
    for _ in range(1000):
        first, last = generator.normal(early, 1.0, 4), generator.normal(late, 0.2, 4)
        wrong += narrowing(first, last).p < 0.05
        biased += p_value(list(np.abs(first) - np.abs(last))) < 0.05
    assert wrong / 1000 < 0.065
    if early == late == 0.0:
        assert biased / 1000 > 0.09  # what the absolute values of single seeds would do


@pytest.mark.parametrize(
    ("early", "late", "mean"),
    [(2.0, 0.1, 1.9), (-2.0, -0.1, 1.9), (2.0, -0.1, 1.9), (0.1, 2.0, -1.9), (1.0, -2.0, -1.0)],
)
def test_narrowing_is_the_difference_of_absolute_means(early, late, mean):
    spread = np.array([-0.01, 0.02, -0.02, 0.01])
    found = narrowing(early + spread, late - spread)
    assert np.mean(found.values) == pytest.approx(mean)
    assert found.p < 0.01
