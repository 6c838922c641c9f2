"""Material that needs a decision: pixels that are not square, interlaced and HDR videos, and pictures of 8K."""

import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import fake_videos
import numpy as np
import pytest
import torch
from fake_videos import picture, write_video, write_xvid

from latte_pl.data import transforms
from latte_pl.data.check import check
from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.folder import VideoFolder
from latte_pl.data.transforms import centre_box, resized, to_clip
from latte_pl.data.ucf101 import UCF101Videos

CLIP = {"num_frames": 4, "interval": 1}
WIDE = Fraction(2, 1)


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "mpg"])
def test_pixels_become_square(suffix: str, tmp_path: Path) -> None:
    codec = {"mp4": "libx264", "avi": "mpeg4", "mkv": "libx264", "mpg": "mpeg2video"}[suffix]
    shape = Fraction(4, 3) if suffix == "mpg" else WIDE  # MPEG-2 stores the shape of the picture, 16:9
    path = write_video(tmp_path / f"a.{suffix}", 9, codec=codec, pixel_aspect=shape)
    index = index_video(path)
    assert index.pixel_aspect == pytest.approx(float(shape), rel=0.01)
    assert (index.height, index.width) == (48, 64)
    clip = VideoFolder(tmp_path, 32, **CLIP).frames(0, 0, 4)
    width = round(48 / index.pixel_aspect)  # of the square crop in stored pixels
    left = (64 - width) // 2
    assert torch.equal(clip, to_clip(read_video(path, index, 0, 4)[:, :, left : left + width], (32, 32)))


def test_square_pixels_are_those_of_the_ffmpeg_filters(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4, codec="libx264", pixel_aspect=WIDE, options={"crf": "1"})
    graph = av.filter.Graph()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        nodes = [graph.add_buffer(template=stream), graph.add("scale", "128:48"), graph.add("setsar", "1")]
        nodes += [graph.add("crop", "48:48"), graph.add("scale", "32:32"), graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        graph.push(next(container.decode(stream)))
        expected = graph.pull().to_ndarray(format="rgb24").astype(int)
    clip = VideoFolder(tmp_path, 32, **CLIP).frames(0, 0, 1)[0].permute(1, 2, 0).numpy()
    assert np.abs(clip - expected).mean() < 6
    assert np.abs(clip[:, ::-1] - expected).mean() > 30


def test_turned_pixels_are_turned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 9, codec="libx264", pixel_aspect=WIDE, rotation=90)
    index = index_video(path)
    assert (index.height, index.width, index.pixel_aspect) == (64, 48, 0.5)


def test_ucf101_is_used_as_stored(tmp_path: Path) -> None:
    """Published results on UCF101 ignore the aspect ratio of the pixels."""
    write_xvid(tmp_path / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi", 9, pixel_aspect=WIDE)
    stored, square = UCF101Videos(tmp_path, size=32, **CLIP), VideoFolder(tmp_path, 32, **CLIP)
    whole = read_video(tmp_path / stored.path(0), index_video(tmp_path / stored.path(0)), 0, 4)
    assert torch.equal(stored.frames(0, 0, 4), to_clip(whole[:, :, 8:56], (32, 32)))
    assert torch.equal(square.frames(0, 0, 4), to_clip(whole[:, :, 20:44], (32, 32)))


def test_square_pixels_change_the_fingerprint(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 9, codec="libx264", pixel_aspect=WIDE)

    class AsStored(VideoFolder):
        square_pixels = False

    assert VideoFolder(tmp_path, 32, **CLIP).fingerprint() != AsStored(tmp_path, 32, **CLIP).fingerprint()


@pytest.mark.parametrize("shape", [Fraction(1), Fraction(1, 5000), Fraction(255, 1)])
def test_square_and_senseless_pixels_are_used_as_stored(shape: Fraction, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 9, codec="libx264", pixel_aspect=shape)
    assert index_video(path).pixel_aspect == 1
    assert index_video(path).notes == ()


@pytest.mark.parametrize("size", [(256, 256), (17, 40), (5, 3)])
@pytest.mark.parametrize("shape", [(240, 320), (48, 64), (7, 300)])
def test_box_of_square_pixels_does_not_depend_on_the_aspect_argument(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    assert centre_box(*shape, size) == centre_box(*shape, size, 1.0)


def test_material_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / "aspect.mp4", 9, codec="libx264", pixel_aspect=Fraction(16, 11))
    interlaced = {"x264-params": "tff=1:log-level=none"}
    write_video(tmp_path / "fields.mp4", 9, codec="libx264", options=interlaced, size=(64, 64))
    for name, transfer in (("pq", "smpte2084"), ("hlg", "arib-std-b67")):
        options = {"x264-params": f"transfer={transfer}:colorprim=bt2020:colormatrix=bt2020nc:log-level=none"}
        write_video(tmp_path / f"{name}.mp4", 9, codec="libx264", options=options, pixel_format="yuv420p10le")
    VideoFolder(tmp_path, 16, **CLIP)
    text = str(check("folder", tmp_path, 4, 1))
    for line in (
        "the pixels have the aspect ratio 16:11: 1 of 4 videos (aspect.mp4)",
        "the video is interlaced, its fields are not separated: 1 of 4 videos (fields.mp4)",
        "the video is HDR (PQ), its brightness is not mapped: 1 of 4 videos (pq.mp4)",
        "the video is HDR (HLG), its brightness is not mapped: 1 of 4 videos (hlg.mp4)",
    ):
        assert line in text
        assert line in caplog.text
    assert "every video can be used" in text


def test_videos_in_several_formats_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("run/a.avi", "run/a.mkv", "run/b.avi", "jump/a.avi", "jump/c.d", "jump/c.avi"):
        if path == "jump/c.d":
            fake_videos.write_frames(tmp_path / path, 9, "{}.png")  # its name ends in no format
        else:
            write_xvid(tmp_path / path, 9)
    assert len(VideoFolder(tmp_path, 16, **CLIP)) == 6
    line = "same name in several formats, each is used: 2 of 6 videos (run/a.avi, run/a.mkv)"
    assert line in str(check("folder", tmp_path, 4, 1))
    assert line in caplog.text


@pytest.mark.parametrize("group_bytes", [1, 10_000, 1 << 30])
def test_pictures_in_groups_are_resized_to_the_same_values(group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "GROUP_BYTES", group_bytes)
    pictures = [picture(number, (48, 48) if number < 5 else (30, 30)) for number in range(9)]
    for size in ((16, 16), (48, 48), (64, 64)):
        assert torch.equal(resized(iter(pictures), size), to_clip(pictures, size))


def test_large_pictures_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "GROUP_BYTES", 1 << 20)
    frame = np.zeros((1000, 1000, 3), np.uint8)  # 3 MB
    tracemalloc.start()
    clip = resized((frame.copy() for _ in range(40)), (16, 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.shape == (40, 3, 16, 16)
    assert peak < 20e6


def test_frames_that_are_written_keep_the_size_of_the_first(tmp_path: Path) -> None:
    fake_videos.write_frames(tmp_path / "v", 9, "{}.png")
    frame = VideoFolder(tmp_path, (48, 64), **CLIP).frames(0, 3, 1)[0].permute(1, 2, 0)
    assert torch.equal(frame, torch.from_numpy(picture(3)))
