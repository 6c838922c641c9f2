"""`index="fast"` trusts the containers: nothing but the first frame of a video is decoded."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_headers
from fake_videos import write_frames, write_video, write_xvid
from test_decoding import KINDS, sequential
from test_pictures import write_animation

from latte_pl.cli import data
from latte_pl.data import decoding, frames
from latte_pl.data.check import check
from latte_pl.data.colour import RGBConverter
from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import open_index, scan
from latte_pl.data.videos import Folder

CLIP = {"size": 16, "num_frames": 4, "interval": 3}
# the container whose index is wrong
WRONG = {"wrong_offsets.avi"}
MORE = {name: write for name, (write, _) in test_headers.COMPLETE.items() if "not_coded" not in name}


@pytest.mark.parametrize("kind", [name for name in KINDS | MORE if name not in WRONG])
def test_windows_equal_a_sequential_decode(kind: str, tmp_path: Path) -> None:
    path = (KINDS | MORE)[kind](tmp_path / kind)
    truth, index = sequential(path), index_video(path, fast=True)
    exact = index_video(path)
    assert index.num_frames == len(truth) == exact.num_frames
    assert (index.height, index.width, index.fps) == (exact.height, exact.width, exact.fps)
    for start, (count, interval) in itertools.product(range(len(truth)), ((2, 1), (4, 3))):
        stop = start + (count - 1) * interval + 1
        if stop <= len(truth):
            assert np.array_equal(read_video(path, index, start, count, interval), truth[start:stop:interval])


def test_reading_starts_at_a_keyframe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0
    original = decoding._frames

    def counted(*args: object) -> object:
        nonlocal decoded
        for frame in original(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr(decoding, "_frames", counted)
    for suffix, codec in (("avi", "mpeg4"), ("mp4", "libx264"), ("mkv", "libx264")):
        path = write_video(tmp_path / f"a.{suffix}", 60, codec=codec, gop=12)
        index = index_video(path, fast=True)
        decoded = 0
        read_video(path, index, 50, 2)
        assert decoded < 12


def test_only_the_first_frame_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xvid(tmp_path / "a.avi", 60)
    converted = []
    original = RGBConverter.__call__
    monkeypatch.setattr(RGBConverter, "__call__", lambda *args: (converted.append(args), original(*args))[1])
    index_video(path, fast=True)
    assert len(converted) == 1


@pytest.mark.parametrize("name", ["text.mp4", "sound.mp4", "empty.avi"])
def test_file_without_video_is_skipped(name: str, tmp_path: Path) -> None:
    from test_bad_inputs import VIDEOS

    write = next(make for row, make, _ in VIDEOS if row == name)
    write(tmp_path / name)
    write_xvid(tmp_path / "good.avi", 12)
    dataset = VideoFolder(tmp_path, **CLIP, index="fast")
    assert [path for path, _ in dataset.skipped] == [name]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = b"\x55" * 400
    path.write_bytes(content)


def test_damage_is_found_when_the_video_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, codec="libx264", gop=12)
    damage(path)
    dataset = VideoFolder(tmp_path, **CLIP, index="fast")
    with pytest.raises(ValueError, match=r"a\.mp4 (can no longer be decoded|ends after).*; run `latte data check`"):
        dataset.frames(0, 0, 60)


def test_exact_index_replaces_a_fast_one_and_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_xvid(tmp_path / "a.avi", 36)
    write_frames(tmp_path / "b", 36)
    write_animation(tmp_path / "c" / "c.webp")
    opened: list[str] = []
    original = decoding.index_video
    monkeypatch.setattr(decoding, "index_video", lambda path, *a: (opened.append(path.name), original(path, *a))[1])
    for fast, expected in ((True, ["a.avi"]), (True, []), (False, ["a.avi"]), (True, []), (False, [])):
        opened.clear()
        entries = open_index(tmp_path, scan(tmp_path), fast=fast)
        assert [entry.index.num_frames for entry in entries] == [36, 36, 12]
        assert opened == expected


def test_frames_are_not_opened_except_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "b", 36)
    opened: list[str] = []
    original = frames.inspect_image
    monkeypatch.setattr(frames, "inspect_image", lambda path, *a: (opened.append(path.name), original(path, *a))[1])
    open_index(tmp_path, scan(tmp_path), fast=True)
    assert opened == ["0000000.jpg"]
    open_index(tmp_path, scan(tmp_path))
    assert len(opened) == 37


def test_check_says_what_it_did_not_look_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video(tmp_path / "a.mkv", 60, codec="libx264", gop=12)
    damage(path)
    with pytest.raises(SystemExit) as ended:
        data.main(["check", "folder", str(tmp_path), "--num_frames", "4", "--index", "fast"])
    assert ended.value.code == 0
    assert "the videos were not decoded, so damage is not found" in capsys.readouterr().out
    assert not check("folder", tmp_path, 4, 3).ok


def test_datamodule_passes_the_option(tmp_path: Path) -> None:
    write_xvid(tmp_path / "a.avi", 36)
    write_xvid(tmp_path / "b.avi", 36)
    module = Folder(str(tmp_path), size=16, num_frames=4, interval=3, index="fast", holdout=0.5)
    module.dataset("train")
    stored = json.loads((tmp_path / ".latte_index" / "index.json").read_text())["videos"]
    assert [row["exact"] for row in stored.values()] == [False]
    assert Folder(str(tmp_path)).settings == module.settings | {"size": [256, 256], "holdout": 0.1}


@pytest.mark.parametrize("index", ["slow", ""])
def test_unknown_value_is_refused(index: str, tmp_path: Path) -> None:
    write_xvid(tmp_path / "a.avi", 36)
    with pytest.raises(ValueError, match=f'index is "{index}"; it must be "exact" or "fast"'):
        VideoFolder(tmp_path, **CLIP, index=index)


WRITERS: dict[str, Callable[[Path], Path]] = {name: KINDS[name] for name in WRONG}


@pytest.mark.parametrize("kind", WRITERS)
def test_wrong_containers_need_the_exact_index(kind: str, tmp_path: Path) -> None:
    """What trusting costs: these files give wrong frames or an error."""
    path = WRITERS[kind](tmp_path / kind)
    truth, index = sequential(path), index_video(path, fast=True)
    right = []
    for start in range(35):
        try:
            right.append(np.array_equal(read_video(path, index, start, 2), truth[start : start + 2]))
        except ValueError:
            right.append(False)
    assert not all(right)
