"""Verdicts: corrected for the tests of a page and of a suite, and given about trained models alone."""

import json

import pytest
from studies import ROOT, fabricate, study_in, trials_of, write_study

from latte_pl.ablation import cli
from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.report import read_suite
from latte_pl.ablation.study import read
from latte_pl.ablation.tables import conclusion, markdown
from latte_pl.ablation.verdicts import answers, overall

SEEDS = [0, 1, 2, 3]
NOISE = [0.001, -0.002, 0.002, -0.001]
ROWS = {"uniform": {}, **{f"rate {k}": {"model.lr": 0.01 * k} for k in (2, 3, 4)}}
CLAIMS = [{"row": f"rate {k}", "side": "better"} for k in (2, 3, 4)]


def fabricate_rows(trials, gains, motion=0.9):
    """Give the row of learning rate k an advantage, and all rows their noise."""
    for trial in trials:
        k = 0 if trial.row == "uniform" else int(trial.row[-1])
        noise = NOISE[(trial.seed + k) % 4] if k else 0.0
        fabricate(trial, 0.5 - gains.get(k, 0.0) + noise, motion=motion)


def load(folder):
    path = folder / "study.yaml"
    return Comparison.load(read(path), "proxy", folder / ROOT)


@pytest.fixture
def near(tmp_path):
    """A study of three claims, one of which only an uncorrected test would decide."""
    _, trials = study_in(tmp_path, rows=ROWS, claims=CLAIMS, scale={"seeds": SEEDS})
    fabricate_rows(trials, {2: 0.003, 3: 0.02})
    return tmp_path


def test_verdicts_follow_the_corrected_p_values(near):
    near_miss, clear, nothing = (
        next(a for a in part if a.test.measure.key == "held_out_loss") for part in answers(load(near))
    )
    assert near_miss.test.p < 0.05 < near_miss.p_page
    assert near_miss.verdict == "undecided"
    assert clear.p_page == pytest.approx(6 * clear.test.p)  # three claims, two measures
    assert clear.verdict == "agrees"
    assert nothing.verdict == "undecided"
    text = markdown(load(near))
    assert f"| {near_miss.test.p:.3f} | {near_miss.p_page:.3f} |" in text
    assert "Of 3 claims, 1 agrees, 2 are undecided." in text


def test_two_claims_about_one_hypothesis_are_one_test(near):
    claims = [*CLAIMS, {"row": "rate 3", "side": "worse"}]
    write_study(near, rows=ROWS, claims=claims, scale={"seeds": SEEDS})
    _, clear, _, opposite = (part[0] for part in answers(load(near)))
    assert clear.p_page == opposite.p_page == pytest.approx(6 * clear.test.p)
    assert (clear.verdict, opposite.verdict) == ("agrees", "disagrees")


def test_suite_corrects_for_all_studies_of_the_folder(near, capsys):
    data = (near / "study.yaml").read_text()
    rows = {"uniform": {}, **{f"depth {k}": {"model.net.depth": k} for k in (4, 6)}}
    write_study(
        near, rows=rows, claims=[{"row": f"depth {k}", "side": "worse"} for k in (4, 6)], scale={"seeds": SEEDS}
    )
    (near / "study.yaml").rename(near / "other.yaml")
    (near / "study.yaml").write_text(data)
    for trial in trials_of(near, "other"):
        if trial.row != "uniform":  # the baseline is that of the first study
            fabricate(trial, 0.6 + NOISE[trial.seed], motion=0.9)
    suite = read_suite([read(near / "study.yaml")], "proxy", near / ROOT)
    assert [comparison.study.name for comparison in suite.comparisons] == ["other", "study"]
    comparison = suite.comparisons[1]
    assert suite.sharing_baseline(comparison) == ["other"]
    clear = answers(comparison, suite)[1][0]
    assert clear.p_page == pytest.approx(6 * clear.test.p)
    # the two tests of the other study have smaller p-values, and its motion accuracies differ nowhere
    assert clear.p_suite == pytest.approx(8 * clear.test.p)
    text = markdown(comparison, suite)
    assert "p (suite) is corrected for the 10 tests of 2 studies" in text
    assert "1 other study compares with the same trials of the baseline" in text

    names = [str(near / f"{name}.yaml") for name in ("study", "other")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *names, "--root", str(near / ROOT), "--output", str(near / "out")])
    assert stop.value.code == 0
    index = (near / "out/index.md").read_text()
    assert "| [Study](study.md) | rate 3: better | agrees | - | undecided | **agrees** |" in index
    assert "2 of these studies share the trials of their baseline" in index
    page = (near / "out/index.html").read_text()
    assert '<a href="study.html">' in page
    assert '<a href="index.html">' in (near / "out/study.html").read_text()
    capsys.readouterr()


