"""The shipped weights do what their README files state."""

from pathlib import Path

import pytest

import latte_pl
from latte_pl.toy.motion import classify_motion
from latte_pl.training import load
from latte_pl.training.weights import SHIPPED

ROOT = Path(latte_pl.__file__).parent


def test_shipped_files_are_small():
    for file, limit in (
        (SHIPPED / "shapes.safetensors", 10e6),
        (ROOT / "autoencoders/weights/shapes_kl_f8/diffusion_pytorch_model.safetensors", 2e6),
        (ROOT / "autoencoders/weights/toy_text/model.safetensors", 3e5),
        (ROOT / "toy/weights/shapes_r3d.safetensors", 1e5),
    ):
        assert file.stat().st_size < limit


def share_of_right_motions(num_samples, steps):
    module = load("shapes")
    module.sampling.steps = steps
    labels = [n % 8 for n in range(num_samples)]
    videos = module.sample(list(range(num_samples)), labels, seed=2)
    return sum(classify_motion(video) == label for video, label in zip(videos, labels)) / num_samples


def test_shipped_weights_draw_the_motion_of_the_label():
    assert share_of_right_motions(16, steps=8) >= 0.75  # few samples and few steps; chance is 0.125


@pytest.mark.slow
def test_nine_of_ten_samples_of_the_shipped_weights_have_the_motion_of_the_label():
    assert share_of_right_motions(128, steps=20) >= 0.9
