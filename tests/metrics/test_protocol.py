import dataclasses
import json

import pytest
import yaml

from latte_pl.metrics import METRICS, Protocol, Record, Score, ShapesR3D, compare, table, text
from latte_pl.metrics.extractors import I3D_SHA256
from latte_pl.metrics.frechet import Interval
from latte_pl.metrics.protocol import FOLDER, shipped

OPEN = {
    "dataset": "shapes",
    "fingerprint": "f" * 64,
    "split": "val",
    "interval": 1,
    "height": 32,
    "width": 48,
    "resize": "none",
    "num_real": 64,
    "num_generated": 64,
    "generated_interval": 1,
    "extractor_sha256": "e" * 64,
    "sampler": "heun",
    "steps": 20,
    "eta": 0.0,
    "guidance": 1.0,
    "guidance_interval": [0, 1000],
    "labels": "cycle",
    "precision": "32",
}


def load(name, **values):
    """Fill in what a shipped file leaves open."""
    stated = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return Protocol.load(name, **{k: v for k, v in OPEN.items() if k not in stated} | values)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_protocol_loads_and_survives_a_round_trip(name):
    protocol = load(name)
    assert protocol.name == name
    assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_the_papers_protocol_is_the_papers():
    protocol = load("paper-fvd2048-16f")
    assert (protocol.num_real, protocol.num_generated, protocol.num_frames) == (2048, 2048, 16)
    assert (protocol.split, protocol.interval, protocol.height, protocol.width) == ("train", 3, 256, 256)
    assert (protocol.sampler, protocol.steps, protocol.weights) == ("ddpm", 250, "ema")
    assert (protocol.extractor, protocol.extractor_sha256) == ("i3d", I3D_SHA256)
    assert load("paper-fvd2048-16f-ucf101").guidance == 7


OTHER = {"metrics": ["embedded_kernel_distance"], "resize": "squash", "view": "random", "weights": "raw"}
OTHER |= {"labels": "uniform", "guidance_interval": [0, 500]}
KEYS = [f.name for f in dataclasses.fields(Protocol) if f.name not in ("name", "extractor")]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_counts_in_the_hash(key):
    protocol = load("embedded-256-8f")
    value = getattr(protocol, key)
    other = OTHER.get(key) or (value + "x" if isinstance(value, str) else value + 2)
    assert dataclasses.replace(protocol, **{key: other}).hash != protocol.hash


def test_hash_ignores_the_name_and_the_way_numbers_are_written():
    protocol = load("embedded-256-8f")
    assert dataclasses.replace(protocol, name="other", guidance=1).hash == protocol.hash


def test_only_the_reals_part_matters_to_the_reals():
    protocol = load("embedded-256-8f")
    assert dataclasses.replace(protocol, steps=7, seed=3).real_part() == protocol.real_part()
    assert dataclasses.replace(protocol, steps=7, seed=3).real_hash == protocol.real_hash
    assert dataclasses.replace(protocol, interval=2).real_part() != protocol.real_part()
    assert dataclasses.replace(protocol, interval=2).real_hash != protocol.real_hash


def test_contradicting_a_file_changes_the_name():
    protocol = load("paper-fvd2048-16f", steps=50, interval=3)
    assert protocol.name == "paper-fvd2048-16f+steps=50"
    assert protocol.steps == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, "unknown stpes; the keys are name, metrics"),
        ({"steps": "many"}, "steps is 'many'; it must be of type int"),
        ({"steps": True}, "must be of type int"),
        ({"weights": "best"}, "choose one of ema, raw, files"),
        ({"metrics": ["fvd"]}, "fvd is defined on i3d, not on shapes_r3d"),
        ({"metrics": ["fvd2"]}, "'fvd2' is none of fvd"),
        ({"metrics": "fvd"}, "list of names"),
        ({"metrics": []}, "names no metrics"),
        ({"interval": 0}, "interval must be 1 or more"),
        ({"folds": 1}, "nor folds 1"),
        ({"guidance_interval": [0]}, "it must be 2 numbers"),
        ({"guidance_interval": ["low", "high"]}, "must be of type float"),
    ],
)
def test_wrong_keys_are_refused(change, message):
    data = load("embedded-256-8f").to_dict()
    with pytest.raises(ValueError, match=message):
        Protocol.from_dict(data | change)


