"""Averages whose length is chosen after training: the numbers of the paper, and a run's from its snapshots."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import curve, final, finish, start, write_config
from safetensors.torch import load_file
from torch import nn

from latte_pl import cli
from latte_pl.training import load
from latte_pl.training.average import (
    LENGTHS,
    TOLERANCE,
    coefficients,
    exponent,
    miss,
    reconstruct,
    snapshots,
    update,
    write_snapshot,
)
from latte_pl.training.trainer import LatteTrainer

EVERY, STEPS = 10, 100


def profile(steps, length):
    """Weight of each step in an average: what is left of it after all later steps."""
    beta = (1.0 - 1.0 / np.arange(1, steps + 1)) ** (exponent(length) + 1.0)
    return np.array([(1.0 - beta[n]) * np.prod(beta[n + 1 :]) for n in range(steps)])


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_the_papers(length, gamma):
    assert exponent(length) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("length", [0.005, 0.03, 0.2, 0.28])
def test_a_length_is_the_deviation_of_its_profile(length):
    gamma = exponent(length)
    mean, square = ((gamma + 1) / (gamma + 1 + n) for n in (1, 2))  # moments of (gamma + 1) tau^gamma on [0, 1]
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, float("nan")])
def test_what_is_no_length_is_refused(length):
    with pytest.raises(ValueError, match=r"choose lengths in \[0.005, 0.28\]"):
        exponent(length)


def walk(steps):
    """Weights (steps, 12) of a random walk away from 1."""
    generator = torch.Generator().manual_seed(0)
    return 1.0 + torch.randn(steps, 12, generator=generator, dtype=torch.float64).cumsum(0) * 0.1


def net(values=None):
    """A network of 12 parameters and a buffer."""
    made = nn.Linear(4, 2, dtype=torch.float64)
    made.third = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    made.register_buffer("position", torch.tensor([7.0]))
    with torch.no_grad():
        nn.utils.vector_to_parameters(torch.full((12,), 99.0).double() if values is None else values, made.parameters())
    return made


def flat(made):
    return nn.utils.parameters_to_vector(made.parameters()).detach()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a walk whose snapshots are written like a run's, and its averages at the end."""
    folder = tmp_path_factory.mktemp("written")
    averages = nn.ModuleList(net() for _ in LENGTHS)
    for step, values in enumerate(walk(STEPS), start=1):
        update(averages, net(values), step)
        if step % EVERY == 0:
            write_snapshot(averages, folder, step)
    checkpoint = folder / "checkpoints" / f"step={STEPS:07d}.ckpt"
    checkpoint.parent.mkdir()
    state = {f"averages.{name}": value for name, value in averages.state_dict().items()}
    torch.save({"state_dict": state}, checkpoint)
    return checkpoint, averages


def test_a_running_average_is_the_weighted_sum_of_all_steps(written):
    for average, length in zip(written[1], LENGTHS):
        weights = torch.from_numpy(profile(STEPS, length))
        assert weights.sum() == pytest.approx(1.0)
        torch.testing.assert_close(flat(average), weights @ walk(STEPS), rtol=1e-9, atol=0.0)


def test_a_snapshot_holds_both_averages_in_a_file(written):
    checkpoint, averages = written
    path = checkpoint.parent.parent / "averages" / f"step={STEPS:07d}.safetensors"
    state = load_file(path)
    assert sorted(state) == sorted(name for name, _ in averages.named_parameters())
    for name, value in averages.named_parameters():
        assert torch.equal(state[name], value)
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("length", [0.03, 0.07, 0.15, 0.2, 0.25])
def test_a_length_that_was_not_kept_is_put_together(written, length):
    checkpoint, averages = written
    made = net()
    reconstruct(made, snapshots(checkpoint, STEPS, EVERY), length)
    wanted = torch.from_numpy(profile(STEPS, length)) @ walk(STEPS)
    error = (flat(made) - wanted).norm() / wanted.norm()
    nearest = min((flat(average) - wanted).norm() / wanted.norm() for average in averages)
    assert error < 0.02
    assert error < nearest / 5
    assert made.position == 7.0


