import io

import numpy as np
import pytest
import torch
from torch import nn

from latte_pl.metrics import (
    EmbeddedVideoDistance,
    FrechetDistance,
    FrechetInceptionDistance,
    FrechetVideoDistance,
    InceptionScore,
    KernelVideoDistance,
    ShapesR3D,
    clip_features,
    frechet_from_features,
    inception_score,
    kernel_distance,
)


class StandIn:
    """Random projections of a clip's pixels, off-centre as real features are; frames keep their own rows."""

    name = "stand_in"
    sha256 = "0" * 64

    def __init__(self, num_features=24, frames=False, probabilities=False):
        self.num_features, self.frames, self.probabilities = num_features, frames, probabilities

    def __call__(self, video):
        pixels = (video.flatten(2) if self.frames else video.flatten(1)).float() / 255
        weight = torch.randn(pixels.shape[-1], self.num_features, generator=torch.Generator().manual_seed(0))
        features = pixels @ weight / 3 + 5
        return features.softmax(dim=-1) if self.probabilities else features


def clips(seed, count):
    return torch.randint(0, 256, (count, 2, 3, 4, 6), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


REAL, FAKE = clips(0, 70), clips(1, 64) // 2


def run(metric, batch_size=64, order=None):
    for real, video in ((True, REAL), (False, FAKE)):
        video = video if order is None else video[torch.randperm(len(video), generator=order)]
        for batch in video.split(batch_size):
            metric.update(batch, real=real)
    return metric.compute().item()


METRICS = {
    "frechet": lambda: FrechetDistance(StandIn()),
    "fvd": lambda: FrechetVideoDistance(StandIn()),
    "fvd, deficient": lambda: FrechetVideoDistance(StandIn(200)),
    "fid": lambda: FrechetInceptionDistance(StandIn(frames=True)),
    "kernel": lambda: KernelVideoDistance(StandIn()),
}


@pytest.mark.parametrize("make", METRICS.values(), ids=METRICS)
def test_no_split_or_order_changes_the_value(make):
    value = run(make())
    for batch_size in (1, 7, 64):
        assert run(make(), batch_size) == pytest.approx(value, rel=1e-9)
        assert run(make(), batch_size, torch.Generator().manual_seed(batch_size)) == pytest.approx(value, rel=1e-9)


def test_values_are_those_of_the_features():
    def rows(extractor, video):
        return clip_features(extractor, video).flatten(0, 1).numpy()

    for extractor, make, ddof in (
        (StandIn(), FrechetVideoDistance, 0),
        (StandIn(200), FrechetVideoDistance, 0),
        (StandIn(frames=True), FrechetInceptionDistance, 1),
    ):
        expected = frechet_from_features(rows(extractor, REAL), rows(extractor, FAKE), ddof)
        assert run(make(extractor)) == pytest.approx(expected, rel=1e-9)
    extractor = StandIn()
    expected = kernel_distance(rows(extractor, REAL), rows(extractor, FAKE))
    assert run(KernelVideoDistance(extractor)) == pytest.approx(expected, rel=1e-9)


def test_fewer_clips_than_features_are_labelled_smoke():
    full, smoke = FrechetVideoDistance(StandIn(24)), FrechetVideoDistance(StandIn(65))
    run(full), run(smoke)
    assert (full.label, smoke.label) == ("full", "smoke")


def process(rank, world_size, folder, result):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world_size)
    values = {}
    for name, make in METRICS.items():
        metric = make()
        for real, video in ((True, REAL), (False, FAKE)):
            for batch in video[rank::world_size].split(5):
                metric.update(batch, real=real)
        values[name] = metric.compute().item()
    torch.save(values, f"{result}.{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_value_of_one(tmp_path):
    torch.multiprocessing.spawn(process, (2, str(tmp_path), str(tmp_path / "values")), nprocs=2)
    for rank in range(2):
        values = torch.load(tmp_path / f"values.{rank}")
        assert values == pytest.approx({name: run(make()) for name, make in METRICS.items()}, rel=1e-9)


def test_inception_score_deals_by_sample_number():
    extractor = StandIn(6, probabilities=True)
    expected = inception_score(clip_features(extractor, FAKE)[:, 0].numpy(), splits=5)
    for batch_size in (1, 7, 64):
        metric = InceptionScore(extractor, num_samples=64, splits=5)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(batch_size))
        for numbers in order.split(batch_size):
            metric.update(FAKE[numbers], numbers)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-9)


def test_inception_score_wants_every_sample_once_and_probabilities():
    metric = InceptionScore(StandIn(6, probabilities=True), num_samples=64, splits=5)
    metric.update(FAKE[:63], torch.arange(63))
    with pytest.raises(ValueError, match="63 samples came in"):
        metric.compute()
    with pytest.raises(ValueError, match="class probabilities"):
        InceptionScore(StandIn(6), num_samples=64, splits=5).update(FAKE, torch.arange(64))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reals_are_kept_and_can_come_from_a_cache():
    kept = FrechetVideoDistance(StandIn(), reset_real=False)
    value = run(kept)
    kept.reset()
    kept.update(FAKE, real=False)
    assert kept.compute().item() == pytest.approx(value, rel=1e-12)
    cached = FrechetVideoDistance(StandIn())
    cached.add_features(clip_features(StandIn(), REAL), real=True)
    cached.update(FAKE, real=False)
    assert cached.compute().item() == pytest.approx(value, rel=1e-12)
    cached.reset()
    with pytest.raises(ValueError, match="0 real, 0 fake"):
        cached.compute()


def test_states_stay_float64_and_weights_stay_out_of_checkpoints():
    class Host(nn.Module):
        def __init__(self):
            super().__init__()
            self.fvd = EmbeddedVideoDistance()

    host = Host().to(torch.bfloat16).half()
    assert host.fvd.real_products.dtype == torch.float64
    assert not host.state_dict()
    assert not list(host.parameters())


def test_autocast_does_not_reach_the_extractor():
    video = torch.randint(0, 256, (2, 4, 3, 16, 24), dtype=torch.uint8)
    net = ShapesR3D()
    plain = clip_features(net, video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_features(net, video), plain)


def test_the_embedded_distance_is_never_called_fvd():
    with pytest.raises(ValueError, match="no FVD"):
        FrechetVideoDistance(ShapesR3D())


def test_metric_survives_pickling():
    metric = FrechetVideoDistance(StandIn())
    value = run(metric)
    file = io.BytesIO()
    torch.save(metric, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).compute().item() == value
    assert np.isfinite(value)
