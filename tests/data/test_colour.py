"""Every pixel format and colour matrix is converted to RGB, and indexing finds out what reading cannot convert."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.format import names as pixel_formats
from fake_videos import picture, write_video

from latte_pl.data.check import check
from latte_pl.data.colour import RGBConverter
from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.folder import VideoFolder

SUPPORTED = (0, 1, 2, 4, 5, 6, 7, 9)
UNKNOWN = (8, *range(10, 18))
HARDWARE = {"amf", "cuda", "d3d11", "d3d11va_vld", "d3d12", "drm_prime", "dxva2_vld", "mediacodec", "mmal", "ohcodec"}
HARDWARE |= {"opencl", "qsv", "vaapi", "vdpau", "videotoolbox_vld", "vulkan"}
UNSUPPORTED = ("gray32", "gbrap32", "rgb96", "rgba128", "rgbaf32", "yaf32")
UNSUPPORTED += ("v30xbe", "x2bgr10be", "x2rgb10be", "xv30be", "y210be", "y212be", "y216be")


def tagged(source: Path, path: Path, matrix: int) -> Path:
    """Copy an H.264 file and change the colour matrix that it states."""
    with av.open(str(source)) as original, av.open(str(path), "w") as output:
        stream = original.streams.video[0]
        change = BitStreamFilterContext(f"h264_metadata=matrix_coefficients={matrix}", stream)
        copy = output.add_stream_from_template(stream)
        for packet in original.demux(stream):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = copy
                output.mux(changed)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("small") / "small.h264", 12, codec="libx264")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("large") / "large.h264", 2, codec="libx264", size=(720, 1280))


@pytest.mark.parametrize("matrix", UNKNOWN)
def test_small_video_of_an_unknown_matrix_is_read_as_bt601(matrix: int, small: Path, tmp_path: Path) -> None:
    path, known = tagged(small, tmp_path / "a.h264", matrix), tagged(small, tmp_path / "b.h264", 6)
    index = index_video(path)
    assert np.array_equal(read_video(path, index, 3, 4, 2), read_video(known, index_video(known), 3, 4, 2))
    (note,) = index.notes
    assert "BT.601 is assumed" in note


def test_large_video_of_an_unknown_matrix_is_read_as_bt709(large: Path, tmp_path: Path) -> None:
    path, known = tagged(large, tmp_path / "a.h264", 14), tagged(large, tmp_path / "b.h264", 1)
    other = tagged(large, tmp_path / "c.h264", 6)
    clips = [read_video(p, index_video(p), 0, 2) for p in (path, known, other)]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    assert index_video(path).notes == ("the colour matrix ICtCp is not supported, BT.709 is assumed",)


@pytest.mark.parametrize("matrix", SUPPORTED)
def test_known_matrices_are_converted_by_ffmpeg(matrix: int, small: Path, tmp_path: Path) -> None:
    path = tagged(small, tmp_path / "a.h264", matrix)
    with av.open(str(path)) as container:
        truth = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    index = index_video(path)
    assert index.notes == ()
    assert np.array_equal(read_video(path, index, 0, 12), np.stack(truth))


@pytest.mark.parametrize("name", sorted(pixel_formats - HARDWARE))
def test_every_pixel_format_is_converted_or_refused(name: str) -> None:
    for matrix in (0, 1, 6, 8, 9, 14):
        frame = av.VideoFrame(32, 16, name)
        frame.colorspace = matrix
        if name in ("bgr4", "rgb4") or name.startswith(UNSUPPORTED):
            with pytest.raises(ValueError, match=f"^the pixel format {name} is not supported$"):
                RGBConverter()(frame, 32, 16)
            continue
        assert RGBConverter()(frame, 32, 16).shape == (16, 32, 3)
        assert frame.colorspace == matrix, "the frame is not changed"


def test_training_and_check_note_the_matrix_once(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        tagged(small, tmp_path / f"{name}.h264", 8)
    tagged(small, tmp_path / "c.h264", 6)
    for _ in range(2):  # the second time from the index file
        caplog.clear()
        dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=1)
        assert len(dataset) == 3
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (
            f"{tmp_path}: the colour matrix YCgCo is not supported, BT.601 is assumed: 2 of 3 videos (a.h264, b.h264)"
        )
    report = check("folder", tmp_path, 4, 1)
    assert report.ok
    assert "YCgCo is not supported, BT.601 is assumed: 2 of 3 videos (a.h264, b.h264)" in str(report)


def test_format_that_cannot_be_converted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 9, codec="libx264")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError("the pixel format test is not supported")

    monkeypatch.setattr(RGBConverter, "__call__", refuse)
    with pytest.raises(ValueError, match="the pixel format test is not supported"):
        index_video(path)


def test_formats_that_change_within_a_video_are_all_converted(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{n}.h264", 6, codec="libx264", pixel_format=name, seed=n, size=size)
        for n, (name, size) in enumerate((("yuv420p", (48, 64)), ("yuv422p10le", (48, 64)), ("yuv444p", (32, 48))))
    ]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    index = index_video(path)
    assert index.num_frames == 18
    clip = read_video(path, index, 0, 18).astype(int)
    for number in range(12):
        assert np.abs(clip[number] - picture(number % 6, seed=number // 6)).mean() < 12