@pytest.mark.parametrize("which", [0, 1])
def test_a_length_that_was_kept_is_exact(written, which):
    checkpoint, averages = written
    made = net()
    reconstruct(made, snapshots(checkpoint, STEPS, EVERY), LENGTHS[which])
    torch.testing.assert_close(flat(made), flat(averages[which]), rtol=1e-9, atol=0.0)


def test_what_snapshots_cannot_make_is_known():
    """By how much, against profiles written out step by step."""
    few, many = list(range(250, 1001, 250)), list(range(10, 1001, 10))
    for steps, length in ((few, 0.25), (few, 0.1), (many, 0.25), (many, 0.03)):
        kept = np.stack([np.pad(profile(t, known), (0, 1000 - t)) for t in steps for known in LENGTHS])
        wanted = profile(1000, length)
        error = np.linalg.norm(coefficients(steps, length).ravel() @ kept - wanted) / np.linalg.norm(wanted)
        assert miss(steps, length) == pytest.approx(error, rel=0.05, abs=2e-3)
    assert miss(few, 0.25) > TOLERANCE > miss(many, 0.25)


@pytest.mark.parametrize("steps", [[4], [4, 8, 12, 13], list(range(10, 2001, 10))])
def test_weights_that_stand_still_are_their_own_average(steps):
    factors = coefficients(steps, 0.25)
    assert factors.shape == (len(steps), 2)
    assert factors.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.abs(factors).max() < 10


def test_snapshots_of_another_run_do_not_count(written):
    checkpoint, _ = written
    folder = checkpoint.parent.parent / "averages"
    left_over = [folder / f"step={step:07d}.safetensors" for step in (37, 110)]
    for path in left_over:
        shutil.copy(folder / "step=0000010.safetensors", path)
    files = snapshots(checkpoint, STEPS, EVERY)
    for path in left_over:
        path.unlink()
    assert list(files) == list(range(EVERY, STEPS + 1, EVERY))
    assert files[STEPS] == checkpoint


# ------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of 12 steps with a snapshot every second one."""
    folder = tmp_path_factory.mktemp("trained")
    args = ["--model.average_every=2", "--trainer.val_check_interval=4", "--trainer.precision=bf16-mixed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--name=averaged", *args])
    return folder / "runs/averaged"


def files_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "averages").glob("step=*")}


def test_a_run_that_goes_on_writes_the_same_snapshots(trained, tmp_path):
    args = ["fit", "-c", write_config(tmp_path), "--model.average_every=2", "--trainer.precision=bf16-mixed"]
    process = start([*args, "--name=killed"], tmp_path)
    path = tmp_path / "runs/killed/checkpoints/step=0000004.ckpt"
    deadline = time.monotonic() + 200
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.exists()
    torch.save({}, tmp_path / "runs/killed/averages/step=0000006.safetensors")  # one that came after the checkpoint
    finish(start([*args, "--name=killed"], tmp_path))
    whole, killed = files_of(trained), files_of(tmp_path / "runs/killed")
    assert sorted(whole) == [f"step={step:07d}.safetensors" for step in range(2, 13, 2)]
    assert whole == killed
    left, right = (final(folder)["state_dict"] for folder in (trained, tmp_path / "runs/killed"))
    assert sum(name.startswith("averages.") for name in left) == 2 * sum(name.startswith("ema.") for name in left)
    assert all(torch.equal(left[name], value) for name, value in right.items())


