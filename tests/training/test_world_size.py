"""The number of devices and of accumulated batches does not change a training."""

import json
from pathlib import Path

import pytest
import torch
from lightning import Callback
from runs import final, run_distributed, write_config
from safetensors.torch import load_file

from latte_pl import cli

SETTINGS = ["--trainer.max_steps=6", "--model.ema_snapshot_every=3", "--samples.every_n_steps=100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run on one device, "one"."""
    folder = tmp_path_factory.mktemp("world_size")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), *SETTINGS, "--name=one"])
    return folder


def check_equal(folder, name):
    left, right = (
        final(folder / "runs" / run, 6)["state_dict"]
        | load_file(folder / "runs" / run / "averages/step=0000003.safetensors")
        for run in ("one", name)
    )
    assert left.keys() == right.keys()
    for key, value in left.items():
        # AdamW divides small gradients by their own size in the first steps, which amplifies rounding errors
        torch.testing.assert_close(right[key], value, rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_accumulated_batches_do_not_change_the_weights(folder, monkeypatch):
    monkeypatch.chdir(folder)
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=5", "--name=accumulated"]
    cli.main(["fit", "-c", "tiny.yaml", *SETTINGS, *more])
    check_equal(folder, "accumulated")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_do_not_change_the_weights(folder, strategy):
    run_distributed(
        ["fit", "-c", "tiny.yaml", "-c", f"trainer/{strategy}.yaml", *SETTINGS, f"--name={strategy}"], folder
    )
    check_equal(folder, strategy)


class RecordGathered(Callback):
    """Write the dtypes of a block's weights: in its forward pass, between steps, and of their gradients."""

    def on_fit_start(self, trainer, pl_module):
        self.seen = set()
        linear = pl_module.net.blocks[0].mlp.fc1
        linear.register_forward_hook(lambda layer, *_: self.seen.add(("forward", str(layer.weight.dtype))))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weight = pl_module.net.blocks[0].mlp.fc1.weight
        self.seen |= {("between", str(weight.dtype)), ("gradient", str(weight.grad.dtype))}

    def on_fit_end(self, trainer, pl_module):
        Path("gathered.json").write_text(json.dumps(sorted(self.seen)))


def test_fsdp_gathers_in_bf16_and_trains_as_autocast_on_one_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "-c", write_config(tmp_path), *SETTINGS, "--trainer.precision=bf16-mixed"]
    cli.main([*fit, "--name=one"])
    record = "--trainer.callbacks=[{class_path: test_world_size.RecordGathered}]"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    run_distributed([*fit, "-c", "trainer/fsdp.yaml", "--name=fsdp", record], tmp_path)
    seen = json.loads((tmp_path / "gathered.json").read_text())
    assert seen == [["between", "torch.float32"], ["forward", "torch.bfloat16"], ["gradient", "torch.float32"]]
    one, two = (
        torch.cat([value.flatten() for value in final(tmp_path / "runs" / run, 6)["state_dict"].values()])
        for run in ("one", "fsdp")
    )
    assert float((one - two).norm() / one.norm()) < 0.01  # gradients of half a batch each, rounded to bf16


def test_gradients_in_bf16_change_the_weights_by_their_rounding_alone(folder):
    run_distributed(["fit", "-c", "tiny.yaml", "-c", "trainer/ddp_bf16.yaml", *SETTINGS, "--name=ddp_bf16"], folder)
    one, other = (
        torch.cat([value.flatten() for value in final(folder / "runs" / run, 6)["state_dict"].values()])
        for run in ("one", "ddp_bf16")
    )
    assert 0.0 < float((one - other).norm() / one.norm()) < 0.01
