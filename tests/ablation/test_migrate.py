"""Results of earlier versions are found again under the names of today."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from studies import fabricate, result_of, shipped_trials, study_in, trials_of

from latte_pl.ablation import cli
from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.migrate import earlier_names
from latte_pl.ablation.study import read
from latte_pl.ablation.trial import locked
from latte_pl.metrics.protocol import EvaluationProtocol, canonical_json

with Path(__file__).with_name("earlier_hashes.csv").open() as file:
    EARLIER = {
        (line["study"], line["scale"], line["row"], int(line["seed"])): line["hash"] for line in csv.DictReader(file)
    }
STUDIES_OF_0_1 = sorted(Path(__file__).with_name("version_0_1").glob("*.yaml"))
STATED = {
    "name": "embedded-256-8f",
    "metrics": ["embedded_video_distance", "embedded_kernel_distance"],
    "dataset": "Shapes",
    "fingerprint": "4",
    "split": "val",
    "interval": 2,
    "num_frames": 8,
    "height": 64,
    "width": 64,
    "resize": "none",
    "view": "first",
    "num_real": 256,
    "real_seed": 0,
    "extractor": "shapes_r3d",
    "extractor_sha256": "0",
    "num_generated": 256,
    "generated_interval": 1,
    "weights": "ema",
    "sampler": "ddim",
    "steps": 2,
    "eta": 0.0,
    "guidance": 1.0,
    "guidance_interval": [0.0, 1000.0],
    "labels": "cycle",
    "precision": "32-true",
    "seed": 0,
    "folds": 8,
}


@pytest.mark.parametrize("path", STUDIES_OF_0_1, ids=lambda path: path.stem)
def test_hashes_of_version_0_1_are_computed(path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])  # the scales name their configs from there
    study = read(path)
    for scale in study.scales:
        trials = shipped_trials(path, scale)
        names = earlier_names(study, scale, trials)
        known = {trial.hash: EARLIER.get((study.name, scale, trial.row, trial.seed)) for trial in trials}
        assert names == known


@pytest.fixture
def earlier(tmp_path):
    """A study with results as version 0.1 wrote them: the study, its trials, and their names of then."""
    rows = {"uniform": {}, "averaged": {"model.ema_snapshot_every": 4}}
    study, trials = study_in(tmp_path, rows=rows, scale={"protocol": "toy-256-8f"})
    names = earlier_names(study, "proxy", trials)
    for trial in trials:
        fabricate(trial, 0.5, 10.0)
        result = result_of(trial) | {"hash": names[trial.hash]}
        result["commands"][0] = [part.replace("TrialMonitor", "Watch") for part in result["commands"][0]]
        protocol = {"data": "Shapes", "clips": 6, "codec": "pixels", "objective": "GaussianDiffusion", "interval": 3}
        result["held_out"] = protocol | {"loss": 0.5, "hash": "0" * 64}
        result["curves"]["val/embedded_video_distance"] = [[16, 10.0]]
        result["distance"] |= {"metric": "embedded_video_distance", "protocol": "embedded-256-8f", "stated": STATED}
        if trial.row == "averaged":
            result["settings"] = {"model.average_every": 4}
            result["average"] = {"lengths": {"0.1": 0.5}, "ema": 0.6, "best": 0.1, "step": 16}
        trial.result.write_text(json.dumps(result))
        trial.path.rename(trial.path.with_name(names[trial.hash]))
    return study, trials, names


def run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["migrate", str(tmp_path / "study.yaml"), "--root", str(tmp_path / "runs/ablations")])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_migrated_results_are_found_under_the_names_of_today(earlier, tmp_path, capsys):
    study, trials, names = earlier
    assert "2 trials moved, 0 kept" in run(tmp_path, capsys)
    comparison = Comparison.load(study, "proxy", tmp_path / "runs/ablations")
    assert {row: list(results) for row, results in comparison.results.items()} == {"uniform": [0], "averaged": [0]}
    for trial in trials:
        assert not trial.path.with_name(names[trial.hash]).exists()
        text, result = trial.result.read_text(), result_of(trial)
        for word in ("embedded", "codec", "Watch", "average_every", "lengths", names[trial.hash]):
            assert word not in text
        assert result["commands"] == [list(command) for command in trial.commands]
        assert result["settings"] == trial.expected
        assert result["held_out"]["loss"] == result["curves"]["val/loss"][-1][1] == 0.5
        protocol = {key: value for key, value in result["held_out"].items() if key not in ("hash", "loss")}
        assert result["held_out"]["hash"] == hashlib.sha256(canonical_json(protocol).encode()).hexdigest()
        distance = result["distance"]
        assert (distance["metric"], distance["value"]) == ("toy_video_distance", 10.0)
        assert distance["protocol_hash"] == EvaluationProtocol.from_dict(distance["stated"]).hash
        assert result["curves"]["val/toy_video_distance"] == [[16, 10.0]]
    assert result_of(trials[1])["post_hoc_ema"]["sigma_rels"] == {"0.1": 0.5}


def test_second_migration_changes_nothing(earlier, tmp_path, capsys):
    run(tmp_path, capsys)
    before = [trial.result.read_bytes() for trial in earlier[1]]
    assert run(tmp_path, capsys) == "0 trials moved, 0 kept\n"
    assert [trial.result.read_bytes() for trial in earlier[1]] == before


def test_interrupted_migration_is_completed(earlier, tmp_path, capsys, monkeypatch):
    _, trials, names = earlier
    monkeypatch.setattr("os.rename", lambda *args: (_ for _ in ()).throw(OSError("interrupted")))
    with pytest.raises(SystemExit):
        cli.main(["migrate", str(tmp_path / "study.yaml"), "--root", str(tmp_path / "runs/ablations")])
    monkeypatch.undo()
    assert trials[0].path.with_name(names[trials[0].hash]).is_dir()
    capsys.readouterr()
    assert "2 trials moved, 0 kept" in run(tmp_path, capsys)
    assert [result_of(trial)["distance"]["metric"] for trial in trials] == ["toy_video_distance"] * 2


def test_no_folder_is_overwritten_and_no_running_trial_is_moved(earlier, tmp_path, capsys):
    _, (uniform, averaged), names = earlier
    fabricate(uniform, 0.25)
    folders = [trial.path.with_name(names[trial.hash]) for trial in (uniform, averaged)]
    with locked(folders[1]):
        text = run(tmp_path, capsys)
    assert "0 trials moved, 2 kept" in text
    assert "(a folder of this name exists)" in text
    assert "(it is running)" in text
    assert result_of(uniform)["held_out"]["loss"] == 0.25
    assert all((folder / "result.json").is_file() for folder in folders)


def test_results_of_an_edited_study_stay_known(earlier, tmp_path, capsys):
    _, trials, names = earlier
    manifest = tmp_path / "runs/ablations/studies/study.proxy.txt"
    manifest.write_text("\n".join([*names.values(), "0123456789ab"]))
    run(tmp_path, capsys)
    assert not manifest.exists()
    hashes = json.loads(manifest.with_suffix(".json").read_text())["hashes"]
    assert set(hashes) == {trial.hash for trial in trials} | {"0123456789ab"}
    assert trials_of(tmp_path) == trials
