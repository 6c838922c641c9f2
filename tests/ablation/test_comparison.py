"""Comparisons, tables and reports: what they contain, what they refuse, and how they show failed trials."""

import csv
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from studies import ROWS, fabricate, result_of, study_in, trials_of, write_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latte_pl.ablation import cli
from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.measures import DISTANCE, LOSS, MOTION
from latte_pl.ablation.page import page
from latte_pl.ablation.progress import table
from latte_pl.ablation.study import Claim, read
from latte_pl.ablation.tables import latex, markdown, published_rows, shown_rows
from latte_pl.ablation.verdicts import answers
from latte_pl.ablation.worker import write_failure
from latte_pl.files import write_json
from latte_pl.profiling.cost import count_cost
from latte_pl.training.weights import outline

SEEDS = {"scale": {"seeds": [0, 1, 2]}}
BASE = {0: 0.30, 1: 0.40, 2: 0.35}
STUDIES = sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml"))
WORSE = {0: 0.06, 1: 0.05, 2: 0.07}


@pytest.fixture
def finished(tmp_path):
    """A finished study of two rows and three seeds; the second row is worse and costs half."""
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        row = trial.row == "compression"
        loss = BASE[trial.seed] + row * WORSE[trial.seed]
        fabricate(trial, loss, 100 * loss + trial.seed * row, 1.0 - loss, flops=0.5e9 if row else 1e9)
    return study, tmp_path / "runs/ablations"


def edit(trial, **parts):
    """Update sections of a fabricated result."""
    result = json.loads(trial.result.read_text())
    for name, values in parts.items():
        result[name] = result.get(name, {}) | values
    trial.result.write_text(json.dumps(result))


def test_row_has_its_mean_and_its_paired_difference(finished):
    lines = Comparison.load(finished[0], "proxy", finished[1]).table().set_index("row")
    line = lines.loc["compression"]
    assert line["held_out_loss"] == pytest.approx(0.41)
    assert line["held_out_loss_diff"] == pytest.approx(0.06)
    assert line["held_out_loss_diff_half"] == pytest.approx(4.302653 * 0.01 / 3**0.5)
    assert line["video_distance_diff"] == pytest.approx(7.0)
    assert line["motion_accuracy_diff"] == pytest.approx(-0.06)
    assert line["seeds"] == 3
    assert lines.isna().loc["uniform", "held_out_loss_diff"]


def test_speed_and_memory_of_different_devices_are_not_in_one_table(finished):
    study, root = finished
    assert "clips/s" in markdown(Comparison.load(study, "proxy", root))
    edit(Comparison.load(study, "proxy", root).trials[0], cost={"device": "a GPU", "clips_per_second": 1000.0})
    text = markdown(Comparison.load(study, "proxy", root))
    assert "clips/s |" not in text
    assert "peak memory |" not in text
    assert "a GPU, 1 thread(s); a processor, 1 thread(s)" in text


