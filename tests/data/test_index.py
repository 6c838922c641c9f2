import json
import os
import shutil
from pathlib import Path

import pytest
from fake_videos import write_frames, write_xvid

from latte_pl.data import index as index_module
from latte_pl.data.contents import FrameFolder
from latte_pl.data.index import FOLDER, Entry, open_index, scan


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_xvid(root / "b" / "2.avi", 30)
    write_xvid(root / "b" / "10.avi", 24, seed=1)
    write_frames(root / "a" / "clip", 8)
    return root


@pytest.fixture
def root(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "videos"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The videos that are opened, in any order."""
    names: list[str] = []
    inspect = index_module._inspect

    def recorded(root: Path, video: index_module.Found, *args: bool) -> Entry:
        names.append(video.path)
        return inspect(root, video, *args)

    monkeypatch.setattr(index_module, "_inspect", recorded)
    return names


def lengths(entries: list[Entry]) -> list[int]:
    return [entry.index.num_frames if entry.index else 0 for entry in entries]


def test_scan_finds_files_and_frame_folders_sorted_by_path(root: Path) -> None:
    (root / "notes.txt").write_text("no video")
    (root / ".hidden").mkdir()
    shutil.copy(root / "b" / "2.avi", root / ".hidden" / "x.avi")
    (root / "cover.jpg").write_bytes(b"beside the class folders")
    assert [video.path for video in scan(root)] == ["a/clip", "b/10.avi", "b/2.avi"]


def test_folder_of_frames_is_one_video(root: Path) -> None:
    (video,) = scan(root / "a" / "clip")
    assert (video.path, len(video.names.split("/"))) == ("", 8)
    assert lengths(open_index(root / "a" / "clip", [video])) == [8]


def test_scan_follows_links_but_no_circles(root: Path, tmp_path: Path) -> None:
    (root / "linked").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    paths = [video.path for video in scan(root)]
    assert "linked/clip" in paths
    assert not any("up/a" in path for path in paths)


def test_second_run_opens_no_file(root: Path, opened: list[str]) -> None:
    first = open_index(root, scan(root))
    assert sorted(opened) == ["a/clip", "b/10.avi", "b/2.avi"]
    assert lengths(first) == [8, 24, 30]
    opened.clear()
    assert open_index(root, scan(root)) == [Entry(e.index) for e in first]
    assert opened == []
    assert isinstance(first[0].index, FrameFolder)
    assert first[0].index.names.split("/")[7] == "0000007.jpg"


def test_changed_files_are_opened_again(root: Path, opened: list[str]) -> None:
    open_index(root, scan(root))
    opened.clear()
    write_xvid(root / "b" / "2.avi", 40)
    (root / "a" / "clip" / "0000007.jpg").unlink()
    os.utime(root / "b" / "10.avi", ns=(0, 0))
    assert lengths(open_index(root, scan(root))) == [7, 24, 40]
    assert sorted(opened) == ["a/clip", "b/10.avi", "b/2.avi"]


def test_new_file_is_added_without_opening_the_others(root: Path, opened: list[str]) -> None:
    open_index(root, scan(root))
    opened.clear()
    shutil.copy(root / "b" / "2.avi", root / "b" / "3.avi")
    assert lengths(open_index(root, scan(root))) == [8, 24, 30, 30]
    assert opened == ["b/3.avi"]


def test_two_splits_share_one_index(root: Path, opened: list[str]) -> None:
    open_index(root, scan(root, "a"))
    open_index(root, scan(root, "b"))
    opened.clear()
    open_index(root, scan(root))
    assert opened == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 3}', '{"format": "F", "videos": {"a/clip": {}}}'])
def test_unreadable_index_is_rebuilt(content: str, root: Path) -> None:
    place = root / FOLDER / "index.json"
    place.parent.mkdir()
    place.write_text(content.replace('"F"', json.dumps(index_module._format())))
    assert lengths(open_index(root, scan(root))) == [8, 24, 30]
    assert len(json.loads(place.read_text())["videos"]) == 3


def test_another_decoder_version_rebuilds_the_index(
    root: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_index(root, scan(root))
    opened.clear()
    monkeypatch.setattr(index_module, "_format", lambda: "another")
    open_index(root, scan(root))
    assert len(opened) == 3


def test_interrupted_run_resumes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect = index_module._inspect
    done: list[str] = []

    def interrupted(root: Path, video: index_module.Found, *args: bool) -> Entry:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(video.path)
        return inspect(root, video, *args)

    monkeypatch.setattr(index_module, "_inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_index(root, scan(root), num_threads=1)
    monkeypatch.setattr(index_module, "_inspect", inspect)
    stored = json.loads((root / FOLDER / "index.json").read_text())["videos"]
    assert set(stored) <= set(done)
    assert stored
    assert [path.name for path in (root / FOLDER).iterdir()] == ["index.json"], "no partial file is left"
    assert lengths(open_index(root, scan(root))) == [8, 24, 30]


def test_folder_that_is_not_writable_uses_the_users_cache(
    root: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / FOLDER).write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    open_index(root, scan(root))
    assert len(list((tmp_path / "cache" / "latte_pl" / "index").glob("videos-*.json"))) == 1
    opened.clear()
    open_index(root, scan(root))
    assert opened == []


def test_index_that_cannot_be_saved_is_a_warning(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (root / FOLDER).write_text("")
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert lengths(open_index(root, scan(root))) == [8, 24, 30]
    assert "the index cannot be saved (" in caplog.text


def test_cache_dir_leaves_the_data_folder_unchanged(root: Path, tmp_path: Path) -> None:
    open_index(root, scan(root), cache_dir=tmp_path / "elsewhere")
    assert not (root / FOLDER).exists()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_thorough_check_is_stored(root: Path, opened: list[str]) -> None:
    open_index(root, scan(root))
    opened.clear()
    open_index(root, scan(root), thorough=True)
    assert opened == ["a/clip"], "video files are always decoded"
    opened.clear()
    open_index(root, scan(root))
    open_index(root, scan(root), thorough=True)
    assert opened == []
