"""Reading official checkpoints and checkpoints of this package with the same functions."""

import argparse
import dataclasses
import zipfile

import pytest
import torch
from official_models import official_model

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.interop import export_official, load, load_dit, read_config, read_weights, with_ucf101_order
from latte_pl.training import weights


@pytest.fixture
def file(tmp_path):
    nets = {"model": official_model(101, seed=1), "ema": official_model(101)}
    torch.save({name: export_official(net) for name, net in nets.items()}, tmp_path / "0100000.pt")
    return tmp_path / "0100000.pt"


def test_raw_weights_and_ema_are_read(file):
    found = read_weights(file)
    for state, seed in ((found.raw, 1), (found.ema, 0)):
        expected = with_ucf101_order(official_model(101, seed).state_dict())
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def damage(path):
    """Flip bytes in the middle of the largest tensor of a file."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    middle = largest.header_offset + largest.file_size // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(data)


def test_damaged_official_weights_are_refused(file):
    damage(file)
    for use in (read_weights, read_config, load):
        with pytest.raises(ValueError, match=r"0100000\.pt is damaged: its content does not match its checksums"):
            use(file)


def test_damaged_dit_weights_are_refused(tmp_path):
    path = tmp_path / "dit.pt"
    torch.save({"x_embedder.proj.weight": torch.ones(8, 4, 2, 2)}, path)
    damage(path)
    with pytest.raises(ValueError, match=r"dit\.pt is damaged"):
        load_dit(official_model(0), path)


@pytest.mark.parametrize(
    ("num_classes", "options", "data"),
    [(101, {"input_size": (4, 4)}, "latte_pl.data.UCF101"), (0, {"num_frames": 6}, "latte_pl.data.Folder")],
)
def test_configuration_contains_every_option_of_the_model(num_classes, options, data, file):
    net = official_model(num_classes, **options)
    torch.save(export_official(net), file)
    config = read_config(file)
    assert config == read_weights(file).config
    chosen = config["model"]["net"]["init_args"]
    assert chosen == {
        field.name: getattr(net.config, field.name)
        for field in dataclasses.fields(net.config)
        if getattr(net.config, field.name) is not None
    } | {"input_size": [4, 4]}
    assert config["data"]["class_path"] == data
    assert config["data"]["init_args"]["size"] == [32, 32]  # pixels
    assert config["data"]["init_args"]["num_frames"] == net.num_frames
    assert config["model"]["autoencoder"]["init_args"]["source"] == "stabilityai/sd-vae-ft-ema"


def test_official_weights_imply_data_and_guidance_of_their_release(file, monkeypatch):
    torch.save({"ema": export_official(official_model(0, num_frames=6))}, file)
    asked = []
    monkeypatch.setattr("latte_pl.hub.download", lambda address, sha256: asked.append(address) or file)
    for config in (read_config("official/taichi"), read_weights("official/taichi").config):
        assert config["data"]["class_path"] == "latte_pl.data.TaichiHD"
        assert config["data"]["init_args"]["num_frames"] == 6
        assert config["model"]["sampling"] == {"guidance": 1.0}
    assert str(asked[0]) == "hf://maxin-cn/Latte/taichi-hd.pt"
    assert read_config("official/ucf101")["model"]["sampling"] == {"guidance": 7.0}  # the authors' sample script


def test_configuration_builds_the_official_objective(file):
    torch.save({"ema": export_official(official_model(0, learn_sigma=False))}, file)
    config = read_config(file)
    config["model"]["autoencoder"]["init_args"]["source"] = "toy"
    config["model"]["sampling"] = {}
    module = weights.build(config)
    assert isinstance(module.diffusion, GaussianDiffusion)
    assert (module.diffusion.learn_sigma, module.net.learn_sigma) == (False, False)


def test_arguments_of_the_official_training_script_are_ignored(file):
    content = torch.load(file, weights_only=True)
    torch.save(content | {"args": argparse.Namespace(model="Latte-S/2"), "opt": {"state": {}}}, file)
    assert read_weights(file).ema.keys() == official_model(101).state_dict().keys()


def test_legacy_torch_files_are_read(file):
    state = export_official(official_model(101))
    torch.save({"ema": state}, file, _use_new_zipfile_serialization=False)
    assert read_weights(file).ema.keys() == official_model(101).state_dict().keys()


def test_own_weights_are_read():
    assert read_config("shapes") == weights.read_config("shapes")
    found, expected = read_weights("shapes"), weights.read("shapes")
    assert all(torch.equal(found.ema[name], value) for name, value in expected.ema.items())
    module = load("shapes")
    assert not module.training
    assert all(torch.equal(module.ema.state_dict()[name], value) for name, value in expected.ema.items())


def test_official_module_has_the_outputs_of_the_model(file, monkeypatch):
    """The configured autoencoder is Stable Diffusion's, which needs a download; another one takes its place."""
    net = official_model(8, in_channels=3)
    torch.save({"ema": export_official(net)}, file)
    build = weights.build

    def with_pixels(config):
        config["model"]["autoencoder"] = {"class_path": "latte_pl.autoencoders.PixelAutoencoder"}
        return build(config)

    monkeypatch.setattr(weights, "build", with_pixels)
    module = load(file)
    assert isinstance(module.autoencoder, PixelAutoencoder)
    x, t, labels = torch.randn(2, 2, 3, 4, 4), torch.tensor([3, 900]), torch.tensor([1, 8])
    torch.testing.assert_close(module.ema(x, t, labels), net(x, t, labels))


def test_ucf101_labels_follow_the_official_list():
    # positions of these classes in classInd.txt, whose numbers start at 1; the official code sorts by character code
    listed = {34: "Hammering", 35: "HammerThrow", 46: "JumpingJack", 47: "JumpRope"}
    by_code = dict(zip(listed, sorted(listed.values())))
    name = "y_embedder.embedding_table.weight"
    theirs = {name: torch.arange(102.0).unsqueeze(1)}
    ours = with_ucf101_order(theirs)[name][:, 0].tolist()
    assert {by_code[int(ours[row])]: listed[row] for row in listed} == {n: n for n in listed.values()}
    others = [row for row in range(102) if row not in listed]
    assert [int(ours[row]) for row in others] == others
    assert torch.equal(with_ucf101_order(with_ucf101_order(theirs))[name], theirs[name])
    assert with_ucf101_order({name: torch.zeros(9, 1)})[name].shape == (9, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": {"a": torch.zeros(1)}}, "not a checkpoint of the official Latte; missing keys: pos_embed"),
        ([1, 2], "it contains a list"),
        ({"state_dict": {}}, r"checkpoints of latte_pl end in \.ckpt"),
        (None, "is damaged or contains more than weights"),
    ],
)
def test_other_files_are_rejected_in_one_line(content, message, tmp_path):
    if content is None:
        (tmp_path / "other.pt").write_bytes(b"no checkpoint")
    else:
        torch.save(content, tmp_path / "other.pt")
    for read in (read_weights, read_config):
        with pytest.raises(ValueError, match=message) as error:
            read(tmp_path / "other.pt")
        assert "other.pt" in str(error.value)
        assert "\n" not in str(error.value)
