import shutil
from pathlib import Path

import fake_videos
import numpy as np
import pytest
import torch

from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import VideoFolder
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.ucf101 import UCF101Videos

CLIP = {"size": (24, 32), "num_frames": 4, "interval": 3}


def paths(dataset: VideoFolder) -> list[str]:
    return [dataset.path(i) for i in range(len(dataset))]


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_videos.ucf101(tmp_path_factory.mktemp("ucf"))


def test_ucf101_splits_follow_the_lists(ucf: Path) -> None:
    train, test, both = (UCF101Videos(ucf, split=s, **CLIP) for s in ("train", "test", "all"))
    assert [len(train), len(test), len(both)] == [6, 3, 9]
    assert all("_g01_" in path for path in paths(test))
    assert sorted(paths(train) + paths(test)) == sorted(paths(both))
    assert paths(UCF101Videos(ucf, split="val", **CLIP)) == paths(test)


def test_ucf101_labels_follow_class_ind(ucf: Path) -> None:
    for split in ("train", "test", "all"):
        dataset = UCF101Videos(ucf, split=split, **CLIP)
        assert dataset.class_names == ["Archery", "Hammering", "HammerThrow"]
        for index, path in enumerate(paths(dataset)):
            assert dataset.class_names[dataset.label(index)] == path.split("/")[1]


def test_ucf101_without_lists_has_the_same_classes(ucf: Path, tmp_path: Path) -> None:
    shutil.copytree(ucf / "UCF-101", tmp_path / "UCF-101")
    dataset = UCF101Videos(tmp_path, **CLIP)
    assert dataset.class_names == UCF101Videos(ucf, **CLIP).class_names
    assert len(dataset) == 9
    with pytest.raises(FileNotFoundError, match=r'no "train" split; expected .*trainlist01\.txt .* split "all"'):
        UCF101Videos(tmp_path, split="train", **CLIP)


def test_ucf101_may_be_given_as_the_inner_folder(ucf: Path) -> None:
    inner = UCF101Videos(ucf / "UCF-101", split="test", **CLIP)
    assert [f"UCF-101/{path}" for path in paths(inner)] == paths(UCF101Videos(ucf, split="test", **CLIP))


def test_ucf101_folds_read_their_own_lists(ucf: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ucf, tmp_path / "ucf"))
    (root / "ucfTrainTestlist" / "testlist02.txt").write_text("Archery/v_Archery_g03_c01.avi\n")
    dataset = UCF101Videos(root, fold=2, split="test", **CLIP)
    assert paths(dataset) == ["UCF-101/Archery/v_Archery_g03_c01.avi"]
    with pytest.raises(ValueError, match="fold is 4"):
        UCF101Videos(root, fold=4, **CLIP)


def test_ucf101_names_listed_videos_that_are_missing(ucf: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(ucf, tmp_path / "ucf"))
    (root / "UCF-101" / "Archery" / "v_Archery_g02_c01.avi").unlink()
    (root / "UCF-101" / "Extra").mkdir()
    shutil.copy(root / "UCF-101/Archery/v_Archery_g01_c01.avi", root / "UCF-101/Extra/v_Extra_g01_c01.avi")
    train = UCF101Videos(root, split="train", **CLIP)
    assert train.skipped == [("Archery/v_Archery_g02_c01.avi", "listed in trainlist01.txt but not on disk")]
    assert UCF101Videos(root, split="test", **CLIP).skipped == []
    assert len(train) == 5


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("splits", [False, True])
def test_faceforensics(frames: bool, splits: bool, tmp_path: Path) -> None:
    fake_videos.faceforensics(tmp_path, frames, splits)
    train, val, both = (FaceForensicsVideos(tmp_path, split=s, **CLIP) for s in ("train", "val", "all"))
    assert [len(train), len(val), len(both)] == ([3, 3, 6] if splits else [2, 1, 3])
    assert set(paths(train)).isdisjoint(paths(val))
    assert both.class_names == []
    assert train.read(0, 4, 3, np.random.default_rng(0)).shape == (4, 3, 24, 32)
    if not splits:
        with pytest.raises(FileNotFoundError, match='no "test" split'):
            FaceForensicsVideos(tmp_path, split="test", **CLIP)


def test_skytimelapse(tmp_path: Path) -> None:
    fake_videos.skytimelapse(tmp_path)
    train, test = (SkyTimelapseVideos(tmp_path, split=s, **CLIP) for s in ("train", "test"))
    assert paths(train) == [f"sky_train/Ab{v}xYz/Ab{v}xYz_{c}" for v in (0, 1) for c in (1, 2)]
    assert [path.split("/")[0] for path in paths(test)] == ["sky_test"] * 4
    assert train.class_names == []
    assert [train.length(i) for i in range(4)] == [20] * 4
    native = SkyTimelapseVideos(tmp_path, (48, 64), num_frames=4, interval=3)
    frame = native.frames(3, 9, 2, 3)[1].permute(1, 2, 0).numpy().astype(int)
    errors = [np.abs(frame - fake_videos.picture(n, seed=12)).mean() for n in range(20)]
    assert int(np.argmin(errors)) == 12, "frames are ordered by number"


def test_frames_are_read_in_number_order_when_text_order_differs(tmp_path: Path) -> None:
    fake_videos.write_frames(tmp_path / "train" / "v", 14, "{}.png")
    (tmp_path / "test").mkdir()
    clip = TaichiVideos(tmp_path, (48, 64), num_frames=13, interval=1, split="train").read(0, 13, 1, None)
    expected = np.stack([fake_videos.picture(n) for n in range(13)])
    assert torch.equal(clip, torch.from_numpy(expected).permute(0, 3, 1, 2))


@pytest.mark.parametrize("frames", [False, True])
def test_taichi(frames: bool, tmp_path: Path) -> None:
    fake_videos.taichi(tmp_path, frames)
    train, test = (TaichiVideos(tmp_path, split=s, **CLIP) for s in ("train", "test"))
    assert (len(train), len(test)) == (3, 3)
    assert set(paths(train)).isdisjoint(paths(test))
    assert train.length(0) == (20 if frames else 36)
    assert train.read(2, 4, 3, None).shape == (4, 3, 24, 32)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (SkyTimelapseVideos, "sky_train/<video>/<clip>/\\*.jpg"),
        (TaichiVideos, "train/<video>.mp4 or .*train/<video>/<frame>.png"),
    ],
)
def test_missing_split_shows_the_expected_layout(kind: type[VideoFolder], layout: str, tmp_path: Path) -> None:
    fake_videos.write_frames(tmp_path / "train" / "v" / "v_1", 12)
    with pytest.raises(FileNotFoundError, match=f'has no "test" split; expected {tmp_path}/{layout}'):
        kind(tmp_path, split="test", **CLIP)
