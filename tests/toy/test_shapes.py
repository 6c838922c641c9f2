import numpy as np
import pytest
import torch

from latte_pl.toy.motion import classify_motion, track
from latte_pl.toy.shapes import BACKGROUNDS, MOTIONS, PALETTE, SHAPES, MovingShapes


def test_clips_depend_only_on_their_index() -> None:
    dataset, order = MovingShapes("train", num_videos=20), [7, 3, 19, 0]
    first = {i: dataset.read(i, 8) for i in order}
    again = {i: MovingShapes("train", num_videos=20).read(i, 8) for i in reversed(order)}
    assert all(torch.equal(first[i], again[i]) for i in order)
    assert not torch.equal(first[7], first[3])
    assert first[7].shape == (8, 3, 64, 64)
    assert first[7].dtype == torch.uint8


def test_splits_and_seeds_differ() -> None:
    clips = [MovingShapes(split, seed=seed).read(0, 4) for split in ("train", "val") for seed in (0, 1)]
    assert all(not torch.equal(a, b) for k, a in enumerate(clips) for b in clips[:k])


def test_clip_has_the_frames_of_its_video() -> None:
    dataset = MovingShapes("val")
    video = dataset.read(5, 16)
    assert torch.equal(dataset.read(5, 8, 2), video[::2])
    assert torch.equal(dataset.read(5, 6), video[:6])


def test_generator_draws_only_the_start() -> None:
    dataset = MovingShapes("val")
    video = dataset.read(4, 16)
    starts = set()
    for seed in range(20):
        clip = dataset.read(4, 8, 1, np.random.default_rng(seed))
        matches = [k for k in range(9) if torch.equal(clip, video[k : k + 8])]
        assert len(matches) == 1
        starts.add(matches[0])
    assert len(starts) > 4
    assert torch.equal(dataset.read(4, 16, 1, np.random.default_rng(0)), video)


def test_classes_are_balanced_and_all_attributes_occur() -> None:
    dataset = MovingShapes("val", num_videos=400)
    labels = [dataset.label(i) for i in range(len(dataset))]
    assert np.bincount(labels).tolist() == [50] * len(MOTIONS)
    seen = [dataset.attributes(i) for i in range(len(dataset))]
    assert {names["shape"] for names in seen} == set(SHAPES)
    assert {names["colour"] for names in seen} == set(PALETTE)
    assert {names["background"] for names in seen} == set(BACKGROUNDS)
    assert all(names["motion"] == dataset.class_names[label] for names, label in zip(seen, labels, strict=True))


def test_plain_scenes_show_a_circle_on_one_dark_grey_that_moves_as_labelled() -> None:
    dataset = MovingShapes("val", size=(32, 48), scene="plain")
    assert {dataset.attributes(i)["shape"] for i in range(40)} == {"circle"}
    for index in range(16):
        video = dataset.read(index, 8, 2)
        corners = video[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners == 40).float().mean() > 0.8  # the shape may touch a corner
        assert classify_motion(video) == dataset.label(index)
    assert dataset.caption(0) == "a pink circle moves left"
    assert dataset.fingerprint() != MovingShapes("val", size=(32, 48)).fingerprint()


def test_captions_describe_the_videos() -> None:
    dataset = MovingShapes("train")
    assert [dataset.caption(index) for index in range(8)] == [
        "a cyan cross moves left",
        "a pink square moves right",
        "a green star moves up",
        "a yellow star moves down",
        "a green ring circles clockwise",
        "a red cross circles counter-clockwise",
        "a pink ring grows",
        "a yellow triangle shrinks",
    ]
    assert dataset.caption(9) == "an orange square moves right"


@pytest.mark.parametrize("size", [(64, 64), (40, 88), (96, 48), (32, 32)])
def test_shape_stays_in_the_picture(size: tuple[int, int]) -> None:
    dataset, side = MovingShapes("val", size), min(size)
    for index in range(24):
        clip = dataset.read(index, 16)
        assert clip.shape == (16, 3, *size)
        tracked = track(clip)
        assert tracked is not None
        times, path, _ = tracked
        assert len(times) == 16  # one compact shape in every frame
        assert (path > 0).all()
        assert (path[:, 0] < size[1] / side).all()
        assert (path[:, 1] < size[0] / side).all()


