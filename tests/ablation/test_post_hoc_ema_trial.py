"""A trial with EMA snapshots: trained, interrupted before its measurement, and measured at its best length."""

import json

import pytest
from studies import result_of, trials_of, write_study

from latte_pl import cli
from latte_pl.ablation import worker
from latte_pl.ablation.results import collect
from latte_pl.ablation.worker import work
from latte_pl.files import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A trial that was interrupted between training and measurement, and the commands that ran after that."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, rows={"uniform": {}, "averaged": {"model.ema_snapshot_every": 4}}, claims=[])
    with pytest.MonkeyPatch.context() as patch:
        trial = trials_of(folder)[1]
        ran = []
        patch.setattr(worker, "run", lambda command, *_: (ran.append(command[0]), cli.main(list(command))))
        cli.main(list(trial.commands[0]))
        work(trial, threads=1)
    return trial, ran


def test_interrupted_trial_is_measured(finished):
    trial, ran = finished
    assert ran == ["fit", "average"]
    assert (trial.path / "averages/best.safetensors").is_file()


def test_held_out_loss_is_that_of_the_best_length(finished):
    trial, _ = finished
    result = result_of(trial)
    losses = result["post_hoc_ema"]["sigma_rels"]
    assert result["held_out"]["loss"] == min(losses.values()) == losses[f"{result['post_hoc_ema']['best']:g}"]
    assert result["curves"]["val/loss"][-1] == [trial.steps, result["post_hoc_ema"]["ema"]]
    assert result["held_out"]["weights"] == "ema"
    assert result["distance"] is None
    assert result["settings"] == {"model.ema_snapshot_every": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 12}, "averages of step 12, not of its last step 16"),
        ({"sigma_rels": {"0.1": float("nan")}}, "is nan"),
    ],
)
def test_incomplete_measurement_is_refused(finished, change, message):
    trial, _ = finished
    path = trial.path / "averages/sigma_rels.json"
    before = path.read_text()
    path.write_text(json.dumps(read_json(path) | {"best": 0.1} | change))
    try:
        with pytest.raises(ValueError, match=message):
            collect(trial, 1.0)
        path.unlink()
        with pytest.raises(ValueError, match=r"sigma_rels\.json is missing"):
            collect(trial, 1.0)
    finally:
        path.write_text(before)
