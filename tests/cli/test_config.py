"""How the configuration of a command is composed: defaults, files, checkpoints and explicit values."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from runs import write_config

from latte_pl import cli, interop
from latte_pl.cli.config import CONFIGS, flatten, resolve
from latte_pl.training import weights
from latte_pl.training.weights import outline


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a run of one step."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        args = ["--trainer.max_steps=1", "--samples.num_samples=1", "--model.weight_decay=0.5", "--seed_everything=7"]
        cli.main(["fit", "-c", write_config(folder), "--name=one", *args])
    return folder / "runs/one/checkpoints/step=0000001.ckpt"


def values(*args):
    """Return the resolved configuration of `latte fit` with dotted names."""
    return flatten(resolve(args))


# --------------------------------------------------------------------------------------------- files and values


@pytest.mark.parametrize("place", [0, 2, 4])
def test_explicit_values_win_wherever_they_stand(place):
    args = ["-c", "tiny.yaml", "-c", "other.yaml"]
    Path("other.yaml").write_text("model: {lr: 3.0e-3, ema_decay: 0.5}\n")
    args.insert(place, "--model.lr=5e-4")
    found = values(*args)
    assert found["model.lr"] == 5e-4
    assert found["model.ema_decay"] == 0.5  # of the later file
    assert found["model.net.init_args.depth"] == 2  # of the earlier file


def test_default_configuration_is_the_model_of_the_paper():
    found = values("-c", "data/ucf101.yaml")
    assert found["model.net.class_path"] == "latte_pl.nn.Latte"
    assert found["model.diffusion.class_path"] == "latte_pl.diffusion.GaussianDiffusion"
    assert found["model.autoencoder.init_args.source"] == "stabilityai/sd-vae-ft-ema"
    # a file replaces a class, and the arguments of the replaced class go with it
    found = values("-c", "data/ucf101.yaml", "--model.autoencoder=latte_pl.autoencoders.PixelAutoencoder")
    assert not [name for name in found if name.startswith("model.autoencoder.init_args")]


def test_seed_names_the_seeds_of_model_and_data():
    names = ("seed_everything", "model.seed", "data.init_args.seed")
    assert [values("-c", "tiny.yaml", "--seed_everything=5")[name] for name in names] == [5, 5, 5]
    explicit = values("-c", "tiny.yaml", "--seed_everything=5", "--model.seed=1", "--data.seed=2")
    assert [explicit[name] for name in names] == [5, 1, 2]


# ------------------------------------------------------------------------------------------- settings that follow


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-c", "tiny.yaml"], ([16, 24], 3, 4, 8)),
        (["-c", "tiny.yaml", "--data.size=[32, 8]", "--data.num_frames=2"], ([32, 8], 3, 2, 8)),
        (["-c", "data/shapes.yaml"], ([8, 8], 4, 8, 8)),
        (["-c", "data/ucf101.yaml"], ([32, 32], 4, 16, 101)),
        (["-c", "data/faceforensics.yaml"], ([32, 32], 4, 16, 0)),
    ],
)
def test_settings_of_the_denoiser_follow_from_the_data(args, expected):
    net = resolve(args)["model"]["net"]["init_args"]
    assert (net["input_size"], net["in_channels"], net["num_frames"], net["num_classes"]) == expected


@pytest.mark.parametrize(
    ("setting", "value"), [("num_frames", 3), ("input_size", [8, 8]), ("in_channels", 5), ("num_classes", 9)]
)
def test_explicit_settings_of_the_denoiser_override_the_data(setting, value):
    assert resolve(["-c", "tiny.yaml", f"--model.net.{setting}={value}"])["model"]["net"]["init_args"][setting] == value
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"net": {"init_args": {setting: value}}}}))
    assert resolve(["-c", "tiny.yaml", "-c", "own.yaml"])["model"]["net"]["init_args"][setting] == value


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_files_and_explicit_values_win_over_the_checkpoint(trained):
    Path("other.yaml").write_text("model: {ema_decay: 0.5, lr: 3.0e-3}\n")
    found = values("--model.lr=5e-4", f"--ckpt_path={trained}", "-c", "other.yaml")
    assert found["model.weight_decay"] == 0.5  # of the checkpoint
    assert found["model.ema_decay"] == 0.5  # of the file
    assert found["model.lr"] == 5e-4
    assert found["seed_everything"] == 7
    assert found["trainer.max_steps"] == 1


def test_configuration_of_a_checkpoint_resolves_to_itself(trained):
    saved = weights.read_config(trained)
    assert flatten(resolve([f"--ckpt_path={trained}"])) == flatten(saved)


def test_config_is_read_without_the_weights(trained, monkeypatch):
    """The bytes of all tensors are overwritten in place, and the configuration is the same."""
    expected, copy = weights.read_config(trained), Path("damaged.ckpt")
    shutil.copy(trained, copy)
    with zipfile.ZipFile(copy) as archive:
        tensors = [item for item in archive.infolist() if "/data/" in item.filename]
    with copy.open("r+b") as file:
        for item in tensors:
            file.seek(item.header_offset + 26)  # the lengths of name and extra field precede the content
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(item.header_offset + 30 + name + extra)
            file.write(b"\xff" * item.file_size)
    calls, original = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: (calls.append(options), original(*args, **options))[1])
    assert weights.read_config(copy) == expected
    assert interop.read_config(copy) == expected
    assert len(calls) == 2
    assert all(call["mmap"] and call["weights_only"] for call in calls)


def test_config_of_exported_weights_is_read_from_the_metadata(trained, monkeypatch):
    cli.main(["export", str(trained), "w.safetensors"])
    monkeypatch.setattr(weights, "load_file", None)
    saved = weights.read_config(trained)
    assert weights.read_config("w.safetensors") == {name: saved[name] for name in weights.USED}


# --------------------------------------------------------------------------------------------------- shipped files


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("model/*.yaml")), ids=lambda path: path.stem)
def test_every_model_configuration_composes(path):
    net = outline(resolve(["-c", "data/shapes.yaml", "-c", f"model/{path.name}"]))
    assert (net.num_frames, net.num_classes) == (8, 8)


@pytest.mark.parametrize("name", ["folder", "ucf101", "faceforensics", "skytimelapse", "taichi"])
def test_every_data_configuration_composes_with_the_model_of_the_paper(name):
    text = (CONFIGS / "data" / f"{name}.yaml").read_text()
    assert all(word in text for word in ("# Source: ", "# Licence: ", "# Layout: ", f"latte fit -c data/{name}.yaml"))
    net = outline(resolve(["-c", f"data/{name}.yaml", "-c", "model/s.yaml"]))
    assert (net.num_frames, net.input_size, net.in_channels) == (16, (32, 32), 4)


EXPERIMENTS = sorted(CONFIGS.glob("experiment/*.yaml"))
OFFICIAL = [path for path in EXPERIMENTS if path.stem.startswith("official_")]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_official_trainings_have_the_settings_of_the_authors(path):
    data = path.stem.removeprefix("official_")
    config = resolve(["-c", f"data/{data}.yaml", "-c", "model/xl.yaml", "-c", f"experiment/{path.name}"])
    model, clips = config["model"], config["data"]["init_args"]
    assert (model["lr"], model["ema_decay"], model["lr_schedule"], model["warmup_steps"]) == (
        1e-4,
        0.9999,
        "constant",
        0,
    )
    starts = {"faceforensics": 19_999, "skytimelapse": 19_999, "ucf101": 99_999, "taichi": 499_999}  # counted from 0
    assert not model["compile"]
    assert (model["clip_from_step"], config["trainer"]["gradient_clip_val"]) == (starts[data], 0.1)
    assert (clips["global_batch_size"], clips["num_frames"], clips["interval"], clips["size"]) == (40, 16, 3, 256)
    assert clips["flip"] == (data != "skytimelapse")
    assert clips["split"] == ("all" if data == "ucf101" else "train")
    net = outline(config)
    assert (net.conditioning, net.num_classes) == (("class", 101) if data == "ucf101" else ("none", 0))
    assert len(net.blocks) == 28


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path not in OFFICIAL], ids=lambda path: path.stem)
def test_every_experiment_composes(path):
    data = "folder" if path.stem == "laptop" else "shapes"
    net = outline(resolve(["-c", f"data/{data}.yaml", "-c", "model/tiny.yaml", "-c", f"experiment/{path.name}"]))
    assert net.num_frames in (1, 8, 16)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_configuration_begins_with_its_source(path):
    assert path.read_text().startswith("# ")
