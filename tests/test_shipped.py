"""The weights that ship do what their pages say."""

from pathlib import Path

import pytest

import latte_pl
from latte_pl.data.motion import classify_motion
from latte_pl.training import load
from latte_pl.training.weights import SHIPPED

ROOT = Path(latte_pl.__file__).parent


def test_shipped_files_keep_their_limits():
    assert (SHIPPED / "shapes.safetensors").stat().st_size < 10e6
    assert sum(path.stat().st_size for path in (ROOT / "codecs/weights").rglob("*.safetensors")) < 2e6
    assert sum(path.stat().st_size for path in (ROOT / "metrics/weights").glob("*.safetensors")) < 1e6


def share(num_samples, steps):
    module = load("shapes")
    module.sampling.steps = steps
    labels = [n % 8 for n in range(num_samples)]
    videos = module.sample(list(range(num_samples)), labels, seed=2)
    return sum(classify_motion(video) == label for video, label in zip(videos, labels)) / num_samples


def test_samples_of_the_shipped_weights_move_as_labelled():
    assert share(16, steps=8) >= 0.75  # few samples and few steps; chance is 0.125


@pytest.mark.slow
def test_nine_of_ten_samples_of_the_shipped_weights_move_as_labelled():
    assert share(128, steps=20) >= 0.9
