import dataclasses
import os

import numpy as np
import pytest
import torch

from latte_pl.metrics import Evaluation, FeatureStore, Protocol, evaluate_folders, frechet_from_features
from latte_pl.metrics.evaluation import real_clip
from latte_pl.metrics.extractors import clip_features


class StandIn:
    """Stands in for I3D: the mean colour of each frame, twice."""

    name = "i3d"
    sha256 = "a" * 64
    num_features = 12

    def __call__(self, video):
        means = video.float().mean(dim=(-1, -2)).flatten(1)
        return torch.cat([means, means.square() / 100], dim=1)


class Videos:
    """Clips of noise; the random view adds a value that it draws."""

    def __init__(self, count=50):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, index, num_frames, interval, rng):
        clip = np.random.default_rng(index).integers(0, 200, (num_frames, 3, 4, 6))
        return torch.from_numpy(clip + (0 if rng is None else rng.integers(50))).to(torch.uint8)


PROTOCOL = Protocol(
    name="test",
    metrics=("fvd", "kvd"),
    dataset="noise",
    fingerprint="f",
    split="val",
    interval=1,
    num_frames=2,
    height=4,
    width=6,
    resize="none",
    view="random",
    num_real=40,
    real_seed=0,
    extractor="i3d",
    extractor_sha256="a" * 64,
    num_generated=37,
    generated_interval=1,
    weights="ema",
    sampler="heun",
    steps=5,
    eta=0,
    guidance=1,
    guidance_interval=(0, 1000),
    labels="none",
    precision="32",
    seed=0,
    folds=4,
)


def sample(indices):
    """Clip n is a function of n alone, as a sampler's must be."""
    return torch.stack([Videos(10**6).read(1000 + n, 2, 1, None) for n in indices])


def finish(evaluation, batch_size=8, rank=0, world_size=1):
    while todo := evaluation.pending(rank, world_size)[:batch_size]:
        evaluation.add(todo, sample(todo))


@pytest.fixture
def whole(tmp_path):
    evaluation = Evaluation(PROTOCOL, StandIn(), tmp_path / "whole")
    evaluation.add_real(Videos(), progress=False)
    finish(evaluation)
    return evaluation


def test_result_is_the_distance_of_all_clips_in_order(whole):
    scores = whole.result()
    real = torch.stack([real_clip(Videos(), PROTOCOL, n) for n in range(40)])
    sides = [clip_features(StandIn(), video)[:, 0].numpy() for video in (real, sample(range(37)))]
    assert scores["fvd"].value == pytest.approx(frechet_from_features(*sides, ddof=0), rel=1e-9)
    assert scores["fvd"].label == "full"
    assert scores["fvd"].interval.low < scores["fvd"].value < scores["fvd"].interval.high
    assert scores["fvd"].interval.method == "4-fold jackknife"
    assert scores["kvd"].value != scores["fvd"].value


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_and_ranks_never_change_the_value(whole, tmp_path, batch_size, world_size):
    evaluations = [Evaluation(PROTOCOL, StandIn(), tmp_path / "split") for _ in range(world_size)]
    for rank in reversed(range(world_size)):
        evaluations[rank].add_real(Videos(), rank, world_size, batch_size=batch_size, progress=False)
        finish(evaluations[rank], batch_size, rank, world_size)
    for evaluation in evaluations:
        assert evaluation.result() == whole.result()


def test_order_of_arrival_never_changes_the_value(whole, tmp_path):
    evaluation = Evaluation(PROTOCOL, StandIn(), tmp_path / "shuffled", whole.real.folder)
    for numbers in torch.randperm(37, generator=torch.Generator().manual_seed(0)).split(5):
        evaluation.add(numbers.tolist(), sample(numbers.tolist()))
    assert evaluation.result() == whole.result()


def test_an_interrupted_evaluation_goes_on(whole, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    evaluation = Evaluation(PROTOCOL, StandIn(), folder, whole.real.folder)
    evaluation.add(range(8), sample(range(8)))

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)  # dies with a shard that is written but not in place
        with pytest.raises(KeyboardInterrupt):
            evaluation.add(range(8, 16), sample(range(8, 16)))
    again = Evaluation(PROTOCOL, StandIn(), folder, whole.real.folder)
    assert again.pending() == list(range(8, 37))
    with pytest.raises(ValueError, match="lacks 29 of 37 clips, the first is 8"):
        again.result()
    finish(again)
    assert again.result() == whole.result()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_shard_is_dropped_and_computed_again(whole, damage):
    path = sorted(whole.generated.folder.glob("shard-*"))[1]
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[-3] ^= 1
        path.write_bytes(data)
    again = Evaluation(PROTOCOL, StandIn(), whole.generated.folder.parent)
    with pytest.warns(UserWarning, match=f"damaged shard .*{path.name}"):
        assert again.pending() == list(range(8, 16))
    finish(again)
    assert again.result() == whole.result()


