"""Tables: what stands in them, what must not stand in one, and what they say where a trial failed."""

import csv
import json
import re

import pytest
from rich.console import Console
from studies import ROWS, fabricate, study_in, trials_of, write_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latte_pl.ablation import cli
from latte_pl.ablation.comparison import DISTANCE, LOSS, MEASURES, Comparison, loss_at
from latte_pl.ablation.page import page
from latte_pl.ablation.report import latex, markdown, shown_table
from latte_pl.ablation.runner import table
from latte_pl.ablation.study import Claim
from latte_pl.ablation.worker import fail

SEEDS = {"scale": {"seeds": [0, 1, 2]}}
BASE = {0: 0.30, 1: 0.40, 2: 0.35}
WORSE = {0: 0.06, 1: 0.05, 2: 0.07}


@pytest.fixture
def finished(tmp_path):
    """A study of two rows and three seeds, all finished; the second row is worse and half as dear."""
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        row = trial.row == "compression"
        loss = BASE[trial.seed] + row * WORSE[trial.seed]
        fabricate(trial, loss, 100 * loss + trial.seed * row, flops=0.5e9 if row else 1e9)
    return study, tmp_path / "runs/ablations"


def test_a_row_has_its_mean_and_its_paired_difference(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    line = comparison.table().set_index("row").loc["compression"]
    assert line["loss"] == pytest.approx(0.41)
    assert line["loss_diff"] == pytest.approx(0.06)
    assert line["loss_diff_half"] == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert line["distance_diff"] == pytest.approx(7.0)
    assert line["seeds"] == 3
    assert comparison.table().set_index("row").loc["uniform", "loss_diff"] != line["loss_diff"]


def test_equal_flops_reads_the_dear_row_earlier(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    assert comparison.equal_flops() == 3 * 0.5e9 * 64
    # the loss falls in a straight line from 2 x to 1 x its end: half of the training is 1.5 x
    line = comparison.table().set_index("row").loc["compression"]
    assert line["loss_equal_flops_diff"] == pytest.approx(0.41 - 1.5 * 0.35)
    assert line["loss_equal_flops"] == pytest.approx(0.41)


def test_a_reading_before_the_first_point_is_left_out(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        fabricate(trial, 0.5, flops=1e9 if trial.row == "uniform" else 0.1e9)  # a tenth of 16 steps; the curve has 4
    line = Comparison.load(study, "proxy", tmp_path / "runs/ablations").table().set_index("row")
    assert line.loc["compression", "loss_equal_flops"] == 0.5
    assert line["loss_equal_flops"].isna()["uniform"]
    assert line["loss_equal_flops_diff"].isna().all()


def test_arms_of_one_cost_have_no_second_reading(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        fabricate(trial, 0.5)
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    assert comparison.equal_flops() is None
    assert "loss_equal_flops" not in comparison.table()
    assert "video distance" not in markdown(comparison)


def test_a_claim_is_judged_by_its_side(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    (claim,) = comparison.claims()
    answers = comparison.decide(claim)
    assert answers[LOSS][1] == "agrees"
    assert answers[DISTANCE][1] == "agrees"
    early = comparison.difference("compression", loss_at(0.25))
    assert early.mean == pytest.approx(1.75 * 0.06)


def test_a_claim_may_be_about_two_rows_that_are_no_baseline(tmp_path):
    rows = {"uniform": {}, "narrow": {"model.net.mlp_ratio": 2.0}, "flow": FLOW, "slow flow": FLOW | {"model.lr": 0.02}}
    claims = [
        {"row": "narrow", "side": "worse"},
        {"row": "slow flow", "side": "better", "than": "flow", "text": "slow is better"},
        {"row": "slow flow", "side": "better", "than": "narrow"},
    ]
    study, trials = study_in(tmp_path, rows=rows, claims=claims, **SEEDS)
    losses = {"uniform": 0.5, "narrow": 0.4, "flow": 0.3, "slow flow": 0.2}
    for trial in trials:
        fabricate(trial, losses[trial.row] + 0.01 * trial.seed)
        if "flow" in trial.row:
            result = json.loads(trial.result.read_text())
            result["held_out"] |= {"hash": "a" * 64, "objective": "RectifiedFlow"}
            trial.result.write_text(json.dumps(result))
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    worse, better, other = (comparison.decide(claim)[LOSS] for claim in comparison.claims())
    assert worse[1] == "disagrees"
    assert better[1] == "agrees"
    assert better[0].mean == pytest.approx(-0.1)
    assert other == (None, "not measured")
    text = markdown(comparison)
    assert "- slow flow against flow: slow is better. held-out loss: **agrees** (-0.1000" in text
    assert "- slow flow against narrow: better. held-out loss: **not measured** (the loss of RectifiedFlow" in text


@pytest.mark.parametrize(("late", "answer"), [(0.01, "agrees"), (0.5, "disagrees")])
def test_a_difference_that_narrows_is_seen(late, answer, tmp_path):
    study, trials = study_in(tmp_path, claims=[{"row": "compression", "side": "narrows", "at": 0.25}], **SEEDS)
    for trial in trials:
        extra = trial.row == "compression"
        points = [(4, 1.0 + 0.1 * extra), (16, 0.5 + late * extra + 0.001 * trial.seed * extra)]
        fabricate(trial, points[-1][1], curves={"val/loss": points})
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    ((difference, verdict),) = comparison.decide(comparison.claims()[0]).values()
    assert verdict == answer
    assert difference.mean == pytest.approx(0.1 - late - 0.001, abs=1e-9)


def test_pairing_is_worth_what_the_seeds_share(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    (gain,) = comparison.pairing_gain(LOSS)
    assert gain > 4
    assert f"over that of the paired ones: {gain:.2f} for the held-out loss" in markdown(comparison)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clips": 128}, "cannot mix budgets in clips"),
        ({"held_out": {"loss": 0.3, "hash": "0" * 64}}, "cannot mix held-out protocols"),
        ({"distance": None}, "cannot mix distance protocols"),
    ],
)
def test_what_was_measured_otherwise_does_not_share_a_table(changes, said, finished):
    study, root = finished
    trial = next(trial for trial in trials_of(root.parent.parent) if trial.row == "compression")
    fabricate(trial, 0.36, **{"distance": 36.0, **changes})
    with pytest.raises(ValueError, match=said):
        Comparison.load(study, "proxy", root)


FLOW = {"model.diffusion": "latte_pl.diffusion.RectifiedFlow", "model.net.learn_sigma": False}
FLOW |= {"model.sampling.sampler": "euler", "model.sampling.steps": 2}


def objectives(folder, **of_flow):
    """Fabricate a study with a row of another objective, whose loss and samples are of another kind."""
    study, trials = study_in(folder, rows={"uniform": {}, "flow": FLOW}, **SEEDS)
    for trial in trials:
        flow = trial.row == "flow"
        fabricate(trial, 0.7 if flow else 0.3, 50.0 + trial.seed if flow else 100.0)
        if flow:
            result = json.loads(trial.result.read_text())
            result["held_out"] |= {"hash": "a" * 64, "objective": "RectifiedFlow"} | of_flow
            result["distance"]["protocol_hash"] = "b" * 64
            result["distance"]["stated"]["sampler"] = "euler"
            trial.result.write_text(json.dumps(result))
    return study, folder / "runs/ablations"


def test_a_row_of_another_objective_is_compared_by_the_distance_alone(tmp_path):
    study, root = objectives(tmp_path)
    comparison = Comparison.load(study, "proxy", root)
    assert comparison.difference("flow", MEASURES[LOSS]) is None
    assert comparison.difference("flow", MEASURES[DISTANCE]).mean == pytest.approx(-49.0)
    claim = Claim(row="flow", side="better")
    assert [verdict for _, verdict in comparison.decide(claim).values()] == ["not measured", "agrees"]
    shown = shown_table(comparison).set_index("row").loc["flow"]
    assert shown["loss"] == "0.7000 ± 0.0000 (RectifiedFlow)"
    assert "loss_diff" not in shown  # no row has one
    text = markdown(comparison)
    assert "the distance alone compares it. flow: samples of euler, 2 steps." in text
    whole = page(comparison, shown_table(comparison), [])
    assert "the loss of RectifiedFlow is of another kind" in whole


def test_a_row_of_another_objective_shares_all_else(tmp_path):
    study, root = objectives(tmp_path, interval=7)
    with pytest.raises(ValueError, match="cannot mix held-out protocols"):
        Comparison.load(study, "proxy", root)


def test_every_pair_of_results_is_compared(tmp_path):
    """A row of its own objective in front hides no mixture behind it."""
    study, trials = study_in(tmp_path, rows={"flow": FLOW, "uniform": {}, "compression": {}} | ROWS, **SEEDS)
    for trial in trials:
        digest = {"flow": "a", "uniform": "f", "compression": "9"}[trial.row] * 64
        fabricate(trial, 0.3, held_out={"loss": 0.3, "hash": digest, "objective": digest[:3], "clips": 6})
    with pytest.raises(ValueError, match=r"cannot mix held-out protocols.*uniform.*compression"):
        Comparison.load(study, "proxy", tmp_path / "runs/ablations")


def test_a_length_that_was_chosen_is_told(finished):
    study, root = finished
    for trial in trials_of(root.parent.parent):
        if trial.row == "compression":
            result = json.loads(trial.result.read_text())
            result["average"] = {"lengths": {"0.1": 0.4}, "ema": 0.45, "best": 0.1, "step": trial.steps}
            trial.result.write_text(json.dumps(result))
    said = markdown(Comparison.load(study, "proxy", root))
    assert "compression: lengths of the average 0.1, 0.1, 0.1, chosen by the held-out loss" in said
    assert "without the choice 0.4500" in said


def test_a_failed_cell_says_so_and_is_no_zero(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        if trial.row == "uniform":
            fabricate(trial, 0.5, 10.0)
        elif trial.seed < 2:
            fail(trial, "the loss is nan at step 7")
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    shown = shown_table(comparison).set_index("row").loc["compression"]
    assert shown["seeds"] == "0, 2 FAILED: the loss is nan at step 7, 1 not run"
    assert shown["loss"] == shown["distance"] == "FAILED"
    assert "not measured" in markdown(comparison)


def test_one_failed_seed_leaves_the_others(finished):
    study, root = finished
    trial = next(t for t in trials_of(root.parent.parent) if (t.row, t.seed) == ("compression", 1))
    trial.result.unlink()
    fail(trial, "killed")
    comparison = Comparison.load(study, "proxy", root)
    assert comparison.difference("compression", lambda r: r["held_out"]["loss"]).n == 2
    assert "2, 1 FAILED: killed" in markdown(comparison)


def test_the_report_writes_every_form(finished, tmp_path, capsys):
    _, root = finished
    output = tmp_path / "reports"
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path / "study.yaml"), "--root", str(root), "--output", str(output)])
    assert stop.value.code == 0
    text = (output / "study.md").read_text()
    assert text in capsys.readouterr().out
    assert "+0.0600 ± 0.0248" in text
    assert "held-out loss: **agrees**" in text
    with (output / "study.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert float(rows["compression"]["loss"]) == pytest.approx(0.41)
    tex = (output / "study.tex").read_text()
    assert tex.count(r"\\") == 3
    assert r"$\pm$" in tex
    page = (output / "study.html").read_text()
    assert page.count("<svg") == 3  # curves, and bars of both measures
    assert "FAILED" not in page
    assert not re.search(r'(src|href)="http', page)
    events = EventAccumulator(str(output / "tensorboard/study/compression/seed=1")).Reload()
    assert [event.value for event in events.Scalars("val/loss")][-1] == pytest.approx(0.45)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_percent_sign_is_escaped_for_latex(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    comparison.results["95 % of_it"] = comparison.results.pop("compression")
    comparison.errors["95 % of_it"] = {}
    assert r"95 \% of\_it" in latex(comparison)


def test_a_row_of_any_name_and_error_leaves_the_tables_whole(tmp_path):
    rows = {"uniform": {}, "a|b [c] <i>": {"model.net.depth": 3}}
    study, trials = study_in(tmp_path, rows=rows, **SEEDS)
    for trial in trials:
        if trial.row == "uniform":
            fabricate(trial, 0.5)
        else:
            fail(trial, "cannot open [/data/x|y.pt] <b>")
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    page_text = page(comparison, shown_table(comparison), [])
    assert "<i>" not in page_text
    assert "&lt;b&gt;" in page_text
    console = Console(record=True, width=200)
    console.print(table([(trial, "FAILED") for trial in trials]))
    assert "cannot open [/data/x|y.pt]" in console.export_text()


def test_a_report_of_nothing_is_one_line(tmp_path, capsys):
    path = write_study(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(path), "--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    assert "has no results at scale proxy; run `latte-ablate run study` first" in capsys.readouterr().err


def test_an_edited_study_keeps_its_results_and_counts_those_that_are_its_own(finished, tmp_path, capsys):
    _, root = finished
    args = ["--root", str(root)]
    cli.keep_manifest(finished[0], "proxy", root, [trial.hash for trial in trials_of(tmp_path)])
    rows = {"uniform": {}, "compression": {"model.net.patch_embed": "compression", "model.net.temporal_stride": 4}}
    path = write_study(tmp_path, rows=rows, **SEEDS)
    with pytest.raises(SystemExit):
        cli.main(["status", str(path), *args])
    said = capsys.readouterr().out
    assert said.count("finished") == 3
    assert said.count("pending") == 3
    assert "3 results are of settings or seeds that are not the study's" in " ".join(said.split())
    comparison = Comparison.load(cli.read(path), "proxy", root)
    assert {row: len(results) for row, results in comparison.results.items()} == {"uniform": 3, "compression": 0}
