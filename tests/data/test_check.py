import os
import shutil
from pathlib import Path
from typing import ClassVar

import fake_videos
import pytest

from latte_pl.cli import data
from latte_pl.data.check import DATASETS, check
from latte_pl.data.folder import VideoFolder
from latte_pl.data.skytimelapse import SkyTimelapseVideos

CLIP = {"num_frames": 4, "interval": 3}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("roots")
    fake_videos.write_xvid(root / "folder" / "run" / "v.avi", 24, size=(40, 64))
    fake_videos.write_xvid(root / "folder" / "walk" / "v.avi", 30)
    return {
        "ucf101": fake_videos.ucf101(root / "ucf101", per_class=2, num_frames=12),
        "faceforensics": fake_videos.faceforensics(root / "faceforensics", frames=True, num_videos=2),
        "skytimelapse": fake_videos.skytimelapse(root / "skytimelapse"),
        "taichi": fake_videos.taichi(root / "taichi", num_videos=2),
        "folder": root / "folder",
    }


@pytest.mark.parametrize("name", DATASETS)
def test_intact_data_set_passes(name: str, roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert data.check(name, str(roots[name]), **CLIP) == 0
    text = capsys.readouterr().out
    count = {"ucf101": 6, "faceforensics": 4, "skytimelapse": 8, "taichi": 4, "folder": 2}[name]
    assert f"{count} usable videos" in text
    assert "every video can be used" in text


def test_report_counts_splits_classes_sizes_and_lengths(roots: dict[str, Path]) -> None:
    report = check("ucf101", roots["ucf101"], 4, 3)
    assert report.splits == {"train": 3, "test": 3}
    assert list(report.classes) == ["Archery", "Hammering", "HammerThrow"]
    assert all(counts == {"train": 1, "test": 1} for counts in report.classes.values())
    assert report.resolutions == {(64, 48): 6}
    assert report.lengths == [12] * 6
    mixed = check("folder", roots["folder"], 4, 3)
    assert mixed.resolutions == {(64, 40): 1, (64, 48): 1}
    assert sorted(mixed.lengths) == [24, 30]


def test_report_has_histograms(roots: dict[str, Path]) -> None:
    text = str(check("folder", roots["folder"], 4, 3))
    lines = [line.split() for line in text.splitlines()]
    assert ["64", "x", "48", "1", "█" * 30] in lines
    assert ["24-24", "1"] not in lines
    assert ["24", "1", "█" * 30] in lines
    assert ["30", "1", "█" * 30] in lines
    assert ["run", "1"] in lines


def test_unusable_files_are_named_and_fail_the_check(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(roots["ucf101"], tmp_path / "ucf"))
    videos = sorted((root / "UCF-101").rglob("*.avi"))
    videos[0].write_bytes(b"")
    videos[1].unlink()
    assert data.check("ucf101", str(root), **CLIP) == 1
    text = capsys.readouterr().out
    assert "4 usable videos, 48 frames; 2 unusable" in text
    assert f"  {videos[0].relative_to(root)}: zero bytes" in text
    assert f"  {videos[1].relative_to(root / 'UCF-101')}: listed in " in text


def test_clip_longer_than_all_videos_fails_the_check(
    roots: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.check("folder", str(roots["folder"])) == 1
    assert "too short: 24 frames, but a clip of 16 at interval 3 needs 46" in capsys.readouterr().out


def test_empty_folder_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.check("folder", str(tmp_path)) == 1
    assert "no video found" in capsys.readouterr().out


class Nested(VideoFolder):
    """A layout of the user's own: training/<class>/<video>."""

    folders: ClassVar = {"train": ("training",)}


def test_own_layout_is_checked_by_its_import_path(roots: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(roots["folder"], tmp_path / "training")
    report = check(f"{__name__}.Nested", tmp_path, 4, 3)
    assert report.splits == {"train": 2}
    assert list(report.classes) == ["run", "walk"]


def test_command_line_passes_its_arguments(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        data.main(["check", "folder", str(roots["folder"]), "--num_frames", "5", "--interval", "6"])
    assert ended.value.code == 1
    assert "clips of 5 frames at interval 6 (25 frames)" in capsys.readouterr().out


def test_training_skips_what_a_check_found(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["skytimelapse"], tmp_path / "sky"))
    image = sorted((root / "sky_train").rglob("*.jpg"))[3]
    content = bytearray(image.read_bytes())
    table = content.find(b"\xff\xc4")  # a senseless code table, in a file with an intact head and end
    content[table + 4 : table + 21] = b"\xff" * 17
    image.write_bytes(content)
    clip = {"size": 16, "num_frames": 4, "interval": 3, "split": "train"}
    assert len(SkyTimelapseVideos(root, **clip)) == 4
    report = check("skytimelapse", root, 4, 3)
    ((path, reason),) = report.skipped
    assert path == image.parent.relative_to(root).as_posix()
    assert image.name in reason
    dataset = SkyTimelapseVideos(root, **clip)
    assert dataset.skipped == [(path, reason)]
    assert len(dataset) == 3


def test_check_and_training_share_the_index(roots: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(roots["folder"], tmp_path / "folder"))
    check("folder", root, 4, 3)
    written = os.stat(root / ".latte_index" / "index.json").st_mtime_ns
    VideoFolder(root, 16, 4, 3)
    assert os.stat(root / ".latte_index" / "index.json").st_mtime_ns == written


def test_file_names_that_are_not_utf8_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / name).write_bytes(b"nothing")
    assert data.check("folder", str(tmp_path)) == 1
    assert r"caf\udce9.mp4: " in capsys.readouterr().out