def test_folders_of_another_protocol_are_refused(whole):
    folder = whole.generated.folder.parent
    with pytest.raises(ValueError, match=r"another protocol \(.*steps 5 / 6"):
        Evaluation(dataclasses.replace(PROTOCOL, steps=6), StandIn(), folder)
    with pytest.raises(ValueError, match=r"another protocol \(fingerprint 'f' / 'g'"):
        Evaluation(dataclasses.replace(PROTOCOL, fingerprint="g"), StandIn(), folder / "x", whole.real.folder)
    (folder / "generated" / "protocol.json").unlink()
    with pytest.raises(ValueError, match="nobody knows"):
        Evaluation(PROTOCOL, StandIn(), folder)


def test_reals_are_shared_by_models_and_read_once(whole, tmp_path):
    other = Evaluation(dataclasses.replace(PROTOCOL, steps=6), StandIn(), tmp_path / "other", whole.real.folder)
    assert other.real.pending() == []
    other.add_real(None, progress=False)  # touches no data set
    finish(other)
    assert other.result() == whole.result()


def test_reals_are_each_video_once_a_round():
    fixed = dataclasses.replace(PROTOCOL, view="first")
    first = [real_clip(Videos(20), fixed, n).flatten().tolist() for n in range(20)]
    second = [real_clip(Videos(20), fixed, n).flatten().tolist() for n in range(20, 40)]
    assert first != second
    assert sorted(first) == sorted(second)
    assert len({tuple(clip) for clip in first}) == 20
    assert not torch.equal(real_clip(Videos(), PROTOCOL, 3), real_clip(Videos(), fixed, 3))
    with pytest.raises(ValueError, match="no videos"):
        real_clip(Videos(0), PROTOCOL, 0)


def test_wrong_clips_and_extractors_are_refused(whole):
    with pytest.raises(ValueError, match=r"wants uint8 clips \(B, 2, 3, 4, 6\)"):
        whole.add([0], torch.zeros(1, 3, 3, 4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="wants uint8"):
        whole.add([0], torch.zeros(1, 2, 3, 4, 6))
    wrong = StandIn()
    wrong.sha256 = "b" * 64
    with pytest.raises(ValueError, match=r"sha256 aaaaaaaaaaaa.*sha256 bbbbbbbbbbbb"):
        Evaluation(PROTOCOL, wrong, "unused")


def test_store_refuses_what_does_not_fit(tmp_path):
    store = FeatureStore(tmp_path, {"a": 1}, 5)
    for indices, shape, message in (
        ([0, 1], (1, 1, 2), "one each"),
        ([0, 0], (2, 1, 2), "none twice"),
        ([5], (1, 1, 2), "outside of 0 to 4"),
        ([0], (1, 2), "one each"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add(indices, torch.zeros(shape))
    with pytest.raises(ValueError, match="NaN"):
        store.add([0], torch.full((1, 1, 2), float("nan")))
    assert store.pending() == [0, 1, 2, 3, 4]


def test_finished_videos_give_the_value_of_the_evaluation(whole):
    real = [real_clip(Videos(), PROTOCOL, n) for n in range(40)]
    fake = iter(sample(range(37)).split(10))  # clips or batches, lists or streams
    assert evaluate_folders(real, fake, PROTOCOL, StandIn(), progress=False) == whole.result()
    with pytest.raises(ValueError, match="there are 39 real clips, protocol test wants 40"):
        evaluate_folders(real[1:], [], PROTOCOL, StandIn(), progress=False)


def test_few_clips_are_labelled_smoke_and_have_no_interval():
    few = dataclasses.replace(PROTOCOL, num_real=6, num_generated=6)
    scores = evaluate_folders(sample(range(6)), sample(range(6, 12)), few, StandIn(), progress=False)
    assert scores["fvd"].label == "smoke"
    assert scores["fvd"].interval is None
