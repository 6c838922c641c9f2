"""Training steps read no value from the device and send it nothing; `test_gpu_runs` checks this on a GPU."""

from collections import Counter

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion, RectifiedFlow
from latte_pl.nn import Latte
from latte_pl.training import LatteModule, Sampling

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")
"""Operators that wait for a GPU, because the host needs a value or a shape that depends on values."""
SENDS = ("aten::lift_fresh", "aten::_pin_memory", "aten::normal_", "aten::uniform_", "aten::random_", "aten::rand")
"""Operators that make a tensor from Python values, or draw on the CPU; its copy to a GPU would be a blocking one."""


class Operators(TorchDispatchMode):
    """Count the calls of operators by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.name().partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


class DuringSteps(Callback):
    """Count operators from the start of a batch, when it has arrived, to the end of its optimizer step."""

    def __init__(self):
        self.operators, self.batches = Operators(), 0

    def on_train_batch_start(self, *_):
        self.operators.__enter__()

    def on_train_batch_end(self, *_):
        self.operators.__exit__(None, None, None)
        self.batches += 1


@pytest.mark.parametrize("diffusion", [GaussianDiffusion(), GaussianDiffusion(min_snr_gamma=5.0), RectifiedFlow()])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"conditioning": "none", "temporal_position": "rope", "qk_norm": True, "injection": "tokens"},
        {"conditioning": "class", "num_classes": 5, "class_dropout": 0.1},
    ],
)
def test_training_steps_neither_read_from_the_device_nor_send_to_it(diffusion, cached, options):
    net = Latte(
        hidden_size=32, depth=2, num_heads=2, patch_size=2, input_size=(4, 6), in_channels=3, num_frames=4,
        learn_sigma=diffusion.learn_sigma, **options,
    )  # fmt: skip
    sampling = Sampling(diffusion.samplers[0], 4)
    module = LatteModule(net, diffusion, PixelAutoencoder(), sampling, ema_snapshot_every=100)
    generator = torch.Generator().manual_seed(0)
    videos = torch.randint(256, (12, 4, 3, 4, 6), dtype=torch.uint8, generator=generator)
    moments = torch.cat(PixelAutoencoder().moments(videos), dim=2).half()
    clips = [
        {"moments" if cached else "video": (moments if cached else videos)[n], "label": torch.tensor(n % 5)}
        for n in range(12)
    ]
    watch = DuringSteps()
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(clips, batch_size=2))
    calls = watch.operators.calls
    assert watch.batches == 6
    assert calls["aten::_fused_adamw_"] == 3  # the steps were counted
    if options["conditioning"] == "class":
        calls["aten::_local_scalar_dense"] -= watch.batches  # the check of the labels, which a GPU does without
    assert {name: calls[name] for name in (*READS, *SENDS) if calls[name]} == {}
