"""Mistakes in data and arguments, and the messages that users see."""

import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import av
import fake_videos
import numpy as np
import pytest
from fake_videos import write_frames, write_video, write_xvid
from PIL import Image

from latte_pl.data.check import check
from latte_pl.data.folder import VideoFolder
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.ucf101 import UCF101Videos

CLIP = {"size": 16, "num_frames": 4, "interval": 3}


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def overwrite(path: Path, at: float, length: int = 40) -> None:
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    data[place : place + length] = b"\x55" * length
    path.write_bytes(data)


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def half_theora(path: Path) -> None:
    files = {file.name: file for file in metadata.files("iscc-samples") or []}
    shutil.copy(str(files["demo.ogv"].locate()), path)


def changed_frame(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    write_frames(folder, 12, "{}." + name.split(".")[1])
    change(folder / name)


# videos that cannot be used: name, how to write it, a pattern of the reason
VIDEOS: list[tuple[str, Callable[[Path], object], str]] = [
    ("empty.mp4", lambda p: p.write_bytes(b""), "zero bytes"),
    ("empty.avi", lambda p: p.write_bytes(b""), "zero bytes"),
    ("text.mp4", lambda p: p.write_text("404: Not Found"), r"not a readable video \(Invalid data"),
    ("page.webm", lambda p: p.write_text("<html><body>Sign in</body></html>"), r"not a readable video \(Invalid data"),
    (
        "noise.avi",
        lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)),
        r"not a readable video \(Invalid data",
    ),
    ("start_only.mp4", lambda p: cut(write_video(p, codec="libx264"), 0.01), r"not a readable video \(Invalid data"),
    ("cut.mp4", lambda p: cut(write_video(p, codec="libx264"), 0.7), r"not a readable video \(Invalid data"),
    ("cut.avi", lambda p: cut(write_xvid(p), 0.7), "truncated: .* of 36 declared frames decode|damaged: 1 of"),
    ("cut.mkv", lambda p: cut(write_video(p, codec="libx264"), 0.7), "truncated: .* of 1.44 declared seconds"),
    ("cut.webm", lambda p: cut(write_video(p, codec="libvpx-vp9"), 0.7), "truncated: .* of 1.44 declared seconds"),
    ("cut.flv", lambda p: cut(write_video(p, codec="flv"), 0.7), "truncated: .* of 1.44 declared seconds"),
    ("cut.wmv", lambda p: cut(write_video(p, codec="wmv2"), 0.9), "damaged: 1 of .* frames are corrupt"),
    ("scratched.mkv", lambda p: overwrite(write_video(p, codec="libx264"), 0.4), "truncated: |damaged: "),
    ("scratched.mpg", lambda p: overwrite(write_video(p, codec="mpeg2video"), 0.5), "damaged: 1 of .* are corrupt"),
    ("sound.mp4", sound_only, "no video stream"),
    ("undecodable.ogv", half_theora, "damaged: 1075 of 1440 packets cannot be decoded"),
    ("short.avi", lambda p: write_xvid(p, 9), "too short: 9 frames, but a clip of 4 at interval 3 needs 10"),
    ("still.gif", lambda p: Image.fromarray(fake_videos.picture(0)).save(p), "too short: 1 frames, but a clip of 4"),
    ("photo.mp4", lambda p: Image.fromarray(fake_videos.picture(0)).save(p, "JPEG"), "too short: 1 frames"),
    ("gone.mp4", lambda p: p.symlink_to("nowhere.mp4"), r"cannot be opened \(No such file"),
    ("empty_image", lambda p: changed_frame(p, "3.jpg", lambda f: f.write_bytes(b"")), r"image 3\.jpg \(zero bytes"),
    ("text_image", lambda p: changed_frame(p, "3.png", lambda f: f.write_text("x")), r"image 3\.png \(not an image"),
    ("cut_jpeg", lambda p: changed_frame(p, "3.jpg", lambda f: cut(f, 0.5)), r"unreadable image 3\.jpg \(.*runcated"),
    ("cut_png", lambda p: changed_frame(p, "3.png", lambda f: cut(f, 0.5)), r"unreadable image 3\.png \(.*runcated"),
    ("scratched_png", lambda p: changed_frame(p, "3.png", lambda f: overwrite(f, 0.5)), r"unreadable image 3\.png"),
    ("gap", lambda p: changed_frame(p, "3.png", Path.unlink), "gap in frame numbers: 1 missing between 2 and 4"),
    ("twice", lambda p: changed_frame(p, "3.png", lambda f: shutil.copy(f, p / "03.png")), "two files for frame 3"),
    ("two_series", lambda p: (write_frames(p, 6, "a{}.png"), write_frames(p, 6, "b{}.png")), "frames of several vid"),
    ("cover", lambda p: changed_frame(p, "3.png", lambda f: shutil.copy(f, p / "cover.png")), "has no frame number"),
    ("few_frames", lambda p: write_frames(p, 9), "too short: 9 frames, but a clip of 4 at interval 3 needs 10"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_xvid(tmp_path_factory.mktemp("good") / "good.avi", 12)


@pytest.mark.parametrize(("name", "make", "pattern"), VIDEOS, ids=[row[0] for row in VIDEOS])
def test_unusable_video_is_skipped_and_named(
    name: str,
    make: Callable[[Path], object],
    pattern: str,
    good: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copy(good, tmp_path)
    make(tmp_path / name)
    dataset = VideoFolder(tmp_path, **CLIP)
    ((path, reason),) = dataset.skipped
    assert path == name
    assert reason in caplog.text
    assert len(dataset) == 1
    assert dataset.read(0, 4, 3, None).shape == (4, 3, 16, 16)
    report = check("folder", tmp_path, 4, 3)
    assert [path for path, _ in report.skipped] == [name]
    for text in (reason, report.skipped[0][1]):
        assert re.search(pattern, text), text
    assert not report.ok


def ucf(tmp_path: Path) -> Path:
    return fake_videos.ucf101(tmp_path / "ucf", ("Archery",), 2, 12)


def without_lists(tmp_path: Path) -> Path:
    shutil.rmtree(ucf(tmp_path) / "ucfTrainTestlist")
    return tmp_path / "ucf"


def videos(tmp_path: Path) -> Path:
    return write_xvid(tmp_path / "videos" / "v.avi", 12).parent


def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text("see the other disk")
    return tmp_path


def loose_class(tmp_path: Path) -> Path:
    root = ucf(tmp_path)
    shutil.move(root / "UCF-101" / "Archery", root / "UCF-101" / "Arrows")
    return root


# wrong calls: name, the call, the error, a pattern of its message
CALLS: list[tuple[str, Callable[[Path], object], type[Exception], str]] = [
    ("no folder", lambda t: VideoFolder(t / "no", **CLIP), FileNotFoundError, "no does not exist; set the path"),
    ("a file", lambda t: VideoFolder(videos(t) / "v.avi", **CLIP), FileNotFoundError, "is a file; use the folder"),
    ("empty folder", lambda t: VideoFolder(t, **CLIP), ValueError, "no video found, expected .*<class>/<video>.mp4"),
    ("only text", lambda t: VideoFolder(notes(t), **CLIP), ValueError, "no usable video in .* no video found"),
    ("all short", lambda t: VideoFolder(videos(t)), ValueError, "1 x too short: 12 frames, but a clip of 16 at"),
    ("size 0", lambda t: VideoFolder(videos(t), size=0), ValueError, "size is 0; it must be at least 1"),
    ("flat size", lambda t: VideoFolder(videos(t), size=(0, 8)), ValueError, "size is 0; it must be at least 1"),
    ("no frames", lambda t: VideoFolder(videos(t), num_frames=0), ValueError, "num_frames is 0; it must be"),
    ("no interval", lambda t: VideoFolder(videos(t), interval=0), ValueError, "interval is 0; it must be"),
    ("all held out", lambda t: VideoFolder(videos(t), holdout=1.0), ValueError, r"holdout is 1.0; it must be"),
    ("typed split", lambda t: VideoFolder(videos(t), split="tran"), ValueError, 'split is "tran"; it must be one of'),
    ("no test", lambda t: VideoFolder(videos(t), split="test", **CLIP), FileNotFoundError, 'has no "test" split'),
    ("sky layout", lambda t: SkyTimelapseVideos(videos(t), split="train"), FileNotFoundError, "expected .*sky_train"),
    ("taichi layout", lambda t: TaichiVideos(videos(t), split="test"), FileNotFoundError, "expected .*/train/<video>"),
    ("no lists", lambda t: UCF101Videos(without_lists(t), split="test"), FileNotFoundError, "testlist01.txt beside it"),
    ("fold 4", lambda t: UCF101Videos(ucf(t), fold=4), ValueError, "fold is 4; it must be 1, 2 or 3"),
    (
        "other class",
        lambda t: UCF101Videos(loose_class(t), **CLIP),
        ValueError,
        "no usable video .*not in a class folder",
    ),
    (
        "no classes",
        lambda t: VideoFolder(videos(t), **CLIP).weights("classes"),
        ValueError,
        "the videos have no classes",
    ),
    ("sampling", lambda t: VideoFolder(videos(t), **CLIP).weights("frames"), ValueError, 'is "frames"; it must be'),
    ("long read", lambda t: VideoFolder(videos(t), **CLIP).read(0, 9, 3, None), ValueError, "needs 25 frames, but the"),
    (
        "past the end",
        lambda t: VideoFolder(videos(t), **CLIP).frames(0, 9, 4),
        ValueError,
        "9 to 12 are outside of .* 12 fr",
    ),
    ("unknown set", lambda t: check("ucf", t), ValueError, "unknown data set ucf; use ucf101, .*, or the import path"),
    (
        "unknown module",
        lambda t: check("no.such.Videos", t),
        ValueError,
        "the data set no.such.Videos cannot be imported .ModuleNotFoundError: No module named 'no'",
    ),
    ("no data set", lambda t: check("latte_pl.data.check.Report", t), ValueError, "unknown data set latte_pl.data.ch"),
    ("check nothing", lambda t: check("ucf101", t / "no"), FileNotFoundError, "no does not exist"),
]


@pytest.mark.parametrize(("name", "call", "error", "pattern"), CALLS, ids=[row[0] for row in CALLS])
def test_wrong_call_raises_one_line(
    name: str, call: Callable[[Path], object], error: type[Exception], pattern: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=pattern) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_video_deleted_during_training_is_named(tmp_path: Path) -> None:
    dataset = VideoFolder(videos(tmp_path), **CLIP)
    (tmp_path / "videos" / "v.avi").unlink()
    with pytest.raises(ValueError, match=r"v\.avi can no longer be decoded \(No such"):
        dataset.read(0, 4, 3, None)