def test_overview_leaves_out_studies_of_which_only_the_shared_baseline_is_trained(near, capsys):
    data = (near / "study.yaml").read_text()
    write_study(near, rows={"uniform": {}, "depth 4": {"model.net.depth": 4}}, scale={"seeds": SEEDS})
    (near / "study.yaml").rename(near / "later.yaml")
    (near / "study.yaml").write_text(data)
    suite = read_suite([read(near / "study.yaml")], "proxy", near / ROOT)
    assert [comparison.study.name for comparison in suite.comparisons] == ["study"]
    names = [str(near / f"{name}.yaml") for name in ("study", "later")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *names, "--root", str(near / ROOT), "--output", str(near / "out")])
    assert stop.value.code == 1
    assert "later has nothing to compare with its baseline at scale proxy" in capsys.readouterr().err
    assert sorted(path.stem for path in (near / "out").glob("*.html")) == ["index", "study"]


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        (
            {"measure": "motion_accuracy", "at_least": 0.95},
            "motion accuracy of at least 95.0 % with every seed, but has 90.0 %",
        ),
        (
            {"measure": "held_out_loss", "at_most": 0.4},
            "held-out loss of at most 0.4000 with every seed, but has 0.5000",
        ),
        (
            {"measure": "video_distance", "at_most": 100},
            "video distance of at most 100.0 with every seed, but has not meas",
        ),
    ],
)
def test_untrained_models_have_no_verdicts(trained, reason, near):
    write_study(near, rows=ROWS, claims=CLAIMS, scale={"seeds": SEEDS, "trained": trained})
    comparison = load(near)
    assert {answer.verdict for part in answers(comparison) for answer in part} == {"too early to say"}
    assert reason in conclusion(comparison)
    assert "**agrees**" not in markdown(comparison)
    assert read_suite([comparison.study], "proxy", near / ROOT).p_values == {}


def test_one_untrained_seed_of_the_baseline_is_enough(near):
    trained = {"measure": "motion_accuracy", "at_least": 0.9}
    write_study(near, rows=ROWS, claims=CLAIMS, scale={"seeds": SEEDS, "trained": trained})
    assert not load(near).untrained()
    trial = next(t for t in trials_of(near) if (t.row, t.seed) == ("uniform", 2))
    fabricate(trial, 0.5, motion=0.89)
    assert "89.0 % (seed 2)" in load(near).untrained()
    assert "Claims have verdicts if every seed of the baseline is trained" in markdown(load(near))


def test_condition_of_a_trained_model_is_no_part_of_a_trial(near):
    before = [trial.hash for trial in trials_of(near)]
    trained = {"measure": "motion_accuracy", "at_least": 0.9}
    write_study(near, rows=ROWS, claims=CLAIMS, scale={"seeds": SEEDS, "trained": trained})
    assert [trial.hash for trial in trials_of(near)] == before


def test_shared_start_counts_random_initial_values_of_the_same_seed(near):
    for trial in trials_of(near):
        result = json.loads(trial.result.read_text())
        result["initial"] = {f"a{trial.seed}": 30, f"b{trial.row}": 10}
        trial.result.write_text(json.dumps(result))
    comparison = load(near)
    assert comparison.shared_start("rate 2") == 0.75
    assert "equal the baseline's: rate 2 75%, rate 3 75%, rate 4 75%." in markdown(comparison)


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["agrees", "undecided", "not measured"], "agrees"),
        (["undecided", "disagrees"], "disagrees"),
        (["agrees", "disagrees", "undecided"], "mixed"),
        (["undecided", "not measured"], "undecided"),
        (["too early to say", "not measured"], "too early to say"),
        ([], "not measured"),
    ],
)
def test_measures_that_decide_make_the_verdict(verdicts, whole):
    assert overall(verdicts) == whole
