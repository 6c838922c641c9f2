"""Official checkpoints in the commands."""

from pathlib import Path

import pytest
import torch
from official_models import official_model

from latte_pl import cli
from latte_pl.interop import export_official
from latte_pl.metrics.record import Record

FEW = """
metrics: [toy_video_distance]
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


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nets = {"model": official_model(101, seed=1), "ema": official_model(101)}
    torch.save({name: export_official(net) for name, net in nets.items()}, "0100000.pt")
    return tmp_path / "0100000.pt"


def test_predict_samples_an_official_checkpoint(file, capsys):
    few = ["--model.autoencoder.init_args.source=toy", "--model.sampling={sampler: ddim, steps: 2, guidance: 2.0}"]
    cli.main(["predict", f"--ckpt_path={file}", *few, "--num_samples=1", "--labels=[7]", "--trainer.accelerator=cpu"])
    assert "1 samples" in capsys.readouterr().out
    assert (file.parent / "runs/latte/predict/videos/0000_7.mp4").is_file()


def test_predict_needs_the_name_of_official_weights_alone(file, monkeypatch):
    monkeypatch.setattr("latte_pl.hub.download", lambda *_: file)
    few = ["--model.autoencoder.source=toy", "--model.sampling.steps=2", "--num_samples=1", "--trainer.accelerator=cpu"]
    cli.main(["predict", "--ckpt_path=official/ucf101", *few])
    assert (file.parent / "runs/latte/predict/videos/0000_0.mp4").is_file()


def test_test_measures_an_official_checkpoint(file):
    """The toy data have eight classes and need no download."""
    torch.save({"ema": export_official(official_model(8))}, file)
    data = ["--data=latte_pl.toy.Shapes", "--data.num_frames=2", "--data.size=32", "--trainer.accelerator=cpu"]
    data += ["--model.autoencoder.init_args.source=toy", "--model.sampling={sampler: ddim, steps: 2}"]
    Path("few.yaml").write_text(FEW)
    cli.main(["test", *data, f"--ckpt_path={file}", "--protocol=few.yaml", "--output=scores"])
    (path,) = Path("scores").glob("*.json")
    record = Record.read(path)
    assert record.model == str(file)
    (score,) = record.scores.values()
    assert score.value > 0


def test_wrong_keys_are_named_in_one_line(file, capsys):
    state = export_official(official_model(0))
    state["blocks.2.extra"] = state.pop("blocks.1.mlp.fc2.bias")
    torch.save({"ema": state}, file)
    with pytest.raises(SystemExit):
        cli.main(["predict", f"--ckpt_path={file}", "--model.autoencoder.init_args.source=toy"])
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "missing: " in error
    assert "unexpected: blocks.2.extra" in error


def test_training_does_not_resume_from_weights(file, capsys):
    with pytest.raises(SystemExit):
        cli.main(["fit", f"--ckpt_path={file}", "--model.autoencoder.init_args.source=toy"])
    assert "contains only weights; resuming needs" in capsys.readouterr().err
