import dataclasses
import os

import numpy as np
import pytest
import torch

from latte_pl.metrics import Evaluation, EvaluationProtocol, FeatureStore, evaluate_clips, frechet_from_features
from latte_pl.metrics.clips import RealClips, real_clip
from latte_pl.metrics.extractors import clip_features
from latte_pl.metrics.lossy import jpeg_round_trip
from latte_pl.metrics.store import MomentStore


class FakeI3D:
    """A cheap extractor named I3D: the mean colours of the frames and their squares."""

    name = "i3d"
    sha256 = "a" * 64
    num_features = 12

    def __call__(self, video):
        means = video.float().mean(dim=(-1, -2)).flatten(1)
        return torch.cat([means, means.square() / 100], dim=1)


class Videos:
    """Clips of noise; the random view adds a random brightness."""

    def __init__(self, count=50):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, index, num_frames, interval, rng):
        clip = np.random.default_rng(index).integers(0, 200, (num_frames, 3, 4, 6))
        return torch.from_numpy(clip + (0 if rng is None else rng.integers(50))).to(torch.uint8)


PROTOCOL = EvaluationProtocol(
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
    """Return samples that depend on their indices alone, as those of a sampler."""
    return torch.stack([Videos(10**6).read(1000 + n, 2, 1, None) for n in indices])


def finish(evaluation, batch_size=8, rank=0, world_size=1):
    while todo := evaluation.pending(rank, world_size)[:batch_size]:
        evaluation.add(todo, sample(todo))


@pytest.fixture
def whole(tmp_path):
    evaluation = Evaluation(PROTOCOL, FakeI3D(), tmp_path / "whole")
    evaluation.add_real(Videos(), progress=False)
    finish(evaluation)
    return evaluation


def test_result_is_the_distance_of_all_clips(whole):
    scores = whole.result()
    real = torch.stack([real_clip(Videos(), PROTOCOL, n) for n in range(40)])
    sides = [clip_features(FakeI3D(), video)[:, 0].numpy() for video in (real, sample(range(37)))]
    assert scores["fvd"].value == pytest.approx(frechet_from_features(*sides, ddof=0), rel=1e-9)
    assert scores["fvd"].label == "full"
    assert scores["fvd"].interval.low < scores["fvd"].value < scores["fvd"].interval.high
    assert scores["fvd"].interval.method == "4-fold jackknife"
    assert scores["kvd"].value != scores["fvd"].value


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_size_and_ranks_do_not_change_the_scores(whole, tmp_path, batch_size, world_size):
    evaluations = [Evaluation(PROTOCOL, FakeI3D(), tmp_path / "split") for _ in range(world_size)]
    for rank in reversed(range(world_size)):
        evaluations[rank].add_real(Videos(), rank, world_size, batch_size=batch_size, progress=False)
        finish(evaluations[rank], batch_size, rank, world_size)
    for evaluation in evaluations:
        assert evaluation.result() == whole.result()


def test_order_of_the_samples_does_not_change_the_scores(whole, tmp_path):
    evaluation = Evaluation(PROTOCOL, FakeI3D(), tmp_path / "shuffled", whole.real.folder)
    for indices in torch.randperm(37, generator=torch.Generator().manual_seed(0)).split(5):
        evaluation.add(indices.tolist(), sample(indices.tolist()))
    assert evaluation.result() == whole.result()


def test_an_interrupted_evaluation_resumes(whole, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    evaluation = Evaluation(PROTOCOL, FakeI3D(), folder, whole.real.folder)
    evaluation.add(range(8), sample(range(8)))

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)  # interrupts after the shard is written, before it is renamed
        with pytest.raises(KeyboardInterrupt):
            evaluation.add(range(8, 16), sample(range(8, 16)))
    again = Evaluation(PROTOCOL, FakeI3D(), folder, whole.real.folder)
    assert again.pending() == list(range(8, 37))
    with pytest.raises(ValueError, match="lacks 29 of 37 clips, the first is 8"):
        again.result()
    finish(again)
    assert again.result() == whole.result()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_shard_is_deleted_and_computed_again(whole, damage):
    path = sorted(whole.generated.folder.glob("shard-*"))[1]
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[-3] ^= 1
        path.write_bytes(data)
    again = Evaluation(PROTOCOL, FakeI3D(), whole.generated.folder.parent)
    with pytest.warns(UserWarning, match=f"deleting damaged shard .*{path.name}"):
        assert again.pending() == list(range(8, 16))
    finish(again)
    assert again.result() == whole.result()


def test_a_folder_of_another_protocol_raises(whole):
    folder = whole.generated.folder.parent
    with pytest.raises(ValueError, match=r"another protocol \(.*steps 5 / 6"):
        Evaluation(dataclasses.replace(PROTOCOL, steps=6), FakeI3D(), folder)
    with pytest.raises(ValueError, match=r"another protocol \(fingerprint 'f' / 'g'"):
        Evaluation(dataclasses.replace(PROTOCOL, fingerprint="g"), FakeI3D(), folder / "x", whole.real.folder)
    (folder / "generated" / "protocol.json").unlink()
    with pytest.raises(ValueError, match="their origin is unknown"):
        Evaluation(PROTOCOL, FakeI3D(), folder)


def test_models_share_the_features_of_real_clips(whole, tmp_path):
    other = Evaluation(dataclasses.replace(PROTOCOL, steps=6), FakeI3D(), tmp_path / "other", whole.real.folder)
    assert other.real.pending() == []
    other.add_real(None, progress=False)  # reads no dataset
    finish(other)
    assert other.result() == whole.result()


def test_every_video_is_used_once():
    for view in ("first", "random"):
        protocol = dataclasses.replace(PROTOCOL, view=view)
        clips = RealClips(Videos(50), protocol)
        assert len(clips) == len(set(clips.videos)) == 40
        assert clips.videos != sorted(clips.videos)
    assert not torch.equal(
        real_clip(Videos(), PROTOCOL, 3), real_clip(Videos(), dataclasses.replace(PROTOCOL, view="first"), 3)
    )


@pytest.mark.parametrize("count", [0, 39])
def test_too_few_videos_raise(count, tmp_path):
    """With repeated videos, 40 of 256 clips gave a distance of 124.6 where 256 distinct ones give 33.3, both "full"."""
    with pytest.raises(ValueError, match=f"compares 40 real videos, but noise has {count} videos in split val; every"):
        RealClips(Videos(count), PROTOCOL)
    with pytest.raises(ValueError, match="lower num_real"):
        Evaluation(PROTOCOL, FakeI3D(), tmp_path).add_real(Videos(count), progress=False)


def test_classes_reach_the_folds(whole):
    labels = [n % 4 for n in range(40)]
    with_labels = whole.result(labels, labels[:37])["fvd"]
    assert with_labels.value == whole.result()["fvd"].value
    assert with_labels.interval != whole.result()["fvd"].interval


def test_wrong_clips_and_extractors_raise(whole):
    with pytest.raises(ValueError, match=r"needs uint8 clips \(B, 2, 3, 4, 6\)"):
        whole.add([0], torch.zeros(1, 3, 3, 4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match="needs uint8"):
        whole.add([0], torch.zeros(1, 2, 3, 4, 6))
    wrong = FakeI3D()
    wrong.sha256 = "b" * 64
    with pytest.raises(ValueError, match=r"sha256 aaaaaaaaaaaa.*sha256 bbbbbbbbbbbb"):
        Evaluation(PROTOCOL, wrong, "unused")


def test_features_that_do_not_match_the_store_raise(tmp_path):
    store = FeatureStore(tmp_path, {"a": 1}, 5)
    for indices, shape, message in (
        ([0, 1], (1, 1, 2), r"2 clips need features \(2, k, D\), found \(1, 1, 2\)"),
        ([0, 0], (2, 1, 2), "must be distinct"),
        ([5], (1, 1, 2), r"must be from 0 to 4, found \[5\]"),
        ([0], (1, 2), r"found \(1, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            store.add(indices, torch.zeros(shape))
    with pytest.raises(ValueError, match="NaN"):
        store.add([0], torch.full((1, 1, 2), float("nan")))
    assert store.pending() == [0, 1, 2, 3, 4]


def test_finished_clips_have_the_scores_of_the_evaluation(whole):
    real = [real_clip(Videos(), PROTOCOL, n) for n in range(40)]
    generated = iter(sample(range(37)).split(10))  # single clips and batches, lists and iterators
    assert evaluate_clips(real, generated, PROTOCOL, FakeI3D(), progress=False) == whole.result()
    with pytest.raises(ValueError, match="there are 39 real clips, but protocol test needs 40"):
        evaluate_clips(real[1:], [], PROTOCOL, FakeI3D(), progress=False)


def test_a_metric_of_generated_clips_alone_needs_no_real_clips(tmp_path):
    class Classifier(FakeI3D):
        name = "c3d"
        num_features = 3

        def __call__(self, video):
            return video[:, 0].float().mean(dim=(-1, -2)).softmax(dim=-1)

    values = {"metrics": ("inception_score",), "extractor": "c3d", "num_real": 0}
    protocol = dataclasses.replace(PROTOCOL, **values)
    evaluation = Evaluation(protocol, Classifier(), tmp_path)
    finish(evaluation)
    scores = evaluation.result()
    assert 1 < scores["inception_score"].value < 3
    assert evaluate_clips([], sample(range(37)), protocol, Classifier(), progress=False) == scores


def test_samples_are_scored_after_the_lossy_steps(tmp_path, whole):
    lossy = dataclasses.replace(PROTOCOL, jpeg_quality=50)
    evaluation = Evaluation(lossy, FakeI3D(), tmp_path)
    evaluation.add_real(LongVideos(), progress=False)
    finish(evaluation)
    real = torch.stack([RealClips(LongVideos(), PROTOCOL)[n] for n in range(40)])
    sides = [clip_features(FakeI3D(), jpeg_round_trip(x, 50))[:, 0].numpy() for x in (real, sample(range(37)))]
    assert evaluation.result()["fvd"].value == pytest.approx(frechet_from_features(*sides, ddof=0), rel=1e-9)
    assert evaluate_clips([jpeg_round_trip(x, 50) for x in real], sample(range(37)), lossy, FakeI3D(), progress=False)[
        "fvd"
    ].value == pytest.approx(evaluation.result()["fvd"].value, rel=1e-9)


class FrameMeans:
    """A cheap extractor of single frames, named as the one of FID."""

    name = "inception_legacy"
    sha256 = "a" * 64
    num_features = 3

    def __call__(self, video):
        return video.float().mean(dim=(-1, -2))  # (B, F, 3)


class LongVideos(Videos):
    """Clips of noise with 70 or more frames."""

    resize = "none"

    def length(self, index):
        return 70 + index

    def frames(self, index, start, num_frames, interval=1):
        clip = np.random.default_rng(index).integers(0, 200, (self.length(index), 3, 4, 6))
        return torch.from_numpy(clip[start : start + num_frames * interval : interval]).to(torch.uint8)


ALL_FRAMES = dataclasses.replace(
    PROTOCOL, metrics=("fid_legacy",), extractor="inception_legacy", real_frames="all", num_real=5, folds=0
)


def test_all_frames_of_the_real_videos_are_compared(tmp_path):
    evaluation = Evaluation(ALL_FRAMES, FrameMeans(), tmp_path)
    evaluation.add_real(LongVideos(5), progress=False)
    finish(evaluation)
    frames = torch.cat([LongVideos().frames(n, 0, 70 + n) for n in range(5)])
    real = frames.double().mean(dim=(-1, -2)).numpy()
    generated = sample(range(37)).double().mean(dim=(-1, -2)).flatten(0, 1).numpy()
    value = evaluation.result()["fid_legacy"].value
    assert value == pytest.approx(frechet_from_features(real, generated, ddof=0), rel=1e-5)
    parts = (part for n in range(5) for part in RealClips(LongVideos(5), ALL_FRAMES).all_frames(n))
    once = evaluate_clips(parts, sample(range(37)), ALL_FRAMES, FrameMeans(), progress=False)
    assert once["fid_legacy"].value == pytest.approx(value, rel=1e-9)


def test_sums_of_frames_survive_interruptions_and_processes(tmp_path):
    rows = [torch.randn(10 + n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in range(6)]
    stores = [MomentStore(tmp_path, {"a": 1}, 6) for _ in range(2)]
    for n in (0, 2):
        stores[0].add(n, rows[n])
    stores[1].add(1, rows[1])
    again = MomentStore(tmp_path, {"a": 1}, 6)
    assert again.pending() == [3, 4, 5]
    assert again.pending(1, 2) == [3, 5]
    with pytest.raises(ValueError, match="lacks 3 of 6 videos, the first is 3"):
        again.moments()
    for n in (3, 4, 5):
        again.add(n, rows[n])
    stores[1].add(3, rows[3])  # computed twice: the file with fewer videos is not used
    assert again.pending() == [1]
    again.add(1, rows[1])
    found, everything = again.moments(), torch.cat(rows).numpy()
    assert found.num_rows == len(everything)
    assert np.allclose(found.total, everything.sum(axis=0))
    assert np.allclose(found.outer, everything.T @ everything)
    path = max(tmp_path.glob("moments-*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="deleting damaged shard"):
        assert again.pending()
    assert not path.exists()
    with pytest.raises(ValueError, match="another protocol"):
        MomentStore(tmp_path, {"a": 2}, 6)