def test_equal_flops_reads_the_expensive_row_earlier(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    assert comparison.cheapest() == 3 * 0.5e9 * 64
    assert (comparison.equal_flops_step("uniform"), comparison.equal_flops_step("compression")) == (8, 16)
    # the loss falls in a straight line from twice its end: after half of the training it is 1.5 times its end
    line = comparison.table().set_index("row").loc["compression"]
    assert line["loss_at_equal_flops_diff"] == pytest.approx(0.41 - 1.5 * 0.35)
    assert line["loss_at_equal_flops"] == pytest.approx(0.41)


def test_nothing_is_interpolated_where_the_loss_was_not_measured(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        fabricate(
            trial, 0.5, flops=1e9 if trial.row == "uniform" else 0.62e9
        )  # 9.92 of 16 steps; the curve has 8 and 12
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    line = comparison.table().set_index("row")
    assert line.loc["compression", "loss_at_equal_flops"] == 0.5
    assert line["loss_at_equal_flops"].isna()["uniform"]
    assert line["loss_at_equal_flops_diff"].isna().all()
    assert shown(comparison, "compression")["Δ loss at equal FLOPs"] == "baseline not measured (step 10)"


def test_training_measures_the_losses_that_the_tables_need(tmp_path):
    """One row costs about half; claims name early points; 64 steps have a loss every 4 steps."""
    claims = [
        {"row": "compression", "side": "narrows", "at": 0.15},
        {"row": "compression", "side": "worse", "at": 0.25},
    ]
    _, trials = study_in(tmp_path, claims=claims, scale={"clips": 256})
    points = {trial.row: trial.points for trial in trials}
    assert points["compression"] == (10,)  # 0.15 x 64; 16 is a regular point, and so is the end
    early, equal = points["uniform"]
    assert early == 10
    assert 32 < equal < 40


def test_steps_of_equal_flops_are_those_of_the_plan(tmp_path):
    study, trials = study_in(tmp_path, scale={"clips": 256})
    for trial in trials:
        fabricate(trial, 0.5, flops=_flops(trial))
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    assert "Values are measured exactly there, not interpolated.\n" in markdown(comparison)
    for trial in comparison.trials:
        trial.config["model"]["lr_schedule"] = "cosine"
    assert "not interpolated. The learning rate falls late" in markdown(comparison)
    (uniform,) = (trial for trial in trials if trial.row == "uniform")
    assert uniform.points == (comparison.equal_flops_step("uniform"),)


def _flops(trial):
    return count_cost(outline(trial.config), 0).forward_flops


def test_rows_of_equal_cost_have_no_column_at_equal_flops(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        fabricate(trial, 0.5)
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    assert comparison.cheapest() is None
    assert comparison.equal_flops_step("uniform") is None
    assert "loss_at_equal_flops" not in comparison.table()
    assert "video distance" not in markdown(comparison)


def test_verdict_follows_the_side_of_the_claim(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    ((loss, distance, motion),) = answers(comparison)
    assert (loss.verdict, distance.verdict, motion.verdict) == ("agrees", "agrees", "agrees")
    assert motion.test.difference.mean == pytest.approx(-0.06)  # a lower accuracy is worse
    early = comparison.difference("compression", LOSS.at(4))
    assert early.mean == pytest.approx(1.75 * 0.06)


def test_early_claim_is_tested_by_the_measures_that_have_a_value_there(tmp_path):
    claims = [{"row": "compression", "side": "worse", "at": at} for at in (0.25, 0.5)]
    study, trials = study_in(tmp_path, claims=claims, **SEEDS)
    for trial in trials:
        row = trial.row == "compression"
        fabricate(trial, BASE[trial.seed] + row * WORSE[trial.seed], 10.0, 0.8 - row * WORSE[trial.seed])
    quarter, half = answers(Comparison.load(study, "proxy", tmp_path / "runs/ablations"))
    assert [answer.test.measure for answer in quarter] == [LOSS]
    assert quarter[0].test.difference.mean == pytest.approx(1.75 * 0.06)
    assert [answer.test.measure for answer in half] == [LOSS, MOTION]
    assert half[1].test.difference.mean == pytest.approx(-0.5 * 0.06)


def shown(comparison, row):
    """Return the cells of a row as they are shown."""
    return next(cells for cells in shown_rows(comparison) if cells["row"] == row)


FLOW = {"model.diffusion": "latte_pl.diffusion.RectifiedFlow", "model.net.learn_sigma": False}
FLOW |= {"model.sampling.sampler": "euler", "model.sampling.steps": 2}


def test_claim_may_compare_two_rows_without_the_baseline(tmp_path):
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
            edit(trial, held_out={"hash": "a" * 64, "objective": "RectifiedFlow"})
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    (worse,), (better,), (other,) = answers(comparison)
    assert worse.verdict == "disagrees"
    assert better.verdict == "agrees"
    assert better.test.difference.mean == pytest.approx(-0.1)
    assert (other.verdict, other.p_page) == ("not measured", None)
    text = markdown(comparison)
    assert "| slow flow against flow: slow is better | held-out loss | -0.1000 ± 0.0000 (n = 3) |" in text
    assert "| slow flow against narrow: better | held-out loss | the loss of RectifiedFlow is not comparable |" in text


@pytest.mark.parametrize(("late", "answer"), [(0.01, "agrees"), (0.5, "disagrees")])
def test_narrowing_difference_is_found(late, answer, tmp_path):
    study, trials = study_in(tmp_path, claims=[{"row": "compression", "side": "narrows", "at": 0.25}], **SEEDS)
    for trial in trials:
        extra = trial.row == "compression"
        points = [(4, 1.0 + 0.1 * extra), (16, 0.5 + late * extra + 0.001 * trial.seed * extra)]
        fabricate(trial, points[-1][1], curves={"val/loss": points})
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    ((found,),) = answers(comparison)
    assert found.verdict == answer
    assert found.test.difference.mean == pytest.approx(0.1 - late - 0.001, abs=1e-9)
    assert "tested on signed mean differences" in markdown(comparison)


def test_report_says_how_much_pairing_helps(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    (gain,) = comparison.pairing_gain(LOSS)
    assert gain > 4
    assert f"over that of the paired one: {gain:.2f} for the held-out loss" in markdown(comparison)


# ------------------------------------------------------------------------------------- what cannot share a table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": 128}, "different budgets in clips cannot share a table"),
        ({"held_out": {"loss": 0.3, "hash": "0" * 64}}, "different held-out protocols cannot share a table"),
        ({"distance": None}, "different distance protocols cannot share a table"),
    ],
)
def test_results_measured_differently_cannot_share_a_table(changes, message, finished):
    study, root = finished
    trial = next(trial for trial in trials_of(root.parent.parent) if trial.row == "compression")
    fabricate(trial, 0.36, **{"distance": 36.0, **changes})
    with pytest.raises(ValueError, match=message):
        Comparison.load(study, "proxy", root)


def objectives(folder, **held_out):
    """Fabricate a study with a row of another objective, whose loss and sampler differ."""
    study, trials = study_in(folder, rows={"uniform": {}, "flow": FLOW}, **SEEDS)
    for trial in trials:
        flow = trial.row == "flow"
        fabricate(trial, 0.7 if flow else 0.3, 50.0 + trial.seed if flow else 100.0)
        if flow:
            edit(trial, held_out={"hash": "a" * 64, "objective": "RectifiedFlow"} | held_out)
            stated = json.loads(trial.result.read_text())["distance"]["stated"]
            edit(trial, distance={"protocol_hash": "b" * 64, "stated": stated | {"sampler": "euler"}})
    return study, folder / "runs/ablations"


def test_row_with_another_objective_is_compared_only_by_the_distance(tmp_path):
    study, root = objectives(tmp_path)
    comparison = Comparison.load(study, "proxy", root)
    assert not comparison.comparable(LOSS, "flow")
    assert comparison.difference("flow", DISTANCE.value).mean == pytest.approx(-49.0)
    loss, distance = comparison.tests(Claim(row="flow", side="better"))
    assert (loss.difference, loss.why) == (None, "the loss of RectifiedFlow is not comparable")
    assert distance.favours
    cells = shown(comparison, "flow")
    assert cells["held-out loss"] == "0.7000 ± 0.0000 (RectifiedFlow)"
    assert "Δ loss" not in cells  # no row has one
    assert "is not comparable; the other measures are. flow: samples of euler, 2 steps." in markdown(comparison)
    assert "the loss of RectifiedFlow is not comparable" in page(comparison)


def test_row_with_another_objective_must_share_all_else(tmp_path):
    study, root = objectives(tmp_path, interval=7)
    with pytest.raises(ValueError, match="different held-out protocols"):
        Comparison.load(study, "proxy", root)


def test_every_pair_of_results_is_compared(tmp_path):
    study, trials = study_in(tmp_path, rows={"flow": FLOW, "uniform": {}, "compression": {}} | ROWS, **SEEDS)
    for trial in trials:
        digest = {"flow": "a", "uniform": "f", "compression": "9"}[trial.row] * 64
        fabricate(trial, 0.3, held_out={"loss": 0.3, "hash": digest, "objective": digest[:3], "clips": 6})
    with pytest.raises(ValueError, match=r"different held-out protocols.*uniform.*compression"):
        Comparison.load(study, "proxy", tmp_path / "runs/ablations")


# ------------------------------------------------------------------------------------------------------- reports


def test_report_names_chosen_ema_lengths(finished):
    study, root = finished
    for trial in trials_of(root.parent.parent):
        if trial.row == "compression":
            edit(trial, post_hoc_ema={"sigma_rels": {"0.1": 0.4}, "ema": 0.45, "best": 0.1, "step": trial.steps})
    text = markdown(Comparison.load(study, "proxy", root))
    assert "compression: EMA lengths (sigma_rel) 0.1, 0.1, 0.1, chosen by the held-out loss" in text
    assert "EMA of the training: 0.4500" in text


def test_failed_row_says_failed(tmp_path):
    study, trials = study_in(tmp_path, **SEEDS)
    for trial in trials:
        if trial.row == "uniform":
            fabricate(trial, 0.5, 10.0)
        elif trial.seed < 2:
            write_failure(trial, "the loss is nan at step 7")
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    cells = shown(comparison, "compression")
    assert cells["seeds"] == "0, 2 FAILED: the loss is nan at step 7, 1 not run"
    assert cells["held-out loss"] == cells["video distance"] == "FAILED"
    assert "not measured" in markdown(comparison)


def test_failed_seed_leaves_the_other_seeds(finished):
    study, root = finished
    trial = next(t for t in trials_of(root.parent.parent) if (t.row, t.seed) == ("compression", 1))
    trial.result.unlink()
    write_failure(trial, "killed")
    comparison = Comparison.load(study, "proxy", root)
    assert comparison.difference("compression", LOSS.value).n == 2
    assert "2, 1 FAILED: killed" in markdown(comparison)


def test_report_writes_every_form(finished, tmp_path, capsys):
    _, root = finished
    output = tmp_path / "reports"
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(tmp_path / "study.yaml"), "--root", str(root), "--output", str(output)])
    assert stop.value.code == 0
    text = (output / "study.md").read_text()
    assert text in capsys.readouterr().out
    assert "+0.0600 ± 0.0248" in text
    assert "Here: Of 1 claim, 1 agrees." in text
    # three tests: 3 x 0.0092
    assert "| held-out loss | +0.0600 ± 0.0248 (n = 3) | 0.009 | 0.027 |" in text
    with (output / "study.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert float(rows["compression"]["held_out_loss"]) == pytest.approx(0.41)
    tex = (output / "study.tex").read_text()
    assert tex.count(r"\\") == 3
    assert r"$\pm$" in tex
    html = (output / "study.html").read_text()
    assert html.count("<svg") == 5  # bars of all measures, and curves of those that have one
    assert "FAILED" not in html
    assert not re.search(r'(src|href)="http', html)
    events = EventAccumulator(str(output / "tensorboard/study/compression/seed=1")).Reload()
    assert [event.value for event in events.Scalars("val/loss")][-1] == pytest.approx(0.45)
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_latex_is_escaped(finished):
    comparison = Comparison.load(finished[0], "proxy", finished[1])
    comparison.results["95 % of_it"] = comparison.results.pop("compression")
    comparison.errors["95 % of_it"] = {}
    text = latex(comparison)
    assert r"95 \% of\_it" in text
    assert r"$\Delta$ loss" in text


def test_markup_in_names_and_errors_is_escaped(tmp_path):
    rows = {"uniform": {}, "a|b [c] <i>": {"model.net.depth": 3}}
    study, trials = study_in(tmp_path, rows=rows, **SEEDS)
    for trial in trials:
        if trial.row == "uniform":
            fabricate(trial, 0.5)
        else:
            write_failure(trial, "cannot open [/data/x|y.pt] <b>")
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    html = page(comparison)
    assert "<i>" not in html
    assert "&lt;b&gt;" in html
    console = Console(record=True, width=200)
    console.print(table([(trial, "FAILED") for trial in trials]))
    assert "cannot open [/data/x|y.pt]" in console.export_text()


def test_report_without_results_is_one_line(tmp_path, capsys):
    path = write_study(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(path), "--root", str(tmp_path / "root")])
    assert stop.value.code == 2
    assert "has no results at scale proxy; run `latte-ablate run study` first" in capsys.readouterr().err


def test_status_counts_results_of_the_study_before_it_was_edited(finished, tmp_path, capsys):
    _, root = finished
    rows = {"uniform": {}, "compression": {"model.net.patch_embed": "compression", "model.net.temporal_stride": 4}}
    path = write_study(tmp_path, rows=rows, **SEEDS)
    with pytest.raises(SystemExit):
        cli.main(["status", str(path), "--root", str(root)])
    text = capsys.readouterr().out
    assert text.count("finished") == 3
    assert text.count("pending") == 3
    assert "3 more results were made with settings or seeds that the study no longer has" in " ".join(text.split())
    comparison = Comparison.load(read(path), "proxy", root)
    assert {row: len(results) for row, results in comparison.results.items()} == {"uniform": 3, "compression": 0}


def test_changed_results_are_refused(finished):
    study, root = finished
    trial = trials_of(root.parents[1])[0]
    write_json(trial.result, result_of(trial))
    Comparison.load(study, "proxy", root)
    trial.result.write_text(trial.result.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(ValueError, match=f"{trial.result} was modified or damaged"):
        Comparison.load(study, "proxy", root)


def test_published_values_have_a_table_of_their_own(tmp_path):
    write_study(tmp_path, rows=ROWS, scale={"seeds": [0]})
    path = tmp_path / "study.yaml"
    path.write_text(path.read_text() + "published: {compression: Latte+IMG}\n")
    for trial in trials_of(tmp_path):
        fabricate(trial, 0.25, 20.0, 0.75)
    comparison = Comparison.load(read(path), "proxy", tmp_path / "runs/ablations")
    line = "| compression | UCF101 | FVD16 | 333.6 (quoted by Ca2-VDM Table 2) |"
    text = markdown(comparison)
    assert text.index("Published values, of other models") < text.index(line)
    assert "333.6" not in text[: text.index("Published values")]
    assert "<td>333.6 (quoted by Ca2-VDM Table 2)</td>" in page(comparison)
    path.write_text(path.read_text().replace("Latte+IMG", "Latte+IMAGES"))
    with pytest.raises(ValueError, match=r"there are no published values of Latte\+IMAGES"):
        markdown(Comparison.load(read(path), "proxy", tmp_path / "runs/ablations"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_name_systems_that_have_published_values(path):
    study = read(path)
    assert {row["row"] for row in published_rows(study)} == set(study.published)
