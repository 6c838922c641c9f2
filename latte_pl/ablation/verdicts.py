"""Verdicts on claims, corrected for many tests."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from latte_pl.ablation.comparison import ClaimTest, Comparison
from latte_pl.ablation.intervals import LEVEL, holm

Verdict = Literal["agrees", "disagrees", "undecided", "too early to say", "not measured"]
Overall = Verdict | Literal["mixed"]


@dataclass(frozen=True)
class Answer:
    """What a measure says about a claim.

    Attributes:
        test: The test.
        p_page: p-value corrected for all tests of the study (Holm); None if there is none.
        p_suite: p-value corrected for all tests of the suite; None if there is none.
        verdict: Verdict by ``p_page``.
        suite_verdict: Verdict by ``p_suite``.
    """

    test: ClaimTest
    p_page: float | None
    p_suite: float | None
    verdict: Verdict
    suite_verdict: Verdict


@dataclass(frozen=True)
class Suite:
    """The studies at a scale, whose claims are corrected together.

    Attributes:
        comparisons: The results of each study.
    """

    comparisons: Sequence[Comparison]

    @functools.cached_property
    def p_values(self) -> dict[str, float]:
        """The p-values of all tests by key, corrected by Holm's method.

        Studies whose models have not learnt their task have no verdicts, so they do not count.
        """
        trained = [comparison for comparison in self.comparisons if not comparison.untrained()]
        return corrected(test for study in trained for claim in study.claims() for test in study.tests(claim))

    def sharing_baseline(self, comparison: Comparison) -> list[str]:
        """Return the names of the other studies that compare with the same trials."""
        own = comparison.baseline_hashes()
        others = [other for other in self.comparisons if other.study.name != comparison.study.name]
        return [other.study.name for other in others if own & other.baseline_hashes()]


def answers(comparison: Comparison, suite: Suite | None = None) -> list[list[Answer]]:
    """Return the answers to each claim of a study, one for each measure.

    Args:
        comparison: The results of the study.
        suite: The studies that it belongs to. None: it stands alone.
    """
    by_claim = [comparison.tests(claim) for claim in comparison.claims()]
    page = corrected(test for tests in by_claim for test in tests)
    whole = (suite or Suite([comparison])).p_values
    trained = not comparison.untrained()

    def answer(test: ClaimTest) -> Answer:
        p_page, p_suite = page.get(test.key), whole.get(test.key)
        return Answer(test, p_page, p_suite, decide(test, p_page, trained), decide(test, p_suite, trained))

    return [[answer(test) for test in tests] for tests in by_claim]


def corrected(tests: Iterable[ClaimTest]) -> dict[str, float]:
    """Return p-values by key, corrected by Holm's method; a hypothesis that several claims test counts once."""
    found = {test.key: test.p for test in tests if test.p is not None}
    return dict(zip(found, holm(list(found.values()))))


def decide(test: ClaimTest, p: float | None, trained: bool = True) -> Verdict:
    """Return the verdict of a test.

    Args:
        test: The test.
        p: Its corrected p-value.
        trained: Whether the models have learnt their task.
    """
    if test.difference is None:
        return "not measured"
    if not trained:
        return "too early to say"
    if p is None or p >= 1.0 - LEVEL:
        return "undecided"
    return "agrees" if test.favours else "disagrees"


def overall(verdicts: Sequence[Verdict]) -> Overall:
    """Return one verdict for all measures: that of the significant ones, or "mixed" if they contradict each other."""
    found = {verdict for verdict in verdicts if verdict in ("agrees", "disagrees")}
    if len(found) == 2:
        return "mixed"
    order: tuple[Verdict, ...] = ("agrees", "disagrees", "too early to say", "undecided", "not measured")
    return next((verdict for verdict in order if verdict in verdicts), "not measured")
