"""Copies of the data sets as they circulate: each is recognised, or refused with the layout that was found."""

import shutil
from pathlib import Path

import pytest
from fake_videos import write_frames, write_xvid

from latte_pl.data.check import check
from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import VideoFolder
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.ucf101 import UCF101Videos

CLIP = {"size": 16, "num_frames": 4, "interval": 1}
CLASSES = ("Archery", "HandstandPushups")
LISTS = "ucfTrainTestlist"


def name(kind: str, group: int) -> str:
    """Return the name of a video of UCF101, whose spelling differs from the folder of one class."""
    return f"v_{kind.replace('Handstand', 'HandStand')}_g{group:02}_c01"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xvid(tmp_path_factory.mktemp("video") / "v.avi", 8)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames") / "v", 8, "frame{:06d}.jpg", 1)


class Copy:
    """Write a copy of a data set; all its videos are alike."""

    def __init__(self, root: Path, video: Path, frames: Path) -> None:
        self.root, self._video, self._frames = root, video, frames

    def videos(self, *paths: str) -> None:
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._video, self.root / path)

    def frames(self, *paths: str) -> None:
        for path in paths:
            shutil.copytree(self._frames, self.root / path)

    def lists(self, place: str) -> None:
        folder = self.root / place
        folder.mkdir(parents=True)
        (folder / "classInd.txt").write_text("".join(f"{n} {kind}\n" for n, kind in enumerate(CLASSES, 1)))
        for split, groups in (("train", (2, 3)), ("test", (1,))):
            lines = [f"{kind}/{name(kind, group)}.avi" for kind in CLASSES for group in groups]
            (folder / f"{split}list01.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def copy(tmp_path: Path, video: Path, frames: Path) -> Copy:
    return Copy(tmp_path / "data", video, frames)


ALL = [(kind, group) for kind in CLASSES for group in (1, 2, 3)]
OFFICIAL = [f"{kind}/{name(kind, group)}.avi" for kind, group in ALL]
SPLITS = {"train": 4, "test": 2}


@pytest.mark.parametrize("videos", ["UCF-101", "UCF101/UCF-101", "UCF101", "UCF101/videos", "ucf101/UCF-101"])
@pytest.mark.parametrize("lists", [LISTS, f"UCF101TrainTestSplits-RecognitionTask/{LISTS}"])
def test_ucf101_as_distributed(videos: str, lists: str, copy: Copy) -> None:
    copy.videos(*(f"{videos}/{path}" for path in OFFICIAL))
    copy.lists(lists)
    report = check("ucf101", copy.root, 4, 1)
    assert report.splits == SPLITS
    assert list(report.classes) == list(CLASSES)


def test_ucf101_with_split_folders(copy: Copy) -> None:
    """Kaggle (train, val, test and lists as CSV) and the subset of the video classification guide of transformers."""
    for split, group in (("train", 1), ("val", 2), ("test", 3)):
        copy.videos(*(f"{split}/{kind}/{name(kind, group)}.avi" for kind in CLASSES))
        (copy.root / f"{split}.csv").write_text("clip_name,clip_path,label\n")
    report = check("ucf101", copy.root, 4, 1)
    assert report.splits == {"train": 2, "val": 2, "test": 2}
    assert list(report.classes) == list(CLASSES)
    for split in ("train", "val", "test"):
        dataset = UCF101Videos(copy.root, split=split, **CLIP)
        assert [dataset.path(n).split("/")[:2] for n in range(len(dataset))] == [[split, kind] for kind in CLASSES]
        assert [dataset.label(n) for n in range(len(dataset))] == [0, 1]


def test_ucf101_with_split_folders_inside_another(copy: Copy) -> None:
    for split, group in (("train", 1), ("test", 2)):
        copy.videos(*(f"UCF101_subset/{split}/{kind}/{name(kind, group)}.avi" for kind in CLASSES))
    assert check("ucf101", copy.root, 4, 1).splits == {"train": 2, "test": 2}


@pytest.mark.parametrize("place", ["images_256", "UCF101/images_256", "rawframes", "rgb-images"])
def test_ucf101_as_frames_in_class_folders(place: str, copy: Copy) -> None:
    copy.frames(*(f"{place}/{kind}/{name(kind, group)}" for kind, group in ALL))
    copy.lists(LISTS)
    report = check("ucf101", copy.root, 4, 1)
    assert report.splits == SPLITS
    assert list(report.classes) == list(CLASSES)


def test_ucf101_as_frames_without_class_folders(copy: Copy) -> None:
    """jpegs_256: the classes are in the names."""
    copy.frames(*(f"jpegs_256/{name(kind, group)}" for kind, group in ALL))
    dataset = UCF101Videos(copy.root, **CLIP)
    assert dataset.class_names == list(CLASSES)
    assert [dataset.label(n) for n in range(6)] == [0, 0, 0, 1, 1, 1]
    copy.lists(LISTS)
    assert check("ucf101", copy.root, 4, 1).splits == SPLITS


@pytest.mark.parametrize("videos", ["UCF-101", "UCF101/videos"])
def test_ucf101_videos_are_preferred_to_their_frames(videos: str, copy: Copy) -> None:
    copy.videos(*(f"{videos}/{path}" for path in OFFICIAL))
    copy.frames(*(f"UCF101/images_256/{kind}/{name(kind, group)}" for kind, group in ALL))
    dataset = UCF101Videos(copy.root, **CLIP)
    assert [dataset.path(n) for n in range(len(dataset))] == [f"{videos}/{path}" for path in OFFICIAL]


def test_ucf101_twice_is_refused(copy: Copy) -> None:
    copy.videos(*(f"{place}/{path}" for place in "ab" for path in OFFICIAL))
    with pytest.raises(ValueError, match=r"contains v_Archery_g01_c01 twice \(a/Archery/v_.*, b/Archery/v_"):
        UCF101Videos(copy.root, **CLIP)


def test_ucf101_with_anonymous_names_is_refused(copy: Copy) -> None:
    copy.videos("train_videos/0a1b.avi", "test_videos/9f8e.avi")
    with pytest.raises(ValueError, match=r"found .*/test_videos/9f8e\.avi, expected .*UCF-101/<Class>/v_\*\.avi"):
        UCF101Videos(copy.root, **CLIP)


def test_ucf101_middle_frames_are_refused(copy: Copy) -> None:
    for kind, group in ALL:
        folder = copy.root / "UCF-101-midframes" / kind
        for clip in (1, 2):
            write_frames(folder, 1, f"{name(kind, group)[:-1]}{clip}.jpg")
    with pytest.raises(ValueError, match=r"no usable video .*frames of several videos"):
        UCF101Videos(copy.root, **CLIP)


def test_ucf101_as_tables_is_refused(copy: Copy) -> None:
    (copy.root / "data").mkdir(parents=True)
    (copy.root / "data" / "train-00000-of-00020.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"no video found, expected .*UCF-101/<Class>.*; found \.parquet files"):
        UCF101Videos(copy.root, **CLIP)


def test_archives_that_were_not_unpacked_are_named(copy: Copy) -> None:
    copy.root.mkdir()
    (copy.root / "UCF101.rar").write_bytes(b"Rar!")
    with pytest.raises(ValueError, match=r"no video found, .*; found \.rar files"):
        VideoFolder(copy.root, **CLIP)


def test_faceforensics_with_videos_and_their_frames(copy: Copy) -> None:
    """The copy of Latte's authors: train/videos and, for joint training, train/images."""
    copy.videos(*(f"train/videos/{n}.mp4" for n in "abc"))
    copy.frames(*(f"train/images/{n}" for n in "abc"))
    (copy.root / "train_list.txt").write_text("a/000001.jpg\n")
    dataset = FaceForensicsVideos(copy.root, split="all", **CLIP)
    assert [dataset.path(n) for n in range(len(dataset))] == [f"train/videos/{n}.mp4" for n in "abc"]
    assert {len(FaceForensicsVideos(copy.root, split=s, holdout=0.3, **CLIP)) for s in ("train", "val")} == {1, 2}


@pytest.mark.parametrize("suffix", ["", "/videos"])
def test_faceforensics_uses_the_original_videos(suffix: str, copy: Copy) -> None:
    for kind in ("original", "altered", "mask"):
        copy.videos(*(f"{split}/{kind}{suffix}/a.avi" for split in ("train", "val", "test")))
    report = check("faceforensics", copy.root, 4, 1)
    assert report.splits == {"train": 1, "val": 1, "test": 1}
    assert all("/original" in path for path, _ in report.notes)


def test_faceforensics_plus_plus_is_refused(copy: Copy) -> None:
    copy.videos("original_sequences/youtube/c23/videos/000.mp4", "manipulated_sequences/Deepfakes/c23/videos/0_1.mp4")
    with pytest.raises(ValueError, match=r"found .*/original_sequences of FaceForensics\+\+.*/youtube/c23/videos"):
        FaceForensicsVideos(copy.root, **CLIP)
    assert len(FaceForensicsVideos(copy.root / "original_sequences/youtube/c23/videos", **CLIP)) == 1


@pytest.mark.parametrize("names", [("sky_train", "sky_test"), ("train", "test")])
@pytest.mark.parametrize("place", ["", "sky_timelapse/"])
def test_skytimelapse(names: tuple[str, str], place: str, copy: Copy) -> None:
    copy.frames(*(f"{place}{folder}/abc/abc_{n}" for folder in names for n in (1, 2)))
    assert check("skytimelapse", copy.root, 4, 1).splits == {"train": 2, "test": 2}


def test_skytimelapse_without_test_videos_is_used_as_a_whole(copy: Copy) -> None:
    copy.frames(*(f"abc_{n}" for n in (1, 2)))
    assert len(SkyTimelapseVideos(copy.root, split="all", **CLIP)) == 2
    with pytest.raises(FileNotFoundError, match=r'has no "train" split; expected .*sky_train/<video>/<clip>'):
        SkyTimelapseVideos(copy.root, split="train", **CLIP)


@pytest.mark.parametrize("place", ["", "taichi/", "data/taichi-png/"])
def test_taichi_as_folders_named_like_videos(place: str, copy: Copy) -> None:
    """The copies of first-order-model and of Latte's issues: train/<video>.mp4/<frame>.png."""
    copy.frames(*(f"{place}{split}/a#001#{n}.mp4" for split in ("train", "test") for n in (1, 2)))
    assert check("taichi", copy.root, 4, 1).splits == {"train": 2, "test": 2}


def test_two_copies_in_one_folder_are_refused(copy: Copy) -> None:
    copy.videos("taichi/train/a.mp4", "taichi/test/b.mp4")
    copy.frames("taichi-png/train/a.mp4", "taichi-png/test/b.mp4")
    with pytest.raises(ValueError, match="contains several data sets: taichi, taichi-png; use one of these folders"):
        TaichiVideos(copy.root, split="train", **CLIP)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training"])
@pytest.mark.parametrize("place", ["", "data/", "a/b/"])
def test_split_folders_are_never_classes(train: str, place: str, copy: Copy) -> None:
    test = {"train": "test", "Train": "Test", "TRAIN": "TEST", "training": "testing"}[train]
    copy.videos(*(f"{place}{split}/{kind}/1.avi" for split in (train, test) for kind in ("cat", "dog")))
    report = check("folder", copy.root, 4, 1)
    assert report.splits == {"train": 2, "test": 2}
    assert list(report.classes) == ["cat", "dog"]


@pytest.mark.parametrize("folder", ["train_videos", "split-test", "val2"])
def test_folder_that_is_named_like_a_split_is_refused_as_a_class(folder: str, copy: Copy) -> None:
    copy.videos(f"{folder}/1.avi", "other/2.avi")
    with pytest.raises(ValueError, match=f'the folder "{folder}" is not a class; found .*/{folder}/1.avi, expected'):
        VideoFolder(copy.root, **CLIP)


def test_videos_and_frames_folders_are_no_classes(copy: Copy) -> None:
    copy.videos("train/videos/cat/1.avi", "train/videos/dog/2.avi", "test/videos/cat/3.avi")
    copy.frames("train/frames/cat/1", "train/frames/dog/2", "test/frames/cat/3")
    report = check("folder", copy.root, 4, 1)
    assert report.splits == {"train": 2, "test": 1}
    assert list(report.classes) == ["cat", "dog"]


def test_class_may_be_called_videos(copy: Copy) -> None:
    copy.videos("videos/1.avi", "cats/2.avi")
    assert VideoFolder(copy.root, **CLIP).class_names == ["cats", "videos"]


def test_videos_beside_split_folders_are_named(copy: Copy, caplog: pytest.LogCaptureFixture) -> None:
    copy.videos("train/a.avi", "test/b.avi", "unlabelled/c.avi")
    (copy.root / "notes").mkdir()
    dataset = VideoFolder(copy.root, split="all", **CLIP)
    assert [dataset.path(n) for n in range(len(dataset))] == ["train/a.avi", "test/b.avi"]
    assert "the videos in unlabelled are not used, because train, test are the folders of the splits" in caplog.text


def test_class_folders_that_contain_split_folders_are_refused(copy: Copy) -> None:
    copy.videos(*(f"{kind}/{split}/1.avi" for kind in ("cat", "dog") for split in ("train", "test")))
    with pytest.raises(ValueError, match="contains several data sets: cat, dog"):
        VideoFolder(copy.root, **CLIP)


def test_a_split_folder_inside_one_class_is_part_of_the_class(copy: Copy) -> None:
    copy.videos("cat/1.avi", "dog/test/2.avi")
    dataset = VideoFolder(copy.root, **CLIP)
    assert dataset.class_names == ["cat", "dog"]
    assert len(dataset) == 2


def test_videos_beside_a_folder_of_frames_are_used(copy: Copy) -> None:
    copy.videos("a.avi")
    copy.frames("frames")
    dataset = VideoFolder(copy.root, **CLIP)
    assert [dataset.path(n) for n in range(len(dataset))] == ["a.avi", "frames"]


def test_single_folder_of_frames_is_one_video(copy: Copy) -> None:
    copy.frames("frames")
    assert [VideoFolder(copy.root, **CLIP).path(0)] == ["frames"]
