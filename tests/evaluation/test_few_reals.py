"""An evaluation against too few real videos is refused before anything is drawn."""

from types import SimpleNamespace

import pytest

from latte_pl.evaluation.models import run_protocol
from latte_pl.training.settings import Sampling


class OneVideo(list):
    """A split with one video."""

    resize = "centre-crop"

    def fingerprint(self):
        return "f" * 64


def test_one_real_video_is_refused_with_the_number_that_was_found():
    net = SimpleNamespace(num_frames=8, input_size=(2, 4), conditioning="none")
    module = SimpleNamespace(net=net, autoencoder=SimpleNamespace(factor=8), sampling=Sampling())
    data = SimpleNamespace(size=(16, 32), val_interval=2, videos=lambda split: OneVideo(["v.avi"]))
    extractor = SimpleNamespace(name="toy", sha256="e" * 64)
    with pytest.raises(ValueError, match=r"takes at least 2 real videos; the val split of SimpleNamespace has 1"):
        run_protocol(module, data, "toy-256-8f", extractor, "32-true")
