"""Files of the official code straight into the commands."""

import argparse
from pathlib import Path

import pytest
import torch

from latte_pl import cli
from latte_pl.interop import export_official, with_ucf101_order
from latte_pl.metrics.record import Record
from latte_pl.nn import Latte
from latte_pl.training import weights

FEW = """
metrics: [embedded_video_distance]
split: val
num_frames: 2
view: first
num_real: 9
real_seed: 0
extractor: shapes_r3d
num_generated: 8
generated_interval: 1
weights: ema
seed: 0
folds: 4
"""


def official(num_classes, seed=0):
    """A model as the official code saves it: a known width, its tables among the parameters."""
    shape = {"hidden_size": 384, "depth": 2, "num_heads": 6, "input_size": 4, "num_frames": 2}
    classes = {"conditioning": "class", "num_classes": num_classes} if num_classes else {}
    net = Latte(**shape, **classes)
    net.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return net


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nets = {"model": official(101, seed=1), "ema": official(101)}
    torch.save({name: export_official(net) for name, net in nets.items()}, "0100000.pt")
    return tmp_path / "0100000.pt"


def test_predict_takes_it_and_samples_as_the_module_does(file, capsys):
    few = ["--model.codec.init_args.source=embedded", "--model.sampling={sampler: ddim, steps: 2, guidance: 2.0}"]
    cli.main(["predict", f"--ckpt_path={file}", *few, "--num_samples=1", "--labels=[7]", "--trainer.accelerator=cpu"])
    assert "1 samples" in capsys.readouterr().out
    assert (file.parent / "runs/latte/predict/0000_7.gif").is_file()


def test_test_measures_it_under_a_protocol(file):
    """The drawn data of eight classes stand in for UCF101, which would have to be downloaded."""
    torch.save({"ema": export_official(official(8))}, file)
    data = ["--data=latte_pl.data.Shapes", "--data.num_frames=2", "--data.size=32", "--trainer.accelerator=cpu"]
    data += ["--model.codec.init_args.source=embedded", "--model.sampling={sampler: ddim, steps: 2}"]
    Path("few.yaml").write_text(FEW)
    cli.main(["test", *data, f"--ckpt_path={file}", "--protocol=few.yaml", "--output=scores"])
    (path,) = Path("scores").glob("*.json")
    record = Record.read(path)
    assert record.model == str(file)
    (score,) = record.scores.values()
    assert score.value > 0


def test_arguments_of_the_official_training_beside_the_weights_are_read_past(file):
    content = torch.load(file, weights_only=True)
    torch.save(content | {"args": argparse.Namespace(model="Latte-S/2"), "opt": {"state": {}}}, file)
    assert weights.read(file).ema.keys() == official(101).state_dict().keys()


def test_both_sets_of_weights_are_read(file):
    read = weights.read(file)
    for state, seed in ((read.raw, 1), (read.ema, 0)):
        own = with_ucf101_order(official(101, seed).state_dict())
        assert all(torch.equal(state[name], own[name]) for name in own)
    assert read.config["model"]["net"]["init_args"]["num_classes"] == 101
    assert read.config["data"]["init_args"]["size"] == [32, 32]


def test_the_labels_of_ucf101_follow_its_list():
    # the places of these in classInd.txt, whose numbers count from 1; the official code sorts by character code
    listed = {34: "Hammering", 35: "HammerThrow", 46: "JumpingJack", 47: "JumpRope"}
    by_code = dict(zip(listed, sorted(listed.values())))
    name = "y_embedder.embedding_table.weight"
    theirs = {name: torch.arange(102.0).unsqueeze(1)}
    ours = with_ucf101_order(theirs)[name][:, 0].tolist()
    assert {by_code[int(ours[place])]: listed[place] for place in listed} == {n: n for n in listed.values()}
    assert [int(row) for place, row in enumerate(ours) if place not in listed] == [
        place for place in range(102) if place not in listed
    ]
    assert torch.equal(with_ucf101_order(with_ucf101_order(theirs))[name], theirs[name])
    assert with_ucf101_order({name: torch.zeros(9, 1)})[name].shape == (9, 1)


def test_missing_and_unexpected_keys_are_named_in_one_line(file, capsys):
    state = export_official(official(0))
    state["blocks.2.extra"] = state.pop("blocks.1.mlp.fc2.bias")
    torch.save({"ema": state}, file)
    with pytest.raises(SystemExit):
        cli.main(["predict", f"--ckpt_path={file}"])
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "missing: " in error
    assert "unexpected: blocks.2.extra" in error


def test_training_cannot_go_on_from_weights_alone(file, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--ckpt_path={file}", "--model.codec.init_args.source=embedded"])
    assert "no optimizer to go on with" in capsys.readouterr().err
