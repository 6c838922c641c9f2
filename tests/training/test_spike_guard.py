"""A step with a spike of the gradient changes nothing, and resuming does not change which steps are skipped."""

import copy

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from runs import differences

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, SpikeGuard

SPIKES = {5: 100.0, 8: float("inf")}
"""Factors of the gradient, by step."""


class Spikes(Callback):
    """Scale the gradient at some steps, and keep weights and optimizer state after each step."""

    def __init__(self):
        self.states = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step + 1 in SPIKES:
            for parameter in pl_module.net.parameters():
                parameter.grad *= SPIKES[trainer.global_step + 1]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states[trainer.global_step] = copy.deepcopy(
            (pl_module.net.state_dict(), trainer.optimizers[0].state_dict()["state"])
        )


def train(folder, steps, guard, ckpt_path=None, **options):
    net = Latte(
        hidden_size=16, depth=2, num_heads=2, patch_size=8, input_size=(16, 24), in_channels=3, num_frames=4,
        conditioning="class", num_classes=8,
    )  # fmt: skip
    net.init_weights(0)
    torch.nn.init.normal_(net.final_layer.linear.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    module = LatteModule(net, GaussianDiffusion(), PixelAutoencoder(), lr=1e-3, weight_decay=0.1)
    spikes = Spikes()
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, max_steps=steps, logger=CSVLogger(folder),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        log_every_n_steps=1, callbacks=[spikes, *([guard] if guard else [])], **options,
    )  # fmt: skip
    data = Shapes(size=(16, 24), num_frames=4, interval=3, global_batch_size=4, val_clips=4, num_workers=0)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.logger.save()
    return trainer, spikes.states


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spikes")
    return folder, *train(folder, 9, SpikeGuard(factor=10.0, window=3))


def test_spikes_change_neither_weights_nor_optimizer(whole):
    _, trainer, states = whole
    unchanged = [step for step in range(2, 10) if not list(differences(states[step - 1], states[step]))]
    assert unchanged == list(SPIKES)
    assert trainer.global_step == 9
    assert all(value.isfinite().all() for value in states[9][0].values())


def test_steps_before_a_spike_are_those_without_a_guard(whole, tmp_path):
    states = train(tmp_path, 4, None)[1]
    assert list(differences(states[4], whole[2][4])) == []


def test_skipped_steps_are_logged(whole):
    folder = whole[0]
    (path,) = folder.rglob("metrics.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    place, step = header.index("train/skipped_steps"), header.index("step")
    counts = {int(row[step]): int(row[place]) for row in rows if row[place]}
    assert counts == {n: sum(spike <= n for spike in SPIKES) for n in range(1, 10)}


def test_resumed_training_skips_the_same_steps(whole, tmp_path):
    trainer, _ = train(tmp_path, 4, SpikeGuard(factor=10.0, window=3))  # the next step is a spike
    trainer.save_checkpoint(tmp_path / "step=0000004.ckpt")
    guard = SpikeGuard(factor=10.0, window=3)
    _, states = train(tmp_path / "resumed", 9, guard, ckpt_path=tmp_path / "step=0000004.ckpt")
    assert guard.skipped == 2
    assert list(differences(states[9], whole[2][9])) == []


def test_large_gradients_that_stay_are_accepted():
    guard = SpikeGuard(factor=2.0, window=4)
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([parameter])
    trainer = type("Precise", (), {"precision": "32-true"})()
    accepted = []
    for norm in [1.0] * 4 + [10.0] * 4:
        parameter.grad = torch.full((2, 3), norm)
        guard.on_before_optimizer_step(trainer, None, optimizer)
        accepted.append(parameter.grad is not None)
    assert accepted == [True] * 4 + [False] * 2 + [True] * 2


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"window": 0}])
def test_number_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="must be above 1 and at least 1"):
        SpikeGuard(**options)
