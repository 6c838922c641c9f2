"""Post-hoc EMA: the numbers of the paper, and the EMAs that `latte average` reconstructs from snapshots."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from lightning import Trainer
from runs import curve, final, write_config
from safetensors.torch import load_file
from torch import nn

from latte_pl import cli
from latte_pl.training import load
from latte_pl.training.post_hoc_ema import (
    SIGMA_RELS,
    TOLERANCE,
    reconstruct,
    reconstruction_error,
    snapshots,
    solve_weights,
    std_to_exp,
    update,
    write_snapshot,
)

EVERY, STEPS = 10, 100


def profile(steps, sigma_rel):
    """Return the weight of each step in an EMA: the product of the decays of all later steps."""
    beta = (1.0 - 1.0 / np.arange(1, steps + 1)) ** (std_to_exp(sigma_rel) + 1.0)
    return np.array([(1.0 - beta[n]) * np.prod(beta[n + 1 :]) for n in range(steps)])


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(sigma_rel, gamma):
    assert std_to_exp(sigma_rel) == pytest.approx(gamma, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.005, 0.03, 0.2, 0.28])
def test_sigma_rel_is_the_standard_deviation_of_the_profile(sigma_rel):
    gamma = std_to_exp(sigma_rel)
    mean, square = ((gamma + 1) / (gamma + 1 + n) for n in (1, 2))  # moments of (gamma + 1) tau^gamma on [0, 1]
    assert np.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, float("nan")])
def test_sigma_rel_out_of_range_raises(sigma_rel):
    with pytest.raises(ValueError, match=r"sigma_rel is .*; it must lie in \[0.005, 0.28\]"):
        std_to_exp(sigma_rel)


def walk(steps):
    """Return the weights (steps, 12) of a random walk that starts at 1."""
    generator = torch.Generator().manual_seed(0)
    return 1.0 + torch.randn(steps, 12, generator=generator, dtype=torch.float64).cumsum(0) * 0.1


def net(values=None):
    """Return a network of 12 parameters and a buffer."""
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
    """A checkpoint of the walk, with snapshots beside it as a run writes them, and the EMAs of the last step."""
    folder = tmp_path_factory.mktemp("written")
    averages = nn.ModuleList(net() for _ in SIGMA_RELS)
    for step, values in enumerate(walk(STEPS), start=1):
        update(averages, net(values), step)
        if step % EVERY == 0:
            write_snapshot(averages, folder, step)
    checkpoint = folder / "checkpoints" / f"step={STEPS:07d}.ckpt"
    checkpoint.parent.mkdir()
    state = {f"averages.{name}": value for name, value in averages.state_dict().items()}
    torch.save({"state_dict": state}, checkpoint)
    return checkpoint, averages


def test_ema_is_the_weighted_sum_of_all_steps(written):
    for average, sigma_rel in zip(written[1], SIGMA_RELS):
        weights = torch.from_numpy(profile(STEPS, sigma_rel))
        assert weights.sum() == pytest.approx(1.0)
        torch.testing.assert_close(flat(average), weights @ walk(STEPS), rtol=1e-9, atol=0.0)


def test_snapshot_contains_both_emas(written):
    checkpoint, averages = written
    path = checkpoint.parent.parent / "averages" / f"step={STEPS:07d}.safetensors"
    state = load_file(path)
    assert sorted(state) == sorted(name for name, _ in averages.named_parameters())
    for name, value in averages.named_parameters():
        assert torch.equal(state[name], value)
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.2, 0.25])
def test_other_sigma_rels_are_reconstructed(written, sigma_rel):
    checkpoint, averages = written
    made = net()
    reconstruct(made, snapshots(checkpoint, STEPS, EVERY), sigma_rel)
    wanted = torch.from_numpy(profile(STEPS, sigma_rel)) @ walk(STEPS)
    error = (flat(made) - wanted).norm() / wanted.norm()
    nearest = min((flat(average) - wanted).norm() / wanted.norm() for average in averages)
    assert error < 0.02
    assert error < nearest / 5
    assert made.position == 7.0


@pytest.mark.parametrize("which", [0, 1])
def test_sigma_rels_of_the_snapshots_are_exact(written, which):
    checkpoint, averages = written
    made = net()
    reconstruct(made, snapshots(checkpoint, STEPS, EVERY), SIGMA_RELS[which])
    torch.testing.assert_close(flat(made), flat(averages[which]), rtol=1e-9, atol=0.0)


def test_reconstruction_error_is_the_difference_of_the_profiles():
    few, many = list(range(250, 1001, 250)), list(range(10, 1001, 10))
    for steps, sigma_rel in ((few, 0.25), (few, 0.1), (many, 0.25), (many, 0.03)):
        kept = np.stack([np.pad(profile(t, known), (0, 1000 - t)) for t in steps for known in SIGMA_RELS])
        wanted = profile(1000, sigma_rel)
        error = np.linalg.norm(solve_weights(steps, sigma_rel).ravel() @ kept - wanted) / np.linalg.norm(wanted)
        assert reconstruction_error(steps, sigma_rel) == pytest.approx(error, rel=0.05, abs=2e-3)
    assert reconstruction_error(few, 0.25) > TOLERANCE > reconstruction_error(many, 0.25)


@pytest.mark.parametrize("steps", [[4], [4, 8, 12, 13], list(range(10, 2001, 10))])
def test_weights_of_the_snapshots_sum_to_one(steps):
    factors = solve_weights(steps, 0.25)
    assert factors.shape == (len(steps), 2)
    assert factors.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.abs(factors).max() < 10


def test_snapshots_of_other_steps_are_ignored(written):
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
    """The folder of a run of 12 steps with a snapshot every second step."""
    folder = tmp_path_factory.mktemp("trained")
    args = ["--model.ema_snapshot_every=2", "--trainer.val_check_interval=4", "--trainer.precision=bf16-mixed"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--name=averaged", *args])
    return folder / "runs/averaged"


def test_snapshots_do_not_change_the_training(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--name=plain", "--trainer.precision=bf16-mixed", "--trainer.val_check_interval=4"]
    cli.main(["fit", "-c", write_config(tmp_path), *args])
    assert not (tmp_path / "runs/plain/averages").exists()
    left, right = final(trained)["state_dict"], final(tmp_path / "runs/plain")["state_dict"]
    assert {name.partition(".")[0] for name in right} == {"net", "ema"}
    assert all(torch.equal(left[name], value) for name, value in right.items())
    assert curve(trained, "val/loss") == curve(tmp_path / "runs/plain", "val/loss")


def test_fast_dev_run_writes_neither_snapshots_nor_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--name=dev", "--model.ema_snapshot_every=1", "--trainer.fast_dev_run=2", "--samples.num_samples=1"]
    cli.main(["fit", "-c", write_config(tmp_path), *args])
    assert not (tmp_path / "runs/dev/averages").exists()
    assert not (tmp_path / "runs/dev/checkpoints").exists()


def test_average_exports_the_length_with_the_lowest_loss(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main(["average", str(trained), "--sigma_rels=[0.05,0.1,0.12,0.28]", "--accelerator=cpu"])
    table = capsys.readouterr().out
    found = json.loads((trained / "averages/sigma_rels.json").read_text())
    assert found["step"] == 12
    assert list(found["sigma_rels"]) == ["0.05", "0.1", "0.12"]
    assert re.search(r"^0.28 +skipped: reconstruction error 0.\d\d with 6 snapshots$", table, re.MULTILINE)
    assert found["ema"] == curve(trained, "val/loss")[-1][1]  # in the precision of the training
    assert len({*found["sigma_rels"].values(), found["ema"]}) == 4
    assert found["best"] == float(min(found["sigma_rels"], key=found["sigma_rels"].get))
    for value in (*found["sigma_rels"].values(), found["ema"]):
        assert f"{value:.6f}" in table
    best = trained / "averages/best.safetensors"
    args = ["--ckpt_path", str(best), "--trainer.accelerator=cpu", "--trainer.precision=bf16-mixed"]
    cli.main(["validate", *args])
    assert f"val/loss {found['sigma_rels'][str(found['best'])]:.6f} of" in capsys.readouterr().out
    cli.main(["predict", *args, "--num_samples=1"])
    assert (trained / "predict/contact_sheet.png").is_file()


def test_average_of_one_length_writes_the_given_file(trained, tmp_path):
    output = tmp_path / "one.safetensors"
    cli.main(["average", str(trained), "--sigma_rels=[0.1]", "--output", str(output), "--accelerator=cpu"])
    found = json.loads((trained / "averages/sigma_rels.json").read_text())
    assert found["best"] == 0.1
    assert list(found["sigma_rels"]) == ["0.1"]
    stored = final(trained)["state_dict"]
    for name, value in load(output).ema.named_parameters():
        torch.testing.assert_close(value, stored[f"averages.1.{name}"], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def mistakes(trained, tmp_path_factory):
    """A folder with runs that cannot be averaged."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["export", str(trained), "w.safetensors"])
        args = ["--name=plain", "--trainer.max_steps=1", "--samples.num_samples=1"]
        cli.main(["fit", "-c", write_config(folder), *args])
    (folder / "runs/folder.safetensors").mkdir()
    for name in ("whole", "half", "few"):
        shutil.copytree(trained, folder / "runs" / name)
    shutil.rmtree(folder / "runs/few/averages")
    os.truncate(folder / "runs/half/averages/step=0000004.safetensors", 100)
    return folder


