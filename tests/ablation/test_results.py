"""The committed results belong to the studies of today, and reports and README show their numbers."""

from pathlib import Path

import pytest

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.monitor import held_out
from latte_pl.ablation.overview import overview_markdown
from latte_pl.ablation.plan_cache import load_plan
from latte_pl.ablation.report import read_suite
from latte_pl.ablation.study import read
from latte_pl.ablation.tables import markdown
from latte_pl.ablation.verdicts import answers
from latte_pl.toy import Shapes
from latte_pl.training.weights import build

FOLDER = Path(__file__).parents[2] / "ablations"
RESULTS = FOLDER / "results"
STUDIES = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem != "quickstart"]


REPORTS = RESULTS / "reports/proxy"


def with_results(path):
    return Comparison.load(read(path), "proxy", RESULTS).has_pairs()


@pytest.fixture(scope="module")
def suite():
    return read_suite([read(STUDIES[0])], "proxy", RESULTS)


@pytest.fixture(scope="module", params=filter(with_results, STUDIES), ids=lambda path: path.stem)
def comparison(request):
    return Comparison.load(read(request.param), "proxy", RESULTS)


def test_verdicts_rest_on_three_seeds_or_more_of_trained_models(comparison, suite):
    assert not any(comparison.errors.values())
    decided = [
        answer for part in answers(comparison, suite) for answer in part if answer.verdict in ("agrees", "disagrees")
    ]
    assert all(answer.test.difference.n >= 3 for answer in decided)
    for result in comparison.results[comparison.baseline].values():
        assert result["motion"]["value"] >= 0.85


def test_reports_and_readme_show_the_committed_results(comparison, suite):
    text = markdown(comparison, suite)
    assert (REPORTS / f"{comparison.study.name}.md").read_text(encoding="utf-8") == text
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for head in ("| row |", "| claim |"):
        assert text[text.index(head) : text.index("\n\n", text.index(head))] in readme


def test_reports_are_those_of_the_studies_with_results(suite):
    names = {comparison.study.name for comparison in suite.comparisons}
    assert names
    assert {path.stem for path in REPORTS.glob("*.html")} == names | {"index"}


def test_overview_shows_the_committed_results(suite):
    assert (REPORTS / "index.md").read_text(encoding="utf-8") == overview_markdown(suite)


def test_results_were_measured_on_a_clean_commit(comparison):
    commits = {result["git_commit"] for result in comparison.all_results()}
    assert all(len(commit) == 40 for commit in commits)


def test_results_hold_the_commands_of_the_plan_without_absolute_paths(comparison):
    root = str(RESULTS)
    finished = [trial for trial in comparison.trials if trial.seed in comparison.results[trial.row]]
    for trial in finished:
        commands = comparison.results[trial.row][trial.seed]["commands"]
        planned = [[part.replace(root, "runs/ablations") for part in command] for command in trial.commands]
        assert commands == planned
        assert not any(part.startswith("/") for command in commands for part in command)


def test_every_committed_folder_is_a_planned_trial():
    planned = {
        trial.hash
        for study in map(read, STUDIES)
        for scale in {"proxy", "proxy-ddpm"} & study.scales.keys()
        for trial in load_plan(study, scale, RESULTS)
    }
    assert {path.name for path in (RESULTS / "trials").iterdir() if path.is_dir()} <= planned


def test_held_out_protocol_is_that_of_a_model_built_today():
    comparison = Comparison.load(read(FOLDER / "patch_embedding.yaml"), "proxy", RESULTS)
    trial = next(trial for trial in comparison.trials if trial.row == comparison.baseline)
    committed = comparison.results[trial.row][trial.seed]["held_out"]
    data = Shapes(**trial.config["data"]["init_args"])
    assert held_out(build(trial.config), data) == {key: value for key, value in committed.items() if key != "loss"}