def test_missing_keys_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="missing dataset, fingerprint; a value depends on each"):
        Protocol.load("paper-fvd2048-16f")
    with pytest.raises(FileNotFoundError, match="paper-fvd2048-16f"):
        Protocol.load("paper")
    with pytest.raises(FileNotFoundError, match=r"mine\.yaml"):
        Protocol.load(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="no keys"):
        Protocol.load(tmp_path / "mine.yaml")
    data = load("embedded-256-8f").to_dict()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if k != "name"}))
    assert Protocol.load(tmp_path / "mine.yaml").name == "mine"
    assert Protocol.load(tmp_path / "mine.yaml").hash == load("embedded-256-8f").hash


def test_no_value_of_the_embedded_network_is_called_fvd():
    assert {extractor for metric, (_, extractor, _) in METRICS.items() if "fvd" in metric} == {"i3d"}
    assert ShapesR3D.name == "shapes_r3d"


def record(model="a", value=1.0, **values):
    scores = {"embedded_video_distance": Score(value, "full", Interval(0.5, 1.5, "8-fold jackknife", 0.95))}
    scores["embedded_kernel_distance"] = Score(0.25, "smoke")
    return Record.make(model, scores, load("embedded-256-8f", **values), 2.0, device="cpu")


def test_record_round_trip(tmp_path):
    path = tmp_path / "results" / "r.json"
    written = record()
    written.write(path)
    assert Record.read(path) == written
    data = json.loads(path.read_text())
    assert data["protocol_hash"] == load("embedded-256-8f").hash
    assert (data["weights"], data["sampler"], data["seed"], data["wall_time_s"]) == ("ema", "heun", 0, 2.0)
    assert data["versions"]["torch"]
    assert data["about"] == {"device": "cpu"}
    assert data["scores"]["embedded_video_distance"]["interval"]["low"] == 0.5
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


def test_altered_and_foreign_records_are_refused(tmp_path):
    path = tmp_path / "r.json"
    record().write(path)
    data = json.loads(path.read_text())
    data["protocol"]["steps"] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was altered"):
        Record.read(path)
    for content in ("{", "{}", "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="no result record"):
            Record.read(path)


def test_two_protocols_never_share_a_table():
    with pytest.raises(ValueError, match=r"can't share a table: steps 20 / 50"):
        table([record("a"), record("b"), record("c", steps=50)])
    with pytest.raises(ValueError, match="at least one"):
        table([])


def test_table_shows_values_intervals_and_labels():
    frame = table([record("a", 1.0), record("b", 2.0)])
    assert frame["model"].tolist() == ["a", "b"]
    assert frame["embedded_video_distance"].tolist() == [1.0, 2.0]
    assert frame["embedded_video_distance_low"].tolist() == [0.5, 0.5]
    assert frame["embedded_video_distance_label"].tolist() == ["full", "full"]
    assert set(frame["protocol_hash"]) == {load("embedded-256-8f").hash}


def test_text_shows_every_record_under_one_protocol():
    lines = text([record("first", 1.0), record("second_model", 2.0)]).splitlines()
    assert lines[0].startswith(f"embedded-256-8f ({load('embedded-256-8f').hash[:12]}): 256 real clips of shapes (val)")
    assert lines[1] == "ema weights, heun, 20 steps, guidance 1, labels cycle, seed 0, precision 32"
    assert [line.split() for line in lines[3:6]] == [
        ["model", "embedded_video_distance", "embedded_kernel_distance"],
        ["first", "1", "[0.5,", "1.5]", "0.25", "smoke"],
        ["second_model", "2", "[0.5,", "1.5]", "0.25", "smoke"],
    ]
    assert lines[-1].startswith("smoke: fewer clips than features")


def test_compare_prints_records_of_one_protocol_alone(tmp_path, capsys):
    paths = [str(tmp_path / f"{name}.json") for name in "abc"]
    for path, steps in zip(paths, (20, 20, 50)):
        record(path, steps=steps).write(path)
    compare(paths[:2])
    assert capsys.readouterr().out == text([Record.read(path) for path in paths[:2]]) + "\n"
    with pytest.raises(ValueError, match=r"can't share a table: steps 20 / 50"):
        compare(paths)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        compare([str(tmp_path / "none.json")])