@pytest.mark.parametrize("num_frames", [8, 16])
def test_every_class_has_its_motion(num_frames: int) -> None:
    dataset = MovingShapes("val")
    for index in range(48):
        tracked = track(dataset.read(index, num_frames))
        assert tracked is not None
        _, path, size = tracked
        (dx, dy), motion = path[-1] - path[0], dataset.class_names[dataset.label(index)]
        least = 0.15 if num_frames == 8 else 0.4  # of the picture's side
        centre = path.mean(axis=0)
        before, after = path[:-1] - centre, path[1:] - centre
        swept = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]).sum()  # clockwise positive, y down
        assert {
            "left": dx < -least and abs(dy) < 0.03,
            "right": dx > least and abs(dy) < 0.03,
            "up": dy < -least and abs(dx) < 0.03,
            "down": dy > least and abs(dx) < 0.03,
            "clockwise": swept > 0.05,
            "counter-clockwise": swept < -0.05,
            "grow": size[-1] > 1.4 * size[0] and np.hypot(dx, dy) < 0.03,
            "shrink": size[-1] < size[0] / 1.4 and np.hypot(dx, dy) < 0.03,
        }[motion], (index, motion, num_frames)


def test_colours_are_those_of_the_palette() -> None:
    dataset = MovingShapes("val")
    for index in range(24):
        names = dataset.attributes(index)
        if names["shape"] == "ring":  # its centre is background
            continue
        frame = dataset.read(index, 1)[0].float()
        tracked = track(dataset.read(index, 16))
        assert tracked is not None
        column, row = (tracked[1][0] * 64).astype(int)
        centre, reference = frame[:, row, column], torch.tensor(PALETTE[names["colour"]], dtype=torch.float32)
        assert torch.nn.functional.cosine_similarity(centre, reference, dim=0) > 0.999
        assert 0.88 < centre.norm() / reference.norm() < 1.01


@pytest.mark.parametrize("arguments", [{"split": "test"}, {"size": 8}, {"num_videos": 0}, {"length": 1}])
def test_wrong_arguments_raise(arguments: dict) -> None:
    with pytest.raises(
        ValueError, match=r"split is .* must be train or val|size is .* at least 16|num_videos is .* at least"
    ):
        MovingShapes(**arguments)


def test_reading_past_the_end_raises() -> None:
    dataset = MovingShapes("val", num_videos=3)
    with pytest.raises(ValueError, match="need 22 source frames, but a video has 16"):
        dataset.read(0, 8, 3)
    with pytest.raises(IndexError, match="no video 3; the data set has 3"):
        dataset.read(3, 8)
    assert MovingShapes("val", length=32).read(0, 8, 3).shape[0] == 8


def test_fingerprint_depends_on_all_arguments() -> None:
    videos = MovingShapes("val", size=(16, 24))
    assert videos.fingerprint() == MovingShapes("val", size=[16, 24], num_videos=1000).fingerprint()
    others = [
        MovingShapes("train", size=(16, 24), num_videos=1000),
        MovingShapes("train", size=(16, 24), num_videos=1000, held_out=1),
        MovingShapes("val", size=(24, 16)),
        MovingShapes("val", size=(16, 24), num_videos=999),
        MovingShapes("val", size=(16, 24), seed=1),
        MovingShapes("val", size=(16, 24), length=17),
    ]
    assert len({other.fingerprint() for other in (videos, *others)}) == 7


def test_drawing_and_fingerprint_change_together() -> None:
    """If a pixel changes, increase DRAWING and update both values, so that no latent cache mixes two versions."""
    videos = MovingShapes("val", size=(16, 24))
    means = torch.stack([videos.read(index, 4, 3).float().mean(dim=(0, 2, 3)) for index in (0, 5, 11)])
    drawn = [[208.45, 197.53, 203.73], [58.91, 29.27, 29.41], [226.04, 205.29, 189.94]]
    torch.testing.assert_close(means, torch.tensor(drawn), rtol=0, atol=0.3)
    assert videos.fingerprint() == "1b388fc79686f9c6be1be3de3cfd6337a84178c439a888135864ab6584a79f62"
