"""Headers that count frames which no decoder shows, and files that are truly truncated."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from fake_videos import write_video, write_xvid

from latte_pl.data.decoding import index_video, read_video

LONG_GOP = {"x264-params": "scenecut=0:keyint=250:log-level=none"}
GAPS = [40 * n for n in range(60) if not 20 <= n < 40]  # milliseconds; twenty frames are missing in the middle


def remuxed(source: Path, path: Path, change: Callable[[int, av.Packet], av.Packet | None], **kwargs: object) -> Path:
    """Copy the packets of a video into another file; ``change`` may alter, replace or drop each of them."""
    with av.open(str(source)) as original, av.open(str(path), "w", **kwargs) as output:
        stream = original.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for number, packet in enumerate(original.demux(stream)):
            if packet.size and (changed := change(number, packet)) is not None:
                changed.stream = copy
                output.mux(changed)
    return path


def trimmed(path: Path, hidden: int = 15) -> Path:
    """Cut the first frames off without encoding again: the file keeps them, and its edit list hides them."""
    source = write_video(path.with_name("whole.mp4"), codec="libx264", b_frames=2, gop=250, options=LONG_GOP)

    def earlier(number: int, packet: av.Packet) -> av.Packet:
        step = round(1 / (25 * packet.time_base))
        packet.pts, packet.dts = packet.pts - hidden * step, packet.dts - hidden * step
        return packet

    remuxed(source, path, earlier)
    source.unlink()
    return path


def not_coded(path: Path) -> Path:
    """Write an MPEG-4 video in which every third frame is "not coded", which repeats the frame before."""
    source = write_xvid(path.with_name("source.avi"))

    def change(number: int, packet: av.Packet) -> av.Packet:
        if packet.is_keyframe or number % 3:
            return packet
        bits = "01" + "0" + "1" + f"{number % 25:05b}" + "1" + "0"  # P-VOP, time, vop_coded 0
        bits += "0" + "1" * (-(len(bits) + 1) % 8)
        empty = av.Packet(b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
        empty.pts, empty.dts, empty.duration = packet.pts, packet.dts, packet.duration
        empty.time_base = packet.time_base
        return empty

    remuxed(source, path, change)
    source.unlink()
    return path


def empty_samples(path: Path) -> Path:
    """Write an MP4 whose last ten samples have the size 0."""
    data = bytearray(write_video(path, codec="libx264", b_frames=2).read_bytes())
    table = data.find(b"stsz") + 16
    count = int.from_bytes(data[table - 4 : table], "big")
    data[table + 4 * (count - 10) : table + 4 * count] = bytes(40)
    path.write_bytes(data)
    return path


def invisible_references(path: Path) -> Path:
    """Write VP8 with alternate reference frames: packets that are decoded and not shown."""
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7"}
    return write_video(path, 60, codec="libvpx", gop=60, options=options)


COMPLETE: dict[str, tuple[Callable[[Path], Path], int]] = {
    "trimmed.mp4": (trimmed, 21),
    "trimmed.mov": (trimmed, 21),
    "gaps.avi": (lambda p: write_xvid(p, 40, times=GAPS), 40),
    "gaps_h264.avi": (lambda p: write_video(p, 40, codec="libx264", b_frames=2, times=GAPS), 40),
    "gaps.ivf": (lambda p: write_video(p, 40, codec="libvpx-vp9", times=GAPS), 40),
    "gaps.mp4": (lambda p: write_video(p, 40, codec="libx264", b_frames=2, times=GAPS), 40),
    "not_coded.avi": (not_coded, 27),
    "empty_samples.mp4": (empty_samples, 26),
    "invisible.webm": (invisible_references, 60),
    "invisible.ivf": (invisible_references, 60),
}


@pytest.mark.parametrize("name", COMPLETE)
def test_complete_file_is_used_whatever_its_header_counts(name: str, tmp_path: Path) -> None:
    write, count = COMPLETE[name]
    path = write(tmp_path / name)
    with av.open(str(path)) as container:
        truth = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    index = index_video(path)
    assert index.num_frames == len(truth) == count
    for start in range(0, count - 3, 5):
        assert np.array_equal(read_video(path, index, start, 2, 3), truth[start : start + 4 : 3])


def with_head(path: Path, keep: float) -> Path:
    """Write an MP4 with its header before the pictures, and keep a part of the file."""
    write_video(path, 60, codec="libx264", b_frames=2, container_options={"movflags": "faststart"})
    return cut(path, keep)


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def hollow(path: Path, keep: float = 0.5) -> Path:
    """Replace the end of the pictures by zeros, as in a file whose download stopped after it was allocated."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * keep)
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    return path


def write_head(path: Path, codec: str, **kwargs: object) -> Path:
    return write_video(path, 60, codec=codec, container_options={"movflags": "faststart"}, **kwargs)


INCOMPLETE: dict[str, Callable[[Path], Path]] = {
    "head_first.mp4": lambda p: with_head(p, 0.6),
    "cut.avi": lambda p: cut(write_xvid(p, 60), 0.6),
    "cut_gaps.avi": lambda p: cut(write_xvid(p, 40, times=GAPS), 0.6),
    "cut_gaps_h264.avi": lambda p: cut(write_video(p, 40, codec="libx264", b_frames=2, times=GAPS), 0.5),
    "cut.ivf": lambda p: cut(write_video(p, 60, codec="libvpx-vp9"), 0.6),
    "hollow_h264.mp4": lambda p: hollow(write_head(p, "libx264")),
    "hollow_mpeg2.mp4": lambda p: hollow(write_head(p, "mpeg2video")),
    "hollow_mpeg4.mp4": lambda p: hollow(write_head(p, "mpeg4")),
    "hollow_vp9.mp4": lambda p: hollow(write_head(p, "libvpx-vp9")),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_file_is_refused(name: str, tmp_path: Path) -> None:
    path = INCOMPLETE[name](tmp_path / name)
    with pytest.raises(ValueError, match=r"truncated: |damaged: "):
        index_video(path)


def test_black_uncompressed_video_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = tmp_path / "black.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr24"
        for _ in range(9):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="bgr24")))
        output.mux(stream.encode(None))
    assert index_video(path).num_frames == 9


def test_avi_of_unknown_length_is_compared_with_its_declared_frames(tmp_path: Path) -> None:
    path = write_xvid(tmp_path / "live.avi", 60)
    whole = tmp_path / "whole.avi"
    data = bytearray(path.read_bytes())
    data[4:8] = bytes(4)  # a recorder that was never closed
    whole.write_bytes(data)
    assert index_video(whole).num_frames == 60
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"truncated: .* of 60 declared frames"):
        index_video(cut(path, 0.6))
