import hashlib
import itertools
import logging
import pickle
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_videos import picture, real_clips, write_frames, write_video, write_xvid
from PIL import Image

from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import scan
from latte_pl.data.stream import ClipStream, VideoDataset


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of files and frames, nested; one video is too short for most clips."""
    root = tmp_path_factory.mktemp("classes")
    write_xvid(root / "run" / "a.avi", 36, seed=1)
    write_video(root / "run" / "deep" / "b.mp4", 24, codec="libx264", b_frames=2, seed=2)
    write_frames(root / "jump" / "c", 30, "{}.png", seed=3)
    write_xvid(root / "walk" / "d.avi", 12, seed=4)
    return root


@pytest.fixture(scope="module")
def dataset(classes: Path) -> VideoFolder:
    return VideoFolder(classes, (24, 40), num_frames=4, interval=3, flip=True)


def test_folder_is_a_video_dataset(dataset: VideoFolder) -> None:
    assert isinstance(dataset, VideoDataset)
    assert dataset.key == "video"
    assert dataset.resize == "centre-crop"


def test_classes_are_the_first_folders(dataset: VideoFolder) -> None:
    assert dataset.class_names == ["jump", "run", "walk"]
    assert [dataset.path(i) for i in range(len(dataset))] == ["jump/c", "run/a.avi", "run/deep/b.mp4", "walk/d.avi"]
    assert [dataset.label(i) for i in range(len(dataset))] == [0, 1, 1, 2]
    assert [dataset.length(i) for i in range(len(dataset))] == [30, 36, 24, 12]


def test_flat_and_mixed_folders_are_unlabelled(classes: Path, tmp_path: Path) -> None:
    shutil.copytree(classes, tmp_path / "mixed")
    shutil.copy(classes / "run" / "a.avi", tmp_path / "mixed" / "e.avi")
    for root in (classes / "run" / "deep", tmp_path / "mixed"):
        dataset = VideoFolder(root, 16, num_frames=4, interval=3)
        assert dataset.class_names == []
        assert {dataset.label(i) for i in range(len(dataset))} == {0}


@pytest.mark.parametrize("index", range(4))
def test_clip_has_the_drawn_start_and_flip(dataset: VideoFolder, index: int) -> None:
    seen = set()
    for seed in range(30):
        clip = dataset.read(index, 3, 2, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        start, flipped = int(rng.integers(dataset.length(index) - 4)), rng.random() < 0.5
        expected = dataset.frames(index, 0, dataset.length(index))[start : start + 5 : 2]
        assert torch.equal(clip, expected.flip(-1) if flipped else expected)
        seen.add((start, flipped))
    assert len(seen) > 10
    assert clip.shape == (3, 3, 24, 40)
    assert clip.dtype == torch.uint8


def test_evaluation_view_starts_at_frame_0_and_is_not_flipped(dataset: VideoFolder) -> None:
    for index in range(len(dataset)):
        assert torch.equal(dataset.read(index, 4, 3, None), dataset.frames(index, 0, 4, 3))


def test_pixels_are_those_of_the_video(classes: Path) -> None:
    dataset = VideoFolder(classes, (48, 64), num_frames=4, interval=3)
    assert np.array_equal(dataset.frames(0, 7, 2, 3)[1].permute(1, 2, 0).numpy(), picture(10, seed=3))
    lossy = dataset.frames(1, 20, 1)[0].permute(1, 2, 0).numpy().astype(int)
    errors = [np.abs(lossy - picture(n, seed=1)).mean() for n in range(36)]
    assert int(np.argmin(errors)) == 20


def test_clips_are_not_flipped_without_the_option(classes: Path) -> None:
    dataset = VideoFolder(classes, 16, num_frames=4, interval=3, flip=False)
    whole = dataset.frames(1, 0, 36)
    for seed in range(8):
        start = int(np.random.default_rng(seed).integers(27))
        assert torch.equal(dataset.read(1, 4, 3, np.random.default_rng(seed)), whole[start : start + 10 : 3])


def test_short_videos_are_skipped_and_named(classes: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = VideoFolder(classes, 16, num_frames=9, interval=3)
    reason = "too short: 24 frames, but a clip of 9 at interval 3 needs 25"
    assert dataset.skipped == [("run/deep/b.mp4", reason), ("walk/d.avi", reason.replace("24", "12"))]
    assert all(f"{path}: {reason}" in caplog.text for path, reason in dataset.skipped)
    assert "2 of 4 videos" in caplog.text
    assert len(dataset) == 2
    assert dataset.class_names == ["jump", "run", "walk"], "labels do not depend on the length of the videos"


def test_error_without_usable_videos_names_folder_and_reasons(classes: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no usable video in .*classes.*1 x too short: 30 frames, but a clip of 16 at"
    ):
        VideoFolder(classes, 16)


def test_weights_by_clips_and_by_classes(dataset: VideoFolder) -> None:
    assert dataset.weights("videos") is None
    clips = dataset.weights("clips")
    assert clips == pytest.approx(np.array([21, 27, 15, 3]) / 66)
    balanced = dataset.weights("classes")
    assert balanced == pytest.approx(np.array([2, 1, 1, 2]) / 6)


def test_weights_by_clips_make_all_windows_equally_likely(dataset: VideoFolder) -> None:
    stream = ClipStream(dataset, 4, 3, seed=0, weights=dataset.weights("clips"))
    counts = np.bincount([stream.index(n) for n in range(3300)], minlength=4)
    expected = 3300 * np.array([21, 27, 15, 3]) / 66
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_pickled_copy_reads_the_same_clips(dataset: VideoFolder) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    for index in range(len(dataset)):
        assert torch.equal(
            copy.read(index, 4, 3, np.random.default_rng(5)), dataset.read(index, 4, 3, np.random.default_rng(5))
        )


def test_loader_processes_read_the_same_clips(dataset: VideoFolder) -> None:
    stream = ClipStream(dataset, 4, 3, seed=0, num_images=2)
    batches = [list(range(4)), list(range(4, 8))]
    here, there = (
        list(torch.utils.data.DataLoader(stream, batch_sampler=batches, num_workers=workers)) for workers in (0, 2)
    )
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(here, there))
    assert here[0]["video"].shape == (4, 6, 3, 24, 40)


def test_fingerprint_depends_on_files_and_size(classes: Path, dataset: VideoFolder) -> None:
    kwargs = {"num_frames": 4, "interval": 3}
    assert VideoFolder(classes, (24, 40), **kwargs, flip=False).fingerprint() == dataset.fingerprint()
    assert VideoFolder(classes, (40, 24), **kwargs).fingerprint() != dataset.fingerprint()
    assert VideoFolder(classes / "run", (24, 40), **kwargs).fingerprint() != dataset.fingerprint()


def test_fingerprint_is_that_of_earlier_versions_unless_pictures_are_read_differently(tmp_path: Path) -> None:
    """Latent caches of earlier versions stay valid, except for videos that are now turned, flipped or resampled."""

    def earlier() -> str:
        files = [f"{video.path}\n{video.signature}" for video in scan(tmp_path)]
        return hashlib.sha256("\n".join(["(16, 16)", *files]).encode()).hexdigest()

    def fingerprint() -> str:
        return VideoFolder(tmp_path, 16, num_frames=4, interval=1).fingerprint()

    write_xvid(tmp_path / "a.avi", 12)
    write_video(tmp_path / "turned.mp4", 12, codec="libx264", rotation=90)
    write_frames(tmp_path / "frames", 12)
    assert fingerprint() == earlier()
    image = Image.fromarray(picture(0))
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "frames" / "0000000.jpg", exif=image.getexif())
    assert fingerprint() != earlier()
    write_frames(tmp_path / "frames", 12)
    assert fingerprint() == earlier()
    write_video(tmp_path / "b.mp4", 12, codec="libx264", pixel_aspect=Fraction(2))
    assert fingerprint() != earlier()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    write_xvid(root / "v00.avi", 12)
    for number in range(1, 12):
        shutil.copy(root / "v00.avi", root / f"v{number:02}.avi")
    return root


def paths(root: Path, split: str, **kwargs: object) -> set[str]:
    dataset = VideoFolder(root, 16, num_frames=4, interval=1, split=split, **kwargs)
    return {dataset.path(i) for i in range(len(dataset))}


@pytest.mark.parametrize(("holdout", "count"), [(0.1, 1), (0.25, 3), (0.99, 11)])
def test_folder_without_splits_holds_out_validation_videos(many: Path, holdout: float, count: int) -> None:
    train, held = paths(many, "train", holdout=holdout), paths(many, "val", holdout=holdout)
    assert len(held) == count
    assert not train & held
    assert train | held == paths(many, "all")


def test_larger_holdouts_contain_smaller_ones(many: Path) -> None:
    assert paths(many, "val", holdout=0.25) < paths(many, "val", holdout=0.5)


def test_holdout_0_validates_on_training_videos_and_warns(many: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert paths(many, "val", holdout=0) == paths(many, "train", holdout=0) == paths(many, "all")
    assert "the validation videos are the training videos" in caplog.text


def test_split_folders_are_not_classes(many: Path, tmp_path: Path) -> None:
    for place in ("train/x/1.avi", "train/y/2.avi", "test/x/3.avi"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(many / "v00.avi", tmp_path / place)
    assert paths(tmp_path, "train") == {"train/x/1.avi", "train/y/2.avi"}
    assert paths(tmp_path, "test") == paths(tmp_path, "val") == {"test/x/3.avi"}
    assert len(paths(tmp_path, "all")) == 3
    assert VideoFolder(tmp_path, 16, num_frames=4, interval=1, split="test").class_names == ["x", "y"]
    shutil.move(tmp_path / "test", tmp_path / "valid")
    assert paths(tmp_path, "val") == {"valid/x/3.avi"}


def test_real_clips_in_one_folder(tmp_path: Path) -> None:
    clips = [path for path in real_clips() if path.name in ("bikes.mp4", "carphone_pristine.mp4", "demo.wmv")]
    for path in clips:
        (tmp_path / path.name).symlink_to(path)
    dataset = VideoFolder(tmp_path, 32, num_frames=8, interval=3)
    assert len(dataset) == 3
    for index, seed in itertools.product(range(3), range(2)):
        clip = dataset.read(index, 8, 3, np.random.default_rng(seed))
        assert clip.shape == (8, 3, 32, 32)
        assert clip.float().std() > 10
        assert (clip[0] != clip[-1]).any()
