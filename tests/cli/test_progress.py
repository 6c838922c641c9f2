"""What commands show before and while they run, and how they end without memory."""

import re

import pytest
import torch
from runs import write_config

from latte_pl import LatteModule, cli

BAR = "--trainer.enable_progress_bar=true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run "two" of two steps."""
    folder = tmp_path_factory.mktemp("progress")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), "--trainer.max_steps=2", "--name=two"])
    return folder


def exhausted(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def error_of(capsys, *args):
    with pytest.raises(SystemExit):
        cli.main(list(args))
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_fit_says_first_what_it_takes_and_shows_the_samples_that_it_draws(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    more = ["--trainer.max_steps=3", "--trainer.accumulate_grad_batches=2", "--samples.every_n_steps=3", BAR]
    cli.main(["fit", "-c", "tiny.yaml", "--name=two", *more])
    said = capsys.readouterr()
    rows = dict(re.findall(r"^(parameters|clips a step|steps|memory|results) +(.*)$", said.out, re.MULTILINE))
    assert list(rows) == ["parameters", "clips a step", "steps", "memory", "results"]
    assert rows["clips a step"] == "4 (2 accumulated batches)"
    assert rows["steps"] == "3, of which 2 are done"
    assert re.fullmatch(r"about \d+ MiB for a step of 2 clips, .* the device has [\d.]+ GiB", rows["memory"])
    assert rows["results"] == "runs/two"
    assert "Sampling 3 videos:   0%" in said.err


def test_predict_shows_parts_of_videos_with_the_time_left(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    draw = ["predict", "--ckpt_path=runs/two", "--num_samples=3", "--batch_size=2", "--model.sampling.steps=3"]
    cli.main([*draw, BAR])
    shown = re.findall(r"([\d.]+)/3 videos \[[\d:]+<([\d:?]+)\]", capsys.readouterr().err)
    assert shown[0] == ("0.0", "?")
    assert shown[-1] == ("3.0", "00:00")
    cli.main([*draw, "--trainer.enable_progress_bar=false"])
    assert "videos [" not in capsys.readouterr().err


def test_commands_without_memory_end_with_what_helps(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    draw = ["--samples.every_n_steps=1", "--samples.num_samples=8"]
    with monkeypatch.context() as patch:
        patch.setattr(LatteModule, "sample", exhausted)
        assert "--samples.num_samples 2" in error_of(capsys, "fit", "-c", "tiny.yaml", "--name=drawn", *draw)
    for step in ("training_step", "predict_step", "validation_step"):
        monkeypatch.setattr(LatteModule, step, exhausted)
    said = error_of(capsys, "fit", "-c", "tiny.yaml", "--name=other")
    assert said.startswith("latte: error: out of memory: a training step of 4 clips on a device takes about ")
    assert len(re.findall(r"--[\w.]+ [\w-]+ \(to \d+ MiB, -\d+%\)", said)) == 3
    assert "--trainer.accumulate_grad_batches 2" in said
    said = error_of(capsys, "predict", "--ckpt_path=runs/two", "--num_samples=4")
    assert "a denoising step of 4 videos" in said
    assert "--batch_size 2" in said
    assert "--data.global_batch_size 2" in error_of(capsys, "validate", "--ckpt_path=runs/two")


def test_a_denoiser_that_cannot_be_counted_is_trained(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("latte_pl.profiling.advice.count_memory", lambda *_: 1 / 0)
    cli.main(["fit", "-c", "tiny.yaml", "--name=uncounted", "--trainer.max_steps=1"])
    assert "memory       unknown (ZeroDivisionError)" in capsys.readouterr().out
