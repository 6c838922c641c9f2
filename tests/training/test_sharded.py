"""Sharded checkpoints are resumed on any number of devices, and are as safe to read as single files."""

import os
import pickle
import shutil

import pytest
import torch
from runs import run_distributed, write_config

from latte_pl import cli
from latte_pl.training import sharded, weights
from latte_pl.training.checkpoints import AtomicCheckpointIO, checkpoints, is_intact, newest_intact

FIT = [
    *("fit", "-c", "tiny.yaml", "--data.global_batch_size=6", "--samples.every_n_steps=100"),
    *("--checkpoints.every_n_steps=2", "--model.ema_snapshot_every=3"),
]
SHARDED = ["-c", "trainer/fsdp.yaml", "--trainer.strategy.init_args.sharded_checkpoints=true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of 6 steps on one device, "one", and on two and then three devices, "sharded"."""
    folder = tmp_path_factory.mktemp("sharded")
    write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main([*FIT, "--trainer.max_steps=6", "--name=one"])
        run_distributed([*FIT, *SHARDED, "--trainer.max_steps=4", "--name=sharded"], folder, world_size=2)
        shutil.copytree(folder / "runs/sharded", folder / "runs/resumed")
        shutil.copytree(folder / "runs/sharded", folder / "runs/damaged")
        run_distributed([*FIT, *SHARDED, "--trainer.max_steps=6", "--name=sharded"], folder, world_size=3)
    return folder


def check_equal(left, right):
    # AdamW divides small gradients by their own size in the first steps, which amplifies rounding errors
    torch.testing.assert_close(left, right, rtol=2e-3, atol=2e-4)


def state_of(folder, step=6):
    return AtomicCheckpointIO().load_checkpoint(folder / f"checkpoints/step={step:07d}.ckpt")


def test_every_process_writes_its_part(folder):
    names = {path.name for path in (folder / "runs/sharded/checkpoints/step=0000006.ckpt").iterdir()}
    assert names == {*(f"__{rank}_0.distcp" for rank in range(3)), ".metadata", "meta.pt", "checksums.json"}
    assert [path.name for path in (folder / "runs/sharded/checkpoints").iterdir() if path.name[0] == "."] == []


def test_training_on_two_and_then_three_devices_is_that_on_one(folder):
    one, other = (state_of(folder / "runs" / name) for name in ("one", "sharded"))
    assert other["state_dict"].keys() == one["state_dict"].keys()
    assert other["global_step"] == 6
    for name, value in one["state_dict"].items():
        check_equal(other["state_dict"][name], value)
    states = [state["optimizer_states"][0]["state"] for state in (one, other)]
    assert states[0].keys() == states[1].keys()
    for n, state in states[0].items():
        assert float(states[1][n]["step"]) == float(state["step"]) == 6.0
        check_equal(states[1][n]["exp_avg"], state["exp_avg"])


def test_sharded_checkpoint_is_resumed_on_one_device(folder, monkeypatch):
    monkeypatch.chdir(folder)
    cli.main([*FIT, "--trainer.max_steps=6", "--name=resumed"])
    one, resumed = (state_of(folder / "runs" / name)["state_dict"] for name in ("one", "resumed"))
    assert (folder / "runs/resumed/checkpoints/step=0000006.ckpt").is_file()
    for name, value in one.items():
        check_equal(resumed[name], value)


def test_sharded_checkpoint_is_exported_to_one_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = weights.export("runs/sharded", "exported.safetensors")
    assert weights.read_config("runs/sharded")["data"]["init_args"]["global_batch_size"] == 6
    exported, state = weights.read(path), state_of(folder / "runs/sharded")["state_dict"]
    assert exported.step == weights.step_of("runs/sharded/checkpoints/step=0000006.ckpt") == 6
    assert all(torch.equal(value, state[f"ema.{name}"]) for name, value in exported.ema.items())
    cli.main(["validate", "--ckpt_path=runs/sharded", "--trainer.accelerator=cpu"])


def test_damaged_part_is_found(folder):
    run = folder / "runs/damaged"
    assert newest_intact(run / "checkpoints") == checkpoints(run / "checkpoints")[-1]
    part = run / "checkpoints/step=0000004.ckpt/__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert not is_intact(part.parent)
    with pytest.warns(UserWarning, match=r"step=0000004\.ckpt is damaged and is skipped"):
        assert newest_intact(run / "checkpoints").name == "step=0000002.ckpt"
    with pytest.raises(ValueError, match="damaged or incomplete"):
        weights.read(part.parent)


class Trap:
    """An object that creates a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_metadata_execute_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "runs/sharded/checkpoints/step=0000006.ckpt", tmp_path / "step=0000006.ckpt")
    (tmp_path / "step=0000006.ckpt/.metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"posix\.mkdir, which no checkpoint"):
        sharded.read(tmp_path / "step=0000006.ckpt")
    assert not (tmp_path / "trapped").exists()
