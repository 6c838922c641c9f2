"""What a training step takes, and which settings lower it where memory is exhausted."""

import pytest
import torch

from latte_pl import KLAutoencoder
from latte_pl.profiling.advice import (
    OutOfMemory,
    SamplingStep,
    TrainingStep,
    advised,
    in_autoencoder,
    is_out_of_memory,
)
from latte_pl.profiling.memory import count_memory, count_sampling_memory
from latte_pl.training.weights import outline


def config(**options):
    net = {"hidden_size": 64, "depth": 2, "num_heads": 2, "patch_size": 2, "input_size": [8, 12], "num_frames": 4}
    net |= {"conditioning": "class", "num_classes": 3, "learn_sigma": False} | options
    return {
        "model": {
            "net": {"class_path": "latte_pl.nn.Latte", "init_args": net},
            "diffusion": {"class_path": "latte_pl.diffusion.RectifiedFlow"},
            "sampling": {"sampler": "euler", "guidance": 2.0},
            "ema_snapshot_every": 0,
        },
        "data": {"init_args": {"global_batch_size": 24, "num_images": 0, "num_frames": 4}},
        "trainer": {"precision": "32-true"},
    }


def exhausted():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_memory_of_a_step_is_that_of_the_clips_of_a_device():
    net = outline(config())
    assert TrainingStep(config(), num_devices=2, accumulate=3).batch_size == 4
    assert TrainingStep(config(), num_devices=2, accumulate=3).memory() == count_memory(net, 0, 4).peak
    memory = count_memory(net, 0, 12)
    sharded = TrainingStep(config(), num_devices=2, sharded=True).memory()
    assert sharded == memory.peak - 5 * memory.weights + 5 * memory.weights // 2


def test_the_first_three_settings_that_help_do_not_change_the_result():
    step = TrainingStep(config())
    said = step.advice(torch.OutOfMemoryError())
    total, changed = step.memory(), {name: other.memory() for name, other in step.remedies()[:3]}
    checkpointing = "--model.net.init_args.activation_checkpointing true"
    shown = ["--trainer.accumulate_grad_batches 2", checkpointing, "--trainer.precision bf16-mixed"]
    assert list(changed) == shown
    for name in shown:
        assert changed[name] < total
        assert f"{name} (to {changed[name] / 2**20:.0f} MiB, -{1 - changed[name] / total:.0%})" in said
    assert "num_frames" not in said
    saved = [said.index(name) for name in sorted(shown, key=changed.get)]
    assert saved == sorted(saved)  # the one that saves most comes first


def test_settings_that_are_set_already_are_not_proposed():
    used = config(activation_checkpointing=True)
    used["trainer"]["precision"] = "bf16-mixed"
    used["data"]["init_args"]["global_batch_size"] = 1
    assert [name for name, _ in TrainingStep(used).remedies()] == ["--data.num_frames 2"]
    used["model"]["ema_snapshot_every"] = 10
    assert TrainingStep(used).remedies()[0][0] == "--model.ema_snapshot_every 0"
    assert "-c trainer/fsdp.yaml" in dict(TrainingStep(used, num_devices=2).remedies())


def test_smaller_batches_of_samples_are_proposed():
    step = SamplingStep(config(), 8)
    assert step.memory() == count_sampling_memory(outline(config()), 16)  # guidance doubles the batch
    sizes = {name: other.memory() for name, other in step.remedies()}
    assert sizes["--batch_size 2"] < sizes["--batch_size 4"] < step.memory()
    assert sizes["--model.sampling.guidance 1"] == sizes["--batch_size 4"]
    assert "--batch_size 2 (to " in step.advice(torch.OutOfMemoryError())
    assert not any("batch_size" in name for name, _ in SamplingStep(config(), 1).remedies())


def test_sampling_memory_is_that_of_the_largest_layer():
    net, small = outline(config()), outline(config(depth=4))
    weights = [sum(p.numel() * 4 for p in model.parameters()) for model in (net, small)]
    one, two = count_sampling_memory(net, 2), count_sampling_memory(small, 2)
    assert two - one == 2 * (weights[1] - weights[0])  # more layers of the same size only add weights


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_exhausted_memory_is_told_from_other_errors(error, exhausted):
    assert is_out_of_memory(error) == exhausted
    with pytest.raises(OutOfMemory if exhausted else type(error), match="help" if exhausted else None):  # noqa: SIM117
        with advised(lambda _: "help"):
            raise error


def test_the_autoencoder_is_told_from_the_denoiser(monkeypatch):
    autoencoder = KLAutoencoder("toy")
    monkeypatch.setattr(autoencoder.vae, "encode", lambda frames: exhausted())
    with pytest.raises(torch.OutOfMemoryError) as raised:
        autoencoder.encode(torch.zeros(1, 2, 3, 16, 24, dtype=torch.uint8))
    assert in_autoencoder(raised.value)
    said = TrainingStep(config()).advice(raised.value)
    assert "slice_frames" in said
    assert "data.latents" in said
    with pytest.raises(torch.OutOfMemoryError) as raised:
        exhausted()
    assert not in_autoencoder(raised.value)
