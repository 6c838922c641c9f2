"""Video models that start from the weights of an image model, with the command line."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from runs import final, run_distributed, write_config

from latte_pl import cli
from latte_pl.cli.config import CONFIGS
from latte_pl.training import load

# one step with a learning rate so small that the weights stay the same
STILL = ["--trainer.max_steps=1", "--model.lr=1e-12", "--samples.num_samples=1"]
FROM_IMAGE = ["--model.pretrained.source=runs/image", "--model.pretrained.labels=keep"]


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A folder with the run of an image model, "image": DiT on single frames."""
    folder = tmp_path_factory.mktemp("image")
    args = ["--name=image", "--model.net.variant=spatial", "--data.num_frames=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), *args, "--trainer.max_steps=4"])
    return folder


@pytest.fixture
def place(image, tmp_path, monkeypatch):
    """A copy of the folder, as working directory."""
    shutil.copytree(image, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_run_starts_from_the_ema_of_an_image_model(place, capsys):
    trained, raw = load("runs/image").ema.state_dict(), load("runs/image").net.state_dict()
    assert not torch.equal(trained["blocks.0.mlp.fc1.weight"], raw["blocks.0.mlp.fc1.weight"])
    capsys.readouterr()
    cli.main(["fit", "-c", "tiny.yaml", "--name=video", *FROM_IMAGE, *STILL])
    shown = capsys.readouterr().out
    assert "start from runs/image" in shown
    assert "spatial blocks" in shown
    state = final(place / "runs/video", 1)["state_dict"]
    for part in ("net", "ema"):
        for name, value in trained.items():
            torch.testing.assert_close(state[f"{part}.{name}"], value, rtol=0, atol=1e-9, msg=name)


def test_identity_layers_leave_the_output_of_the_image_model(place):
    """Rotary embeddings add nothing to the frames, so a model with identity layers treats each frame as an image."""
    args = ["--model.net.temporal_position=rope", *FROM_IMAGE, *STILL]
    cli.main(["fit", "-c", "tiny.yaml", "--name=video", *args, "--model.pretrained.temporal=identity"])
    net, reference = load("runs/video").ema, load("runs/image").ema
    x = torch.randn(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    reference.blocks = reference.blocks[:1]  # block 1 became temporal
    t, labels = torch.tensor([100, 900]), torch.tensor([2, 7])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, labels), reference(x, t, labels), rtol=1e-4, atol=1e-5)


def test_resumed_run_does_not_read_its_source(place, capsys):
    args = ["fit", "-c", "tiny.yaml", "--name=video", *FROM_IMAGE, "--samples.num_samples=1"]
    cli.main([*args, "--trainer.max_steps=2"])
    before = final(place / "runs/video", 2)["state_dict"]
    shutil.rmtree("runs/image")
    capsys.readouterr()
    cli.main([*args, "--trainer.max_steps=3", "--model.sampling.steps=4"])
    assert "start from" not in capsys.readouterr().out
    after = final(place / "runs/video", 3)["state_dict"]
    for name, value in before.items():  # at most one step away
        assert (after[name] - value).abs().max() <= 1.1e-2
    cli.main(["fit", "--ckpt_path=runs/video", "--name=on", "--trainer.max_steps=4"])
    assert final(place / "runs/on", 4)["global_step"] == 4
    cli.main(["validate", "--ckpt_path=runs/video"])
    cli.main(["predict", "--ckpt_path=runs/video", "--output=out", "--num_samples=1"])
    assert Path("out/contact_sheet.gif").exists()
    assert load("runs/video").pretrained.source == "runs/image"


MISTAKES = {
    "missing run": (["--model.pretrained.source=runs/none"], "there is no checkpoint at runs/none"),
    "dropped labels": (
        ["--model.pretrained.labels=drop"],
        "labels is drop; with conditioning=class it must be new or keep",
    ),
    "other depth": (["--model.net.depth=5"], "the DiT has 2 blocks and the interleaved model has 5"),
    "unknown value": (["--model.pretrained.temporal=zero"], "temporal"),
    "other start under the same name": (["--name=image"], "choose another --name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_line(mistake, image, capsys, monkeypatch):
    monkeypatch.chdir(image)
    args, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", "tiny.yaml", "--name=wrong", *FROM_IMAGE, *args])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("latte: error: ")
    assert message in line


@pytest.mark.slow
def test_two_devices_start_from_the_same_weights(place):
    args = ["fit", "-c", "tiny.yaml", *FROM_IMAGE, "--trainer.max_steps=1", "--samples.num_samples=1"]
    cli.main([*args, "--name=one"])
    shown = run_distributed([*args, "--name=two", "--trainer.strategy=ddp"], place)
    assert shown.count("start from runs/image") == 1
    one, two = (final(place / "runs" / name, 1)["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-3, atol=2e-4)


SHORT = [
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--data.val_clips=2",
    "--data.global_batch_size=2",
    "--samples.num_samples=1",
    "--model.sampling.steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def test_shipped_configurations_train_an_image_model_and_start_from_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("image", "pretrained"):
        cli.main(["fit", "-c", "data/shapes.yaml", "-c", "model/tiny.yaml", "-c", f"experiment/{name}.yaml", *SHORT])
        assert yaml.safe_load((CONFIGS / f"experiment/{name}.yaml").read_text())["name"] == name
    assert load("runs/image").net.config.variant == "spatial"
    assert "4,167,184 of 4,167,184 parameters come from the source" in capsys.readouterr().out
    out = ["--output=out", "--num_samples=2", "--trainer.enable_progress_bar=false"]
    cli.main(["predict", "--ckpt_path=runs/image", *out])
    assert Path("out/contact_sheet.png").exists()
