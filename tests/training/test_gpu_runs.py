"""Training and evaluation on a GPU, compared with the CPU.

Without a GPU, ``pytest -m gpu`` runs those of these tests on the CPU that it can run.
"""

import contextlib

import pytest
import torch
from lightning import Callback, Trainer
from runs import curve, final, run_distributed, write_config
from torch import nn

from latte_pl import cli
from latte_pl.autoencoders import KLAutoencoder, PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.metrics import Record
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling
from latte_pl.training.callbacks import StepProgressBar, Throughput

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
GPU = [f"--trainer.accelerator={'gpu' if CUDA else 'cpu'}", "--trainer.devices=1"]
FEW = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.log_every_n_steps=1"]
PROTOCOL = """
metrics: [toy_video_distance]
split: val
num_frames: 4
view: first
num_real: 16
real_seed: 0
extractor: shapes_r3d
num_generated: 16
generated_interval: 1
weights: ema
seed: 3
folds: 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a run on the CPU, runs/cpu, one on the GPU, runs/gpu, and a protocol, few.yaml."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "few.yaml").write_text(PROTOCOL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", "-c", write_config(folder), *FEW, "--name=cpu"])
        cli.main(["fit", "-c", "tiny.yaml", *FEW, *GPU, "--name=gpu"])
    return folder


@pytest.fixture(autouse=True)
def _no_process_group():
    """End the process group that a strategy for several devices starts."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def losses(folder, name, tag="train/loss"):
    return torch.tensor([value for _, value in curve(folder / "runs" / name, tag)])


def check_losses(folder, name, rtol):
    """Compare the losses of a run with those of the run on the CPU."""
    for tag, count in (("train/loss", 6), ("val/loss", 2)):
        expected = losses(folder, "cpu", tag)
        assert len(expected) == count
        torch.testing.assert_close(losses(folder, name, tag), expected, rtol=rtol, atol=0)


def test_a_gpu_has_the_losses_of_the_cpu(folder):
    check_losses(folder, "gpu", 1e-2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_group_of_one_gpu_has_the_losses_of_the_cpu(folder, strategy, monkeypatch):
    monkeypatch.chdir(folder)
    name = f"{strategy}_of_one"
    cli.main(["fit", "-c", "tiny.yaml", "-c", f"trainer/{strategy}.yaml", *FEW, *GPU, f"--name={name}"])
    assert torch.distributed.get_backend() == ("nccl" if CUDA else "gloo")
    check_losses(folder, name, 1e-2)
    assert final(folder / "runs" / name, 6)["global_step"] == 6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_have_the_losses_of_the_cpu(folder, strategy):
    name = f"{strategy}_of_two"
    args = ["fit", "-c", "tiny.yaml", "-c", f"trainer/{strategy}.yaml", *FEW, f"--name={name}"]
    run_distributed(args, folder, accelerator="gpu")
    check_losses(folder, name, 1e-2)


@needs_cuda
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_has_the_losses_of_float32(folder, precision, monkeypatch):
    monkeypatch.chdir(folder)
    cli.main(["fit", "-c", "tiny.yaml", *FEW, *GPU, f"--trainer.precision={precision}", f"--name={precision}"])
    check_losses(folder, precision, 3e-2)
    checkpoint = final(folder / "runs" / precision, 6)
    if precision == "16-mixed":
        assert checkpoint["MixedPrecision"]["scale"] > 1.0  # the state of the GradScaler
    assert all(v.dtype == torch.float32 for n, v in checkpoint["state_dict"].items() if n.startswith("net."))


def score(*args):
    cli.main(["test", "--ckpt_path=runs/cpu", "--protocol=few.yaml", *args])


def value(folder, output):
    (path,) = (folder / output).glob("*.json")
    return Record.read(path).scores["toy_video_distance"].value


def test_a_gpu_has_the_scores_of_the_cpu(folder, monkeypatch):
    monkeypatch.chdir(folder)
    score("--output=on_cpu", "--trainer.accelerator=cpu")
    score("--output=on_gpu", *GPU)
    assert value(folder, "on_gpu") == pytest.approx(value(folder, "on_cpu"), rel=0.02)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", pytest.param("16-true", marks=needs_cuda)])
def test_scores_in_half_precision_are_those_of_float32(folder, precision, monkeypatch):
    monkeypatch.chdir(folder)
    score(f"--output={precision}", *GPU, f"--trainer.precision={precision}")
    score("--output=in_float32", *GPU)
    assert value(folder, precision) == pytest.approx(value(folder, "in_float32"), rel=0.1)


class NoWaits(Callback):
    """Raise wherever the process waits for the GPU between the ends of two steps."""

    def __init__(self, first, last):
        self.first, self.last, self.steps = first, last, 0

    def on_train_batch_end(self, trainer, *_):
        if CUDA:
            inside = self.first <= trainer.global_step < self.last
            torch.cuda.set_sync_debug_mode("error" if inside else "default")
        self.steps += self.first < trainer.global_step <= self.last


@pytest.mark.parametrize("autoencoder", [PixelAutoencoder, KLAutoencoder])
def test_training_steps_do_not_wait_for_the_gpu(autoencoder):
    autoencoder = autoencoder()
    size = [16 * autoencoder.factor, 24 * autoencoder.factor]
    net = Latte(
        hidden_size=32, depth=2, num_heads=2, patch_size=2, input_size=(16, 24), in_channels=autoencoder.channels,
        num_frames=4, conditioning="class", num_classes=8, class_dropout=0.1,
    )  # fmt: skip
    module = LatteModule(net, GaussianDiffusion(), autoencoder, Sampling("ddim", 2))
    watch = NoWaits(3, 8)
    trainer = Trainer(
        accelerator="gpu" if CUDA else "cpu",
        devices=1,
        max_steps=9,
        max_epochs=-1,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        log_every_n_steps=100,  # steps that log their loss wait, but only they
        callbacks=[watch, StepProgressBar(), Throughput()],
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    data = Shapes(size=size, num_frames=4, interval=3, global_batch_size=4, num_workers=0)
    try:
        trainer.fit(module, data)
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    assert watch.steps >= 5


def test_a_gpu_encodes_under_autocast_as_without():
    device = "cuda" if CUDA else "cpu"
    autoencoder = KLAutoencoder().to(device)
    video = torch.randint(256, (1, 3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = KLAutoencoder().moments(video)
    for context in (contextlib.nullcontext(), torch.autocast(device, torch.bfloat16)):
        with context:
            found = autoencoder.moments(video.to(device))
        for one, other in zip(found, expected):
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=1e-2)  # TF32 in cuDNN


@needs_cuda
def test_fused_optimizers_step_on_a_gpu():
    module = LatteModule(
        Latte(hidden_size=32, depth=2, num_heads=2, in_channels=3), GaussianDiffusion(), PixelAutoencoder()
    )
    module._trainer = type("Trainer", (), {"max_steps": 1, "precision": "bf16-mixed"})()
    (optimizer,), _ = module.cuda().configure_optimizers()
    before = nn.utils.parameters_to_vector(module.net.parameters()).clone()
    for parameter in module.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert (nn.utils.parameters_to_vector(module.net.parameters()) < before).all()