def test_a_run_trains_the_same_with_and_without_averages(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--name=plain", "--trainer.precision=bf16-mixed", "--trainer.val_check_interval=4"]
    cli.main(["fit", "-c", write_config(tmp_path), *args])
    assert not (tmp_path / "runs/plain/averages").exists()
    left, right = final(trained)["state_dict"], final(tmp_path / "runs/plain")["state_dict"]
    assert {name.partition(".")[0] for name in right} == {"net", "ema"}
    assert all(torch.equal(left[name], value) for name, value in right.items())
    assert curve(trained, "val/loss") == curve(tmp_path / "runs/plain", "val/loss")


def test_a_trial_of_the_code_keeps_no_averages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--name=dev", "--model.average_every=1", "--trainer.fast_dev_run=2", "--samples.num_samples=1"]
    cli.main(["fit", "-c", write_config(tmp_path), *args])
    assert not (tmp_path / "runs/dev/averages").exists()
    assert not (tmp_path / "runs/dev/checkpoints").exists()


def test_the_best_length_is_measured_kept_and_usable(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(
        ["average", "--run", str(trained), "--lengths", "0.05", "0.1", "0.12", "0.28", "--trainer.accelerator=cpu"]
    )
    table = capsys.readouterr().out
    found = json.loads((trained / "averages/lengths.json").read_text())
    assert found["step"] == 12
    assert list(found["lengths"]) == ["0.05", "0.1", "0.12"]
    assert "0.28    left out: 6 snapshots do not make it" in table
    assert found["ema"] == curve(trained, "val/loss")[-1][1]  # in bfloat16, as while training
    assert len({*found["lengths"].values(), found["ema"]}) == 4
    assert found["best"] == float(min(found["lengths"], key=found["lengths"].get))
    for value in (*found["lengths"].values(), found["ema"]):
        assert f"{value:.6f}" in table
    best = trained / "averages/best.safetensors"
    args = ["--ckpt_path", str(best), "--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed"]
    cli.main(["validate", *args])
    assert f"val/loss {found['lengths'][str(found['best'])]:.6f} of" in capsys.readouterr().out
    cli.main(["predict", *args, "--num_samples=1"])
    assert (trained / "predict/contact_sheet.png").is_file()


def test_one_length_is_measured_too(trained, tmp_path):
    output = tmp_path / "one.safetensors"
    args = ["--lengths=[0.1]", "--output", str(output), "--trainer.accelerator=cpu"]
    cli.main(["average", f"--run={trained}", *args])
    found = json.loads((trained / "averages/lengths.json").read_text())
    assert found["best"] == 0.1
    assert list(found["lengths"]) == ["0.1"]
    kept = final(trained)["state_dict"]
    for name, value in load(output).ema.named_parameters():
        torch.testing.assert_close(value, kept[f"averages.1.{name}"], rtol=1e-5, atol=1e-7)


MISTAKES = {
    "no run": ([], "needs --run: a run's folder"),
    "no such run": (["--run=nowhere"], "no checkpoint at nowhere"),
    "weights alone": (
        ["--run=w.safetensors"],
        "w.safetensors is no run and none of its checkpoints",
    ),
    "a length out of range": (["--run=RUN", "--lengths", "0.1", "0.5"], "length is 0.5; choose lengths in"),
    "a length below nothing": (["--run=RUN", "--lengths", "0.1", "-0.1"], "length is -0.1; choose lengths in"),
    "a file below a file": (["--run=RUN", "--output=w.safetensors/best.safetensors"], "choose another output"),
    "a folder for a file": (["--run=RUN", "--output=runs/folder.safetensors"], "it is a folder"),
    "no lengths": (["--run=RUN", "--lengths=[]"], "no lengths to try"),
    "another file": (["--run=RUN", "--output=w.pt"], "must end in .safetensors"),
    "a run without averages": (["--run=runs/plain", "--model.average_every=2"], "train with model.average_every set"),
    "half a snapshot": (["--run=runs/half"], "step=0000004.safetensors is not a whole snapshot; delete it"),
    "too few snapshots": (["--run=runs/few", "--lengths=[0.25]"], "1 snapshots make no average of length 0.25"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_line(mistake, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(trained), "w.safetensors"])
    args, said = MISTAKES[mistake]
    if mistake == "a run without averages":
        cli.main(
            ["fit", "-c", write_config(tmp_path), "--name=plain", "--trainer.max_steps=1", "--samples.num_samples=1"]
        )
    Path("runs/folder.safetensors").mkdir(parents=True)
    if any("--output" in arg for arg in args):  # refused before anything is measured
        monkeypatch.setattr(LatteTrainer, "_held_out_loss", None)
    for name in ("half", "few"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    shutil.rmtree("runs/few/averages")
    os.truncate("runs/half/averages/step=0000004.safetensors", 100)
    with pytest.raises(SystemExit) as stop:
        cli.main(["average", *(arg.replace("RUN", str(trained)) for arg in args), "--trainer.accelerator=cpu"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("latte: error: ")
    assert said in line
