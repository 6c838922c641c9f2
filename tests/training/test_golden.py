"""Golden losses: twenty training steps of every design axis, so that any change of the arithmetic is noticed.

After an intended change, `python tests/training/test_golden.py` records them anew.
"""

import json
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion, RectifiedFlow
from latte_pl.nn import Latte, LatteConfig
from latte_pl.rng import torch_generator
from latte_pl.training import LatteModule, Sampling
from latte_pl.types import Text

GOLDEN = Path(__file__).with_name("golden.json")
STEPS, BATCH, FRAMES, IMAGES, CLASSES = 20, 2, 4, 2, 5
TOLERANCE = 2e-5  # SSE4 for AVX-512 in all of torch's libraries changes less than 1e-6
CHOICES = LatteConfig.choices()
CASES = {
    **{f"{v} {i}": {"variant": v, "injection": i} for v, i in product(CHOICES["variant"], CHOICES["injection"])},
    "compression": {"patch_embed": "compression", "temporal_stride": 2},
    "rope": {"temporal_position": "rope"},
    "rope both": {"temporal_position": "rope", "injection": "tokens", "token_placement": "both"},
    "rope in space": {"spatial_position": "rope"},
    "query and key norm": {"qk_norm": True},
    "swiglu": {"swiglu": True},
    "rms norm": {"rms_norm": True},
    "rms norm tokens": {"rms_norm": True, "injection": "tokens"},
    "recipe": {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True},
    "min-SNR": {},
    "text": {"conditioning": "text", "num_classes": 0, "text_dim": 6, "text_length": 3},
    "joint": {},
    "flow": {"learn_sigma": False},
}


class Losses(Callback):
    """Collect the loss of each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def clip(number, num_images):
    """Return a clip whose pixels, labels and caption are integer functions of its index."""
    frames = torch.arange(FRAMES + num_images).view(-1, 1, 1, 1)
    places = torch.arange(3 * 8 * 12).view(3, 8, 12)
    label = (number + torch.arange(1 + num_images)) % CLASSES
    embeddings = ((number * 5 + torch.arange(3 * 6).view(3, 6) * 7) % 11 - 5) / 4
    return {
        "video": ((number * 37 + frames * 11 + places * 5 + places**2) % 256).to(torch.uint8),
        "label": label if num_images else label[0],
        "text": Text(embeddings, torch.arange(3) <= number % 3),
        "clip": torch.tensor(number),
    }


def losses(name):
    """Train a case, and return the loss of each step and of the EMA weights after the last one."""
    options = {"conditioning": "class", "num_classes": CLASSES, "class_dropout": 0.3, **CASES[name]}
    net = Latte(
        hidden_size=32,
        depth=4,
        num_heads=4,
        patch_size=2,
        input_size=(8, 12),
        in_channels=3,
        num_frames=FRAMES,
        **options,
    )
    module = LatteModule(
        net,
        RectifiedFlow() if name == "flow" else GaussianDiffusion(min_snr_gamma=5.0 if name == "min-SNR" else None),
        PixelAutoencoder(),
        Sampling("euler" if name == "flow" else "ddpm", 4),
        lr=1e-3,
        weight_decay=0.01,
        warmup_steps=3,
        clip_from_step=10,
        ema_decay=0.9,
        text_encoder=SimpleNamespace(width=6, length=3) if name == "text" else None,
    )
    module.init_weights(0)
    with torch.no_grad():
        for key, parameter in net.named_parameters():  # zeros would hide what lies behind them
            parameter.add_(torch.randn(parameter.shape, generator=torch_generator(0, "golden", key)), alpha=0.05)
    module.ema.load_state_dict(net.state_dict())
    num_images = IMAGES if name == "joint" else 0
    clips = DataLoader([clip(n, num_images) for n in range(STEPS * BATCH)], batch_size=BATCH)
    seen = Losses()
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=0.5,
        callbacks=[seen],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, clips)
    batch = next(iter(clips))
    with torch.no_grad():
        draws = module.draw(batch, 1, torch.tensor([0.2, 0.7]))
        _, averaged = module.losses(module.ema.eval(), batch, draws, dropout=0.0)
    return [*seen.values, float(averaged["loss"].mean())]


@pytest.mark.parametrize("name", CASES)
def test_losses_equal_the_golden_losses(name):
    assert losses(name) == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=TOLERANCE)


def test_golden_losses_of_all_cases_differ():
    records = json.loads(GOLDEN.read_text())
    assert records.keys() == CASES.keys()
    for one, other in combinations(records.values(), 2):
        assert max(abs(a / b - 1) for a, b in zip(one, other)) > 10 * TOLERANCE


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps([float(f'{value:.7g}') for value in losses(name)])}" for name in CASES]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
