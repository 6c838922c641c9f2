"""Situations from public bug reports of video readers and training code, apart from those that have a file of tests."""

import os
import shutil
import socket
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fake_videos import picture, write_frames, write_video, write_xvid
from PIL import Image
from test_decoding import sequential
from test_headers import GAPS, remuxed

from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import scan

CLIP = {"size": 16, "num_frames": 4, "interval": 1}
BOTH = pytest.mark.parametrize("fast", [False, True], ids=["exact", "fast"])


def check_windows(path: Path, fast: bool, count: int) -> None:
    truth, index = sequential(path), index_video(path, fast)
    assert index.num_frames == len(truth) == count
    for start in range(0, count - 3, 3):
        assert np.array_equal(read_video(path, index, start, 2, 3), truth[start : start + 4 : 3]), start


@pytest.mark.parametrize("name", ["12:30:15.mp4", "data:1.mp4", "concat:a.mp4", "frame%03d.mp4", "#1 & a;(b)?c=d.mp4"])
def test_file_names_are_not_taken_for_protocols(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg opens "12:30.mp4" with a protocol called 12 unless the path is absolute."""
    write_video(tmp_path / "a.mp4", 12, codec="libx264").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    dataset = VideoFolder(".", **CLIP)
    assert dataset.path(0) == name
    assert dataset.read(0, 4, 1, None).shape == (4, 3, 16, 16)


@BOTH
def test_palette_survives_a_seek(fast: bool, tmp_path: Path) -> None:
    """PyAV 1987: after a seek, frames of uncompressed AVIs with a palette are black."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "pal8"
        for number in range(36):
            image = Image.fromarray(picture(number)).quantize(200)
            palette = np.zeros((256, 4), np.uint8)
            colours = np.array(image.getpalette()).reshape(-1, 3)
            palette[: len(colours), 1:], palette[:, 0] = colours, 255
            frame = av.VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    check_windows(path, fast, 36)


@BOTH
def test_recording_that_starts_between_keyframes(fast: bool, tmp_path: Path) -> None:
    """PyAV 369 and others: the frames before the first keyframe cannot be decoded."""
    path = write_video(tmp_path / "a.ts", 36, codec="mpeg2video", b_frames=2)
    packets = [path.read_bytes()[place : place + 188] for place in range(0, path.stat().st_size, 188)]
    path.write_bytes(b"".join(packets[:3] + packets[len(packets) // 4 :]))
    count = len(sequential(path))
    assert count < 30
    check_windows(path, fast, count)


@pytest.mark.parametrize(
    ("times", "fast"),
    [
        ([40 * (n // 2) for n in range(36)], False),
        ([40 * (n // 2) for n in range(36)], True),
        ([40 * n + 80 * (n % 2) for n in range(36)], False),
    ],
)
def test_times_that_repeat_or_run_backwards(times: list[int], fast: bool, tmp_path: Path) -> None:
    """Decord 54: wrong frames of videos whose times are neither distinct nor in order."""
    source = write_video(tmp_path / "source.mp4", 36, codec="libx264", gop=9)

    def change(number: int, packet: av.Packet) -> av.Packet:
        packet.pts, packet.dts, packet.time_base = times[number], 40 * number - 2000, Fraction(1, 1000)
        return packet

    check_windows(remuxed(source, tmp_path / "a.mkv", change), fast, 36)


@BOTH
def test_depth_in_16_bits_keeps_its_upper_byte(fast: bool, tmp_path: Path) -> None:
    """torchcodec 713: 16-bit grey FFV1 in Matroska, as robot data sets store depth."""
    path = tmp_path / "depth.mkv"
    depth = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "gray16le"
        for number in range(9):
            frame = av.VideoFrame.from_ndarray(np.roll(depth, number, 0), format="gray16le")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    clip = read_video(path, index_video(path, fast), 0, 9)
    for number in range(9):
        assert np.abs(clip[number].astype(int) - (np.roll(depth, number, 0)[..., None] >> 8)).max() <= 1


@BOTH
def test_cover_picture_and_second_stream_are_not_the_video(fast: bool, tmp_path: Path) -> None:
    """Readers that take the first stream show the cover of a download."""
    video = write_video(tmp_path / "video.mp4", 12, codec="libx264")
    cover = write_video(tmp_path / "cover.mkv", 1, codec="mjpeg", pixel_format="yuvj420p", size=(200, 200))
    path = tmp_path / "both.mkv"
    with av.open(str(video)) as first, av.open(str(cover)) as second, av.open(str(path), "w") as output:
        streams = [(source, output.add_stream_from_template(source.streams.video[0])) for source in (second, first)]
        for source, stream in streams:
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
    index = index_video(path, fast)
    assert (index.num_frames, index.height, index.width) == (12, 48, 64)
    assert np.array_equal(read_video(path, index, 3, 4), sequential(video)[3:7])


@pytest.mark.parametrize("flags", ["", "+default_base_moof+global_sidx"])
@BOTH
def test_fragmented_mp4(fast: bool, flags: str, tmp_path: Path) -> None:
    """Files of browsers and of streaming services, whose header counts no frames."""
    options = {"movflags": f"frag_keyframe+empty_moov{flags}"}
    path = write_video(tmp_path / "a.mp4", 60, codec="libx264", b_frames=2, container_options=options)
    check_windows(path, fast, 60)


@BOTH
def test_av1_with_short_groups(fast: bool, tmp_path: Path) -> None:
    """Robot data sets store AV1 with a keyframe at every second frame."""
    path = write_video(tmp_path / "a.mp4", 36, codec="libsvtav1", gop=2, size=(64, 64), options={"preset": "10"})
    check_windows(path, fast, 36)


@BOTH
def test_variable_frame_rate(fast: bool, tmp_path: Path) -> None:
    """torchcodec 653: frames are counted, not computed from times."""
    path = write_video(tmp_path / "a.mp4", 40, codec="libx264", b_frames=2, times=GAPS)
    check_windows(path, fast, 40)


def test_resolution_that_changes_is_noted(tmp_path: Path) -> None:
    """Recordings of video calls start small; all frames are scaled to the first."""
    sizes = {"small": (48, 64), "large": (96, 128)}
    parts = [write_video(tmp_path / f"{name}.h264", 6, codec="libx264", size=size) for name, size in sizes.items()]
    joined = tmp_path / "joined" / "a.h264"
    joined.parent.mkdir()
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert index_video(joined).notes == ("the resolution changes, all frames are scaled to 64 x 48 pixels",)
    assert index_video(parts[0]).notes == ()


def test_playlist_named_like_a_video_opens_no_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="not a readable video"):
            index_video(tmp_path / "a.mp4")
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "__MACOSX", ".AppleDouble"])
def test_folders_of_file_systems_are_ignored(folder: str, tmp_path: Path) -> None:
    """Network storage keeps thumbnails and deleted files beside the videos."""
    write_xvid(tmp_path / "cat" / "a.avi", 12)
    write_frames(tmp_path / "cat" / folder / "a.avi", 3, "SYNOPHOTO_THUMB_{}.jpg")
    shutil.copytree(tmp_path / "cat" / folder, tmp_path / folder)
    assert [video.path for video in scan(tmp_path)] == ["cat/a.avi"]
    assert VideoFolder(tmp_path, **CLIP).class_names == ["cat"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 171000000\n"


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    """Data sets that were cloned from a hub without the large files."""
    write_xvid(tmp_path / "a.avi", 12)
    (tmp_path / "b.mp4").write_text(POINTER)
    write_frames(tmp_path / "c", 12, "{}.png")
    (tmp_path / "c" / "3.png").write_text(POINTER)
    skipped = dict(VideoFolder(tmp_path, **CLIP).skipped)
    assert skipped["b.mp4"] == "a Git LFS pointer, not the file; run `git lfs pull`"
    assert skipped["c"] == "unreadable image 3.png (a Git LFS pointer, not the file; run `git lfs pull`)"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_captions_of_windows_editors(encoding: str, tmp_path: Path) -> None:
    write_xvid(tmp_path / "a.avi", 12)
    text = "\ufeff" * encoding.startswith("utf-16-") + "Ein Käfer\r\nläuft"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert VideoFolder(tmp_path, **CLIP, captions=True).caption(0) == "Ein Käfer läuft"


def test_long_names_and_deep_folders(tmp_path: Path) -> None:
    place = tmp_path / "/".join(["d" * 100] * 6)
    path = write_xvid(place / f"{'v' * 200}.avi", 12)
    assert len(os.fspath(path)) > 800
    dataset = VideoFolder(tmp_path, **CLIP)
    assert dataset.read(0, 4, 1, None).shape == (4, 3, 16, 16)