WHOLE = "runs/whole"
MISTAKES = {
    "no run": ([], "run"),
    "missing run": (["nowhere"], "there is no checkpoint at nowhere"),
    "exported file": (["w.safetensors"], "w.safetensors is no run and none of its checkpoints"),
    "too long": ([WHOLE, "--sigma_rels=[0.1,0.5]"], "sigma_rel is 0.5; it must lie in [0.005, 0.28]"),
    "negative length": ([WHOLE, "--sigma_rels=[0.1,-0.1]"], "sigma_rel is -0.1; it must lie in"),
    "no lengths": ([WHOLE, "--sigma_rels=[]"], "there are no lengths to try"),
    "output below a file": ([WHOLE, "--output=w.safetensors/best.safetensors"], "choose another output"),
    "output is a folder": ([WHOLE, "--output=runs/folder.safetensors"], "it is a folder"),
    "output of another type": ([WHOLE, "--output=w.pt"], "must end in .safetensors"),
    "run without snapshots": (["runs/plain"], "has no snapshots of EMAs; train with model.ema_snapshot_every"),
    "damaged snapshot": (["runs/half"], "step=0000004.safetensors is damaged; delete it"),
    "too few snapshots": (
        ["runs/few", "--sigma_rels=[0.25]"],
        "1 snapshots are too few to reconstruct EMAs of sigma_rel 0.25",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_ends_with_one_line(mistake, mistakes, capsys, monkeypatch):
    monkeypatch.chdir(mistakes)
    args, message = MISTAKES[mistake]
    if mistake != "damaged snapshot":  # refused before anything is measured
        monkeypatch.setattr(Trainer, "validate", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["average", *args, "--accelerator=cpu"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("latte: error: ")
    assert message in line
