"""The committed results are those of the studies as they stand, and the committed tables are theirs."""

from pathlib import Path

import pytest

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.report import markdown, verdict_lines
from latte_pl.ablation.study import read

FOLDER = Path(__file__).parents[2] / "ablations"
RESULTS = FOLDER / "results"
STUDIES = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "quickstart"]


@pytest.fixture(scope="module", params=STUDIES, ids=lambda path: path.stem)
def comparison(request):
    return Comparison.load(read(request.param), "proxy", RESULTS)


def test_every_row_has_three_seeds_or_more(comparison):
    assert all(len(results) >= 3 for results in comparison.results.values())
    assert not any(comparison.errors.values())


def test_the_committed_table_is_that_of_the_committed_results(comparison):
    text = markdown(comparison)
    assert (RESULTS / "reports/proxy" / f"{comparison.study.name}.md").read_text(encoding="utf-8") == text
    table = text[text.index("| row") : text.index("\n\n", text.index("| row"))]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert table in readme
    for claim, answer in verdict_lines(comparison):
        assert f"- {claim}. {answer}\n" in readme


def test_results_were_measured_on_a_clean_commit(comparison):
    commits = {result["git_commit"] for result in comparison.all_results()}
    assert all(len(commit) == 40 for commit in commits)


def test_no_result_names_a_place_on_a_machine(comparison):
    for results in comparison.results.values():
        for result in results.values():
            assert not any(part.startswith("/") for command in result["commands"] for part in command)
