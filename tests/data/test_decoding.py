import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from fake_videos import picture, real_clips, write_video, write_xvid

from latte_pl.data import decoding
from latte_pl.data.decoding import index_video, read_video

OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0:log-level=none"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0:log-level=none"}
UNEVEN = np.cumsum(np.random.default_rng(0).integers(5, 200, 36)).tolist()


def sequential(path: Path) -> np.ndarray:
    """Decode a whole file with PyAV alone."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def without_cues(path: Path) -> Path:
    """Write a Matroska file through a pipe, so that it has no index."""

    class Pipe(io.RawIOBase):
        data = bytearray()

        def writable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return False

        def write(self, piece: bytes) -> int:
            self.data += bytes(piece)
            return len(piece)

    pipe = Pipe()
    write_video(path, codec="libx264", b_frames=2, container=pipe, container_format="matroska")
    path.write_bytes(pipe.data)
    return path


def edited_avi(path: Path, edit: Callable[[bytearray, int, int], None]) -> Path:
    """Write an AVI and change its index: ``edit(data, offset of the first entry, number of entries)``."""
    data = bytearray(write_xvid(path).read_bytes())
    chunk = data.rfind(b"idx1")
    edit(data, chunk + 8, struct.unpack_from("<I", data, chunk + 4)[0] // 16)
    path.write_bytes(data)
    return path


def drop_index(data: bytearray, first: int, count: int) -> None:
    data[first - 8 : first - 4] = b"JUNK"


def all_keyframes(data: bytearray, first: int, count: int) -> None:
    for entry in range(count):
        struct.pack_into("<I", data, first + 16 * entry + 4, 0x10)


def wrong_offsets(data: bytearray, first: int, count: int) -> None:
    for entry in range(count // 2, count):
        place = first + 16 * entry + 8
        struct.pack_into("<I", data, place, struct.unpack_from("<I", data, place)[0] + 3)


KINDS: dict[str, Callable[[Path], Path]] = {
    "xvid.avi": write_xvid,
    "xvid_b_frames.avi": lambda p: write_xvid(p, b_frames=2),
    "h264_b_frames.mp4": lambda p: write_video(p, codec="libx264", b_frames=2),
    "h264_b_frames.avi": lambda p: write_video(p, codec="libx264", b_frames=2),
    "long_gop.mp4": lambda p: write_video(
        p, codec="libx264", b_frames=3, gop=250, options={"x264-params": "scenecut=0"}
    ),
    "open_gop.mp4": lambda p: write_video(p, codec="libx264", options=OPEN_GOP),
    "open_gop.mkv": lambda p: write_video(p, codec="libx264", options=OPEN_GOP),
    "intra_refresh.mp4": lambda p: write_video(p, codec="libx264", options=REFRESH),
    "uneven_times.mp4": lambda p: write_video(p, codec="libx264", b_frames=2, times=UNEVEN),
    "uneven_times.mkv": lambda p: write_video(p, codec="libx264", b_frames=2, times=UNEVEN),
    "no_cues.mkv": without_cues,
    "no_index.avi": lambda p: edited_avi(p, drop_index),
    "all_called_keyframes.avi": lambda p: edited_avi(p, all_keyframes),
    "wrong_offsets.avi": lambda p: edited_avi(p, wrong_offsets),
    "mpeg2.mpg": lambda p: write_video(p, codec="mpeg2video", b_frames=2),
    "mpeg2.ts": lambda p: write_video(p, codec="mpeg2video", b_frames=2),
    "mpeg2_bare.m2v": lambda p: write_video(p, codec="mpeg2video", b_frames=2),
    "vp9.webm": lambda p: write_video(p, codec="libvpx-vp9"),
    "wmv2.wmv": lambda p: write_video(p, codec="wmv2"),
    "mjpeg.avi": lambda p: write_video(p, codec="mjpeg", pixel_format="yuvj420p"),
    "ffv1.mkv": lambda p: write_video(p, codec="ffv1", gop=1),
    "animation.gif": lambda p: write_video(p, codec="gif", pixel_format="rgb8"),
    "odd_size.avi": lambda p: write_xvid(p, size=(46, 62)),
}
SEQUENTIAL = {"long_gop.mp4", "animation.gif"}  # the only ones without entry points


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.mark.parametrize("kind", KINDS)
def test_every_window_equals_a_sequential_decode(kind: str, folder: Path) -> None:
    path = KINDS[kind](folder / kind)
    truth = sequential(path)
    index = index_video(path)
    assert index.num_frames == len(truth) == 36
    assert (index.height, index.width) == truth.shape[1:3]
    assert len({frame.tobytes() for frame in truth}) == 36, "equal frames would hide an error"
    for start, (frames, interval) in itertools.product(range(36), ((2, 1), (4, 3), (3, 7))):
        stop = start + (frames - 1) * interval + 1
        if stop <= 36:
            clip = read_video(path, index, start, frames, interval)
            assert np.array_equal(clip, truth[start:stop:interval]), (start, frames, interval)
    assert (not index.entries) == (kind in SEQUENTIAL)


@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.name)
def test_windows_of_real_clips_equal_a_sequential_decode(path: Path) -> None:
    index = index_video(path)
    starts = np.linspace(0, index.num_frames - 8, 6, dtype=int).tolist()
    starts += [e.frame - 1 for e in index.entries[-3:-1]] + [e.frame for e in index.entries[-3:-1]]
    wanted = {start + offset for start in starts for offset in (0, 3, 6)}
    truth = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                truth[number] = frame.to_ndarray(format="rgb24")
    assert index.num_frames == number + 1
    for start in starts:
        clip = read_video(path, index, start, 3, 3)
        assert np.array_equal(clip, np.stack([truth[start + offset] for offset in (0, 3, 6)])), start


def test_real_clips_are_installed() -> None:
    assert {path.suffix for path in real_clips()} >= {".mp4", ".avi", ".mkv", ".webm", ".mpg", ".wmv"}
    assert {"bigbuckbunny.mp4", "bikes.mp4"} <= {path.name for path in real_clips()}


def test_window_decodes_only_its_group_of_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xvid(folder / "cost.avi", num_frames=60, gop=12)
    index = index_video(path)
    assert [entry.frame for entry in index.entries] == [12, 24, 36, 48]
    decoded = 0
    frames = decoding._frames

    def counted(*args: object) -> object:
        nonlocal decoded
        for frame in frames(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr(decoding, "_frames", counted)
    for start in range(60 - 3):
        decoded = 0
        read_video(path, index, start, 2, 3)
        assert decoded == start % 12 + 4


def test_box_is_a_crop_of_the_frame(folder: Path) -> None:
    path = write_xvid(folder / "box.avi")
    index = index_video(path)
    whole = read_video(path, index, 5, 3, 2)
    assert np.array_equal(read_video(path, index, 5, 3, 2, (3, 10, 30, 40)), whole[:, 3:33, 10:50])


def test_frames_are_rotated_upright(folder: Path) -> None:
    path = write_video(folder / "turned.mp4", codec="libx264", rotation=90)
    index = index_video(path)
    assert (index.height, index.width) == (64, 48)
    clip = read_video(path, index, 0, 2).astype(int)
    upright, upside_down = (np.abs(clip[0] - np.rot90(picture(0), turns)).mean() for turns in (1, 3))
    assert upright < 10 < upside_down


@pytest.mark.parametrize(("start", "frames", "interval"), [(0, 37, 1), (-1, 2, 1), (30, 3, 3), (0, 0, 1), (0, 2, 0)])
def test_window_outside_of_the_video_raises(start: int, frames: int, interval: int, folder: Path) -> None:
    path = folder / "outside.avi"
    index = index_video(path if path.exists() else write_xvid(path))
    with pytest.raises(ValueError, match=r"frames .* are outside of .*outside.avi, which has 36 frames"):
        read_video(path, index, start, frames, interval)


def test_file_that_changed_after_indexing_is_named(folder: Path) -> None:
    path = write_xvid(folder / "changed.avi")
    index = index_video(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"changed\.avi"):
        read_video(path, index, 20, 4)


def test_entry_point_that_decodes_differently_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_xvid(folder / "lying.avi", num_frames=60)
    frames = decoding._frames

    def lying(container: object, timestamp: int | None = None) -> object:
        """Return the wrong picture once, five frames after a seek to the second group."""
        for count, frame in enumerate(frames(container, timestamp)):
            if timestamp == 24 and count == 5:
                black = av.VideoFrame(frame.width, frame.height, "yuv420p")
                black.pts = frame.pts
                frame = black
            yield frame

    monkeypatch.setattr(decoding, "_frames", lying)
    entries = index_video(path).entries
    assert [entry.frame for entry in entries] == [12, 24, 36, 48]
    assert next(entry for entry in entries if entry.frame == 24).timestamp == 12, "the correct seek is used"


def test_reading_leaks_neither_memory_nor_files(folder: Path) -> None:
    path = write_xvid(folder / "leak.avi")
    index = index_video(path)

    def resident() -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(fields["VmRSS"].split()[0])

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    for _ in range(50):
        read_video(path, index, 10, 4)
    before, files = resident(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(300):
        read_video(path, index, 10, 4)
    assert resident() - before < 4096  # kB; 300 leaked frames would be 4 MB for the pictures alone
    assert len(list(Path("/proc/self/fd").iterdir())) == files
