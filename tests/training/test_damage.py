"""Damaged files of weights are found before they are used."""

import json
import zipfile

import pytest
import torch
from runs import write_config
from safetensors import safe_open

from latte_pl import cli
from latte_pl.training import weights
from latte_pl.training.checkpoints import is_intact, newest_intact


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The folder of a run with the checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        more = ["--trainer.max_steps=4", "--checkpoints.every_n_steps=2", "--samples.every_n_steps=100"]
        cli.main(["fit", "-c", write_config(folder), *more, "--model.ema_snapshot_every=2", "--name=run"])
    return folder


@pytest.fixture
def run(template, tmp_path, monkeypatch):
    """A copy of the run."""
    copy = tmp_path / "runs/run"
    for path in (template / "runs/run").rglob("*"):
        if path.is_file() and path.suffix in (".ckpt", ".safetensors"):
            target = copy / path.relative_to(template / "runs/run")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    return copy


def flip(path, position, count=8):
    content = bytearray(path.read_bytes())
    for n in range(count):
        content[position + n] ^= 0xFF
    path.write_bytes(content)


def damage(path):
    """Damage the values of a tensor, which reading does not notice."""
    with zipfile.ZipFile(path) as file:
        largest = max((info for info in file.infolist() if "/data/" in info.filename), key=lambda info: info.file_size)
    flip(path, largest.header_offset + largest.file_size // 2)


def newest(run):
    return run / "checkpoints/step=0000004.ckpt"


@pytest.mark.parametrize("seed", range(30))
def test_any_damage_is_found(run, seed):
    path = newest(run)
    stored = torch.load(path, weights_only=True)["state_dict"]
    size = path.stat().st_size
    position = int(torch.randint(size - 8, (1,), generator=torch.Generator().manual_seed(seed)))
    flip(path, position)
    if is_intact(path):  # padding between the tensors
        loaded = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(loaded[name], value) for name, value in stored.items())


def test_damaged_directory_of_the_file_is_found(run):
    size = newest(run).stat().st_size
    for distance in range(22, 3000, 37):
        content = newest(run).read_bytes()
        flip(newest(run), size - distance, count=1)
        is_intact(newest(run))  # no other error than False
        newest(run).write_bytes(content)


def test_damaged_checkpoint_is_named_and_refused(run, capsys):
    damage(newest(run))
    with pytest.raises(ValueError, match=r"step=0000004\.ckpt is damaged or incomplete"):
        weights.read(newest(run))
    for command in ("validate", "fit"):
        more = ["--name=other"] if command == "fit" else []
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, f"--ckpt_path={newest(run)}", *more])
        assert stopped.value.code == 2
        assert "step=0000004.ckpt is damaged or incomplete; use an earlier checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["values", "configuration", "end"])
def test_commands_use_the_newest_intact_checkpoint(run, capsys, place):
    if place == "values":
        damage(newest(run))
    elif place == "end":
        newest(run).write_bytes(newest(run).read_bytes()[:-2000])
    else:
        with zipfile.ZipFile(newest(run)) as file:
            (name,) = [name for name in file.namelist() if name.endswith("/data.pkl")]
            position = newest(run).read_bytes().index(b"PixelAutoencoder")
            assert file.getinfo(name).header_offset < position
        flip(newest(run), position, count=1)
    warned = (r".*step=0000004\.ckpt is damaged and is skipped",) if place != "end" else ()
    for command in (["validate"], ["predict", "--num_samples=1"]):
        args = [*command, f"--ckpt_path={run}", "--trainer.accelerator=cpu"]
        if warned:
            with pytest.warns(UserWarning, match=warned[0]):
                cli.main(args)
        else:
            cli.main(args)
    assert "at step 2" in capsys.readouterr().out


def test_fit_resumes_from_the_newest_intact_checkpoint(run, capsys):
    damage(newest(run))
    more = [
        "--trainer.max_steps=6",
        "--checkpoints.every_n_steps=1",
        "--checkpoints.keep=1",
        "--model.ema_snapshot_every=2",
    ]
    with pytest.warns(UserWarning, match=r"step=0000004\.ckpt is damaged and is skipped"):
        cli.main(["fit", "-c", "tiny.yaml", *more, "--name=run"])
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=0000006.ckpt"]
    assert newest_intact(run / "checkpoints") is not None
    assert torch.load(run / "checkpoints/step=0000006.ckpt", weights_only=True)["global_step"] == 6


def test_fit_refuses_a_run_without_an_intact_checkpoint(run, capsys):
    for path in (run / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["fit", "-c", "tiny.yaml", "--model.ema_snapshot_every=2", "--name=run"])
    assert stopped.value.code == 2
    assert "all checkpoints in runs/run are damaged" in capsys.readouterr().err


def test_damaged_exported_weights_are_refused(run, tmp_path):
    path = weights.export(str(run), str(tmp_path / "exported.safetensors"))
    weights.read(path)
    assert path.stat().st_mode == (tmp_path / "tiny.yaml").stat().st_mode  # readable as any new file
    flip(path, path.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"exported\.safetensors is damaged"):
        weights.read(path)


def test_shipped_weights_have_a_digest():
    path = weights.find("shapes")
    with safe_open(path, "pt") as file:
        assert "sha256" in json.loads(file.metadata()["config"])
    weights.read(path)


def test_damaged_snapshot_of_averages_is_refused(run, capsys):
    path = run / "averages/step=0000002.safetensors"
    flip(path, path.stat().st_size - 100)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["average", str(run), "--sigma_rels=[0.1]", "--accelerator=cpu"])
    assert stopped.value.code == 2
    assert "step=0000002.safetensors is damaged" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(run, tmp_path):
    checkpoint = torch.load(newest(run), weights_only=True)
    checkpoint["state_dict"]["net.blocks.1.attn.qkv.weight"][0, 0] = float("nan")
    torch.save(checkpoint, newest(run))
    message = r"step=0000004\.ckpt holds values that are not finite \(net\.blocks\.1\.attn\.qkv\.weight\)"
    for use in (weights.read, weights.load, lambda path: weights.export(str(path), "out.safetensors")):
        with pytest.raises(ValueError, match=message):
            use(newest(run))
    assert not (tmp_path / "out.safetensors").exists()
