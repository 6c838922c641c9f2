"""A trial that keeps averages: trained, killed before its measurement, and collected at its best length."""

import json

import pytest
from studies import result_of, trials_of, write_study

from latte_pl import cli
from latte_pl.ablation import worker
from latte_pl.ablation.results import collect
from latte_pl.ablation.worker import work


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A trial whose process died between training and measuring, and that was then run again."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, rows={"uniform": {}, "averaged": {"model.average_every": 4}}, claims=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trial = trials_of(folder)[1]
        ran = []
        patch.setattr(worker, "run", lambda command, *_: (ran.append(command[0]), cli.main(list(command))))
        cli.main(list(trial.commands[0]))
        work(trial, threads=1)
    return trial, ran


def test_the_commands_go_on_after_a_kill(finished):
    trial, ran = finished
    assert ran == ["fit", "average"]
    assert (trial.path / "averages/best.safetensors").is_file()


def test_the_held_out_loss_is_that_of_the_best_length(finished):
    trial, _ = finished
    result = result_of(trial)
    lengths = result["average"]["lengths"]
    assert result["held_out"]["loss"] == min(lengths.values()) == lengths[f"{result['average']['best']:g}"]
    assert result["curves"]["val/loss"][-1] == [trial.steps, result["average"]["ema"]]
    assert result["held_out"]["weights"] == "ema"
    assert result["distance"] is None
    assert result["settings"] == {"model.average_every": 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"step": 12}, "averages of step 12, not of its last step 16"), ({"lengths": {"0.1": float("nan")}}, "is nan")],
)
def test_a_measurement_that_does_not_count_is_refused(finished, change, said):
    trial, _ = finished
    path = trial.path / "averages/lengths.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"best": 0.1} | change))
    try:
        with pytest.raises(ValueError, match=said):
            collect(trial, 1.0)
        path.unlink()
        with pytest.raises(ValueError, match=r"lengths\.json is missing"):
            collect(trial, 1.0)
    finally:
        path.write_text(before)
