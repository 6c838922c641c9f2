"""When checkpoints are written, and that a thread writes what a training had at its step."""

import threading

import pytest
import torch
from lightning import Callback, Trainer
from runs import differences

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling, checkpoints
from latte_pl.training.checkpoints import AtomicCheckpointIO, RunCheckpoint
from latte_pl.training.strategies import FullyShard


def fit(folder, saving, steps, callbacks=(), **options):
    net = Latte(
        hidden_size=16, depth=2, num_heads=2, patch_size=8, input_size=(16, 24), in_channels=3, num_frames=4,
        conditioning="class", num_classes=8,
    )  # fmt: skip
    net.init_weights(0)
    module = LatteModule(net, GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 2), lr=1e-2)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, max_steps=steps, logger=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[saving, *callbacks], **options,
    )  # fmt: skip
    data = Shapes(size=(16, 24), num_frames=4, interval=3, global_batch_size=4, val_clips=4, num_workers=0)
    trainer.fit(module, datamodule=data)


def steps_of(folder):
    return sorted(int(path.name[5:-5]) for path in (folder / "checkpoints").iterdir())


class Clock(Callback):
    """A clock that a training step takes 20 seconds on."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def on_train_batch_end(self, *_):
        self.now += 20.0


@pytest.mark.parametrize(
    ("minutes", "every", "expected"),
    [
        (1.0, 1000, [4, 8, 10]),  # known one step after the minute is over
        (1.0, 3, [3, 6, 9, 10]),  # checkpoints by step restart the minute
        (None, 1000, [10]),
        (100.0, 1000, [10]),
    ],
)
def test_checkpoints_are_written_by_time(tmp_path, monkeypatch, minutes, every, expected):
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    fit(tmp_path, RunCheckpoint(every, keep=None, every_n_minutes=minutes), 10, [clock])
    assert steps_of(tmp_path) == expected


def test_thread_writes_the_state_of_its_step(tmp_path):
    for name, asynchronous in (("one", False), ("two", True)):
        fit(tmp_path / name, RunCheckpoint(2, keep=2, asynchronous=asynchronous), 7)
        assert steps_of(tmp_path / name) == [6, 7]
    for step in (6, 7):
        one, two = (
            torch.load(tmp_path / name / f"checkpoints/step={step:07d}.ckpt", weights_only=True)
            for name in ("one", "two")
        )
        for state in (one, two):
            state.pop("callbacks")  # it names the arguments
        assert list(differences(one, two)) == []


def test_training_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    free, write, waited = threading.Event(), checkpoints._write, []

    def slow(checkpoint, path):
        waited.append(free.wait(60))
        write(checkpoint, path)

    class Release(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:  # the checkpoint of step 3 is not written yet
                assert not (tmp_path / "checkpoints").exists()
                free.set()

    monkeypatch.setattr(checkpoints, "_write", slow)
    fit(tmp_path, RunCheckpoint(3, keep=None, asynchronous=True), 7, [Release()])
    assert waited == [True] * 3
    assert steps_of(tmp_path) == [3, 6, 7]


def test_checkpoint_that_cannot_be_written_ends_the_training(tmp_path):
    (tmp_path / "checkpoints").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot write .*step=0000002\.ckpt"):
        fit(tmp_path, RunCheckpoint(2, asynchronous=True), 9)


def test_copy_is_taken_before_the_training_goes_on(tmp_path, monkeypatch):
    free, write = threading.Event(), checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda *args: (free.wait(60), write(*args)))
    weight, io = torch.ones(2, 3), AtomicCheckpointIO(asynchronous=True)
    io.save_checkpoint({"state_dict": {"w": weight}, "loops": [(1, weight)]}, tmp_path / "a.ckpt")
    weight.zero_()
    free.set()
    io.save_checkpoint({"state_dict": {"w": weight, "more": weight[:1]}, "loops": []}, tmp_path / "b.ckpt")
    weight.fill_(7.0)
    io.teardown()
    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in "ab")
    assert torch.equal(one["state_dict"]["w"], torch.ones(2, 3))
    assert torch.equal(one["loops"][0][1], torch.ones(2, 3))
    assert torch.equal(two["state_dict"]["w"], torch.zeros(2, 3))
    assert torch.equal(two["state_dict"]["more"], torch.zeros(1, 3))
    assert two["loops"] == []


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"keep": 0}, {"every_n_minutes": 0.0}])
def test_number_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        RunCheckpoint(**options)


def test_sharded_checkpoints_are_not_written_in_a_thread():
    trainer = type("Sharding", (), {"strategy": FullyShard(sharded_checkpoints=True)})()
    with pytest.raises(ValueError, match="the strategy shards checkpoints"):
        RunCheckpoint(asynchronous=True).setup(trainer, None, "fit")
