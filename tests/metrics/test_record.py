import json
import subprocess
import sys

import pytest

from latte_pl.cli import main
from latte_pl.metrics import EvaluationProtocol, Interval, Record, Score, table, text


def protocol(**values):
    given = {
        "dataset": "shapes",
        "fingerprint": "f" * 64,
        "interval": 1,
        "height": 32,
        "width": 48,
        "resize": "none",
        "extractor_sha256": "e" * 64,
        "sampler": "heun",
        "steps": 20,
        "eta": 0.0,
        "guidance": 1.0,
        "guidance_interval": [0, 1000],
        "labels": "cycle",
        "precision": "32",
    }
    return EvaluationProtocol.load("toy-256-8f", **given | values)


def record(model="a", value=1.0, **values):
    scores = {"toy_video_distance": Score(value, "full", Interval(0.5, 1.5, "8-fold jackknife", 0.95))}
    scores["toy_kernel_distance"] = Score(0.25, "smoke")
    return Record.make(model, scores, protocol(**values), 2.0, device="cpu")


def test_record_round_trip(tmp_path):
    path = tmp_path / "results" / "r.json"
    written = record()
    written.write(path)
    assert Record.read(path) == written
    data = json.loads(path.read_text())
    assert data["protocol_hash"] == protocol().hash
    assert (data["weights"], data["sampler"], data["seed"], data["wall_time_s"]) == ("ema", "heun", 0, 2.0)
    assert data["versions"]["torch"]
    assert data["about"] == {"device": "cpu"}
    assert data["scores"]["toy_video_distance"]["interval"]["low"] == 0.5
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_modified_records_and_other_files_raise(tmp_path):
    path = tmp_path / "r.json"
    record().write(path)
    data = json.loads(path.read_text())
    data["protocol"]["steps"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was modified"):
        Record.read(path)
    with pytest.raises(FileNotFoundError, match=r"there is no record .*none\.json"):
        Record.read(tmp_path / "none.json")
    for content in ("{", "{}", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="is not a record of an evaluation"):
            Record.read(path)


def test_records_of_different_protocols_cannot_share_a_table():
    for function in (table, text):
        with pytest.raises(ValueError, match=r"cannot share a table: steps 20 / 50"):
            function([record("a"), record("b"), record("c", steps=50)])
    with pytest.raises(ValueError, match="at least one"):
        table([])


def test_table_has_values_intervals_and_labels():
    frame = table([record("a", 1.0), record("b", 2.0)])
    assert frame["model"].tolist() == ["a", "b"]
    assert frame["toy_video_distance"].tolist() == [1.0, 2.0]
    assert frame["toy_video_distance_low"].tolist() == [0.5, 0.5]
    assert frame["toy_video_distance_label"].tolist() == ["full", "full"]
    assert set(frame["protocol_hash"]) == {protocol().hash}


def test_text_shows_the_protocol_and_a_line_a_record():
    lines = text([record("first", 1.0), record("second_model", 2.0)]).splitlines()
    assert lines[0].startswith(f"toy-256-8f ({protocol().hash[:12]}): 256 real clips of shapes (val)")
    assert lines[1] == "ema weights, heun, 20 steps, guidance 1, labels cycle, seed 0, precision 32, no lossy files"
    assert [line.split() for line in lines[3:6]] == [
        ["model", "toy_video_distance", "toy_kernel_distance"],
        ["first", "1", "[0.5,", "1.5]", "0.25", "smoke"],
        ["second_model", "2", "[0.5,", "1.5]", "0.25", "smoke"],
    ]
    assert "[low, high]: 95% interval (8-fold jackknife) of the value at these numbers of clips" in lines
    assert lines[-1].startswith("smoke: there are not more distinct clips than features")


def test_compare_prints_records_of_one_protocol(tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.json") for name in "abc"]
    for path, steps in zip(paths, (20, 20, 50)):
        record(path, steps=steps).write(path)
    main(["compare", *paths[:2]])
    assert capsys.readouterr().out == text([Record.read(path) for path in paths[:2]]) + "\n"  # nothing is published
    for arguments, message in (
        (paths, "cannot share a table: steps 20 / 50"),
        (["none.json"], "there is no record none.json"),
        ([], "records"),
    ):
        with pytest.raises(SystemExit):
            main(["compare", *arguments])
        error = capsys.readouterr().err
        assert error.startswith("latte: error: ")
        assert message in error


def test_importing_metrics_loads_no_heavy_package():
    code = "import sys, latte_pl.metrics; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {"torch", "lightning", "torchmetrics", "torchvision", "scipy", "pandas", "cleanfid", "matplotlib", "PIL"}
    assert "latte_pl.metrics" in loaded
    assert not loaded & heavy
