import hashlib
import itertools
from pathlib import Path

import pytest
import torch

from latte_pl.metrics import frechet_from_features, kernel_distance
from latte_pl.toy.extractor import WEIGHTS, ShapesR3D
from latte_pl.toy.sensitivity import DEGRADATIONS, SPEEDS, features_of, page, sensitivity
from latte_pl.toy.shapes import MovingShapes
from latte_pl.toy.train_extractor import INTERVAL, LENGTH, NUM_FRAMES, train

Rows = dict[str, list[tuple[str, float, float]]]


@pytest.fixture(scope="module")
def distances() -> Rows:
    return sensitivity(num_clips=96, paired=True)


@pytest.mark.parametrize("name", [*DEGRADATIONS, *SPEEDS])
def test_distance_increases_with_every_degradation(distances: Rows, name: str) -> None:
    increasing = [distances["none"][0][1], *(value for _, value, _ in distances[name])]
    # shuffling six of eight frames is nearly as bad as shuffling all: the last step may be within sampling noise
    assert all(b > 0.98 * a for a, b in itertools.pairwise(increasing)), increasing
    assert all(a < b for a, b in itertools.pairwise(increasing[:-1])), increasing
    assert increasing[-1] > 1.2 * increasing[-3], increasing


def test_distance_of_two_halves_of_the_data_is_small() -> None:
    net, dataset = ShapesR3D(), MovingShapes("val", 64, length=LENGTH, num_videos=256)
    features = features_of(net, [dataset.read(n, NUM_FRAMES, INTERVAL) for n in range(256)])
    halves = features[:128], features[128:]
    moved = halves[0], halves[1] + 1  # by one standard deviation
    assert abs(kernel_distance(*halves)) < 0.02 * kernel_distance(*moved)
    assert frechet_from_features(*halves) < 0.15 * net.num_features  # the bias on 128 clips
    assert frechet_from_features(*moved) > 0.9 * net.num_features


def test_bundled_weights_are_small_and_described_in_their_readme() -> None:
    assert WEIGHTS.stat().st_size < 1_000_000
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert ShapesR3D().sha256 == digest
    assert digest in WEIGHTS.with_name("README.md").read_text(encoding="utf-8")


def test_page_says_whether_the_distance_increases() -> None:
    names = [*DEGRADATIONS, *SPEEDS]
    rows: Rows = {"none": [("", 1.0, 0.0)]} | {name: [("1", 2.0, 0.5), ("2", 3.0, 1.0)] for name in names}
    rows["noise"] = [("1", 3.0, 1.0), ("2", 2.0, 0.5)]
    lines = page(rows, 4).splitlines()
    assert "| blur (sigma in pixels) | 1: 2.00, 2: 3.00 | yes | 1: 0.5000, 2: 1.0000 |" in lines
    assert "| noise (sigma in grey levels) | 1: 3.00, 2: 2.00 | NO | 1: 1.0000, 2: 0.5000 |" in lines


def test_features_depend_on_frame_order_and_exist_for_any_size() -> None:
    net = ShapesR3D()
    video = torch.randint(0, 256, (2, 5, 3, 40, 56), dtype=torch.uint8)
    features = net(video)
    assert features.shape == (2, net.num_features)
    assert torch.isfinite(features).all()
    assert not torch.allclose(net(video.flip(1)), features, atol=1e-3)
    assert not any(p.requires_grad for p in net.parameters())


def test_trained_weights_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    train(seconds=0.5, batch_size=8, seed=0, path=path)
    assert "motion: accuracy 0." in capsys.readouterr().out
    features = ShapesR3D(path)(torch.randint(0, 256, (3, 8, 3, 64, 64), dtype=torch.uint8))
    assert torch.isfinite(features).all()
    assert ShapesR3D(path).sha256 != ShapesR3D().sha256
