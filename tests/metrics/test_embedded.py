import hashlib
import itertools
import sys
from pathlib import Path

import pytest
import torch

from latte_pl.data.shapes import MovingShapes
from latte_pl.metrics.embedded import WEIGHTS, ShapesR3D
from latte_pl.metrics.frechet import frechet_from_features, kernel_distance

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import train_extractor


@pytest.fixture(scope="module")
def distances():
    return train_extractor.sensitivity(num_clips=96, paired=True)


@pytest.mark.parametrize("name", [*train_extractor.DEGRADATIONS, "faster", "slower"])
def test_distance_rises_with_every_degradation(distances, name):
    rising = [distances["none"][0][1], *(value for _, value, _ in distances[name])]
    # shuffling six of eight frames is nearly as bad as all of them: the last step may be within sampling noise
    assert all(b > 0.98 * a for a, b in itertools.pairwise(rising)), rising
    assert all(a < b for a, b in itertools.pairwise(rising[:-1])), rising
    assert rising[-1] > 1.2 * rising[-3], rising


def test_two_halves_of_the_data_are_near():
    net, dataset = ShapesR3D(), MovingShapes("val", 64, length=train_extractor.LENGTH, num_videos=256)
    clips = [dataset.read(n, train_extractor.NUM_FRAMES, train_extractor.INTERVAL) for n in range(256)]
    features = train_extractor.features_of(net, clips)
    halves = features[:128], features[128:]
    moved = halves[0], halves[1] + 1  # by one standard deviation
    assert abs(kernel_distance(*halves)) < 0.02 * kernel_distance(*moved)
    assert frechet_from_features(*halves) < 0.15 * net.num_features  # its bias on 128 clips
    assert frechet_from_features(*moved) > 0.9 * net.num_features


def test_committed_weights_are_small_and_named_in_their_readme():
    assert WEIGHTS.stat().st_size < 1_000_000
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert ShapesR3D().sha256 == digest
    assert digest in WEIGHTS.with_name("README.md").read_text(encoding="utf-8")


def test_features_see_order_and_any_size():
    net = ShapesR3D()
    video = torch.randint(0, 256, (2, 5, 3, 40, 56), dtype=torch.uint8)
    features = net(video)
    assert features.shape == (2, net.num_features)
    assert torch.isfinite(features).all()
    assert not torch.allclose(net(video.flip(1)), features, atol=1e-3)
    assert not any(p.requires_grad for p in net.parameters())


def test_training_writes_weights_that_load(tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    train_extractor.train(seconds=0.5, batch_size=8, seed=0, path=path)
    assert "motion:" in capsys.readouterr().out
    features = ShapesR3D(path)(torch.randint(0, 256, (3, 8, 3, 64, 64), dtype=torch.uint8))
    assert torch.isfinite(features).all()
    assert ShapesR3D(path).sha256 != ShapesR3D().sha256
