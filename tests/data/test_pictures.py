"""Folders of pictures: animated ones are videos, and pictures of any bit depth keep their values."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_videos import picture, write_frames, write_video
from PIL import Image

from latte_pl.data.animation import index_animation, is_animated
from latte_pl.data.check import check
from latte_pl.data.contents import Animation
from latte_pl.data.folder import VideoFolder
from latte_pl.data.frames import index_frames, read_frames
from latte_pl.data.index import open_index, scan

FRAMES = 12
LOSSLESS = {"webp": {"lossless": True}, "png": {}, "apng": {}, "tif": {}, "gif": {}}


def write_animation(path: Path, num_frames: int = FRAMES, seed: int = 0, size: tuple[int, int] = (48, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(picture(number, size, seed)) for number in range(num_frames)]
    format = {"apng": "PNG", "tif": "TIFF"}.get(path.suffix[1:])
    options = {"duration": 40} if path.suffix != ".tif" else {}
    images[0].save(path, format, save_all=True, append_images=images[1:], **options, **LOSSLESS[path.suffix[1:]])
    return path


@pytest.mark.parametrize("suffix", ["webp", "png", "apng", "tif"])
def test_animated_pictures_of_a_folder_are_videos(suffix: str, tmp_path: Path) -> None:
    for number in range(3):
        write_animation(tmp_path / f"clip{number}.{suffix}", seed=number)
    for _ in range(2):  # the second time from the index file
        dataset = VideoFolder(tmp_path, (48, 64), num_frames=4, interval=3)
        assert [dataset.path(n) for n in range(len(dataset))] == [f"clip{n}.{suffix}" for n in range(3)]
        assert [dataset.length(n) for n in range(3)] == [FRAMES] * 3
    for seed, start, count, interval in ((0, 0, 4, 3), (2, 5, 3, 2), (1, 11, 1, 1)):
        wanted = np.stack([picture(start + n * interval, seed=seed) for n in range(count)])
        clip = dataset.frames(seed, start, count, interval)
        assert torch.equal(clip, torch.from_numpy(wanted).permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match=rf"frames 9 to 12 are outside of .*clip1\.{suffix}, which has 12 frames"):
        dataset.frames(1, 9, 4)
    assert check("folder", tmp_path, 4, 3).ok


def test_animated_pictures_may_be_in_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_animation(tmp_path / name / "a.webp")
    dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=1)
    assert dataset.class_names == ["cat", "dog"]
    assert len(dataset) == 2


def test_still_pictures_of_the_same_formats_are_frames(tmp_path: Path) -> None:
    for suffix in ("webp", "png", "tif", "gif"):
        write_frames(tmp_path / suffix, 12, "{}." + suffix)
    dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=3)
    assert sorted(dataset.path(n) for n in range(len(dataset))) == ["gif", "png", "tif", "webp"]
    assert all(dataset.length(n) == 12 for n in range(4))


def test_animated_gifs_are_still_read_as_videos(tmp_path: Path) -> None:
    for number in range(2):
        write_animation(tmp_path / f"{number}.gif")
    dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=3)
    assert [dataset.path(n) for n in range(2)] == ["0.gif", "1.gif"]


def test_animated_picture_among_frames_is_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "v", 12, "{:02}.png")
    write_animation(tmp_path / "v" / "07.png")
    write_frames(tmp_path / "w", 12)
    ((path, reason),) = VideoFolder(tmp_path, 16, num_frames=4, interval=3).skipped
    assert (path, reason) == ("v", "07.png is animated, unlike other images of the folder")


def test_pictures_beside_videos_are_ignored(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 12, codec="libx264")
    write_animation(tmp_path / "preview.webp")
    assert [video.path for video in scan(tmp_path)] == ["a.mp4"]


def test_damaged_animation_is_skipped_and_named(tmp_path: Path) -> None:
    write_animation(tmp_path / "a.webp")
    path = write_animation(tmp_path / "b.webp", seed=1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=1)
    assert len(dataset) == 1
    ((name, reason),) = dataset.skipped
    assert name == "b.webp"
    assert "\n" not in reason


def test_pages_of_different_sizes_are_no_video(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(0, size)) for size in ((48, 64), (24, 32))]
    pages[0].save(tmp_path / "0.tif", save_all=True, append_images=pages[1:])
    assert not is_animated(tmp_path / "0.tif")


def test_first_broken_picture_does_not_hide_animations(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(b"")
    write_animation(tmp_path / "b.webp")
    assert [video.path for video in scan(tmp_path)] == ["a.webp", "b.webp"]
    first, second = open_index(tmp_path, scan(tmp_path))
    assert first.problem == "zero bytes"
    assert isinstance(second.index, Animation)


def test_transparent_animation_keeps_earlier_pictures_where_the_next_is_transparent(tmp_path: Path) -> None:
    first = Image.new("RGBA", (64, 48), (200, 10, 10, 255))
    second = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    second.paste((10, 200, 10, 255), (0, 0, 16, 48))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second, first], duration=40, blend=1)
    VideoFolder(tmp_path, (48, 64), num_frames=3, interval=1).frames(0, 0, 3)
    frame = VideoFolder(tmp_path, (48, 64), num_frames=3, interval=1).frames(0, 1, 1)[0]
    assert frame[:, 20, 8].tolist() == [10, 200, 10]
    assert frame[:, 20, 40].tolist() == [200, 10, 10]


def test_animation_is_turned_upright(tmp_path: Path) -> None:
    images = [Image.fromarray(picture(number)) for number in range(3)]
    exif = images[0].getexif()
    exif[0x0112] = 6
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True, exif=exif)
    index = index_animation(tmp_path / "a.webp")
    assert (index.height, index.width) == (64, 48)
    frame = VideoFolder(tmp_path, (64, 48), num_frames=3, interval=1).frames(0, 1, 1)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(frame, np.rot90(picture(1), 3))


GREY = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
RGB = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)


def write_png(path: Path, depth: int, kind: int, pixels: np.ndarray, palette: bytes = b"") -> None:
    """Write a PNG of any bit depth and colour type; Pillow cannot write all of them."""
    height, width = pixels.shape[:2]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        shifted = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in shifted]
    body = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    body += [(b"PLTE", palette)] if palette else []
    body += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in body)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def write_pgm(path: Path, top: int) -> None:
    values = (GREY.astype(np.int64) * top // 65535).astype(">u2")
    path.write_bytes(b"P5 16 16 %d\n" % top + values.tobytes())


ALPHA = np.full((16, 16, 1), 65535, np.uint16)
BITS = np.indices((16, 16)).sum(0)
DEPTHS = {
    "grey_16.png": (lambda p: write_png(p, 16, 0, GREY), GREY >> 8),
    "rgb_16.png": (lambda p: write_png(p, 16, 2, RGB), RGB >> 8),
    "grey_alpha_16.png": (lambda p: write_png(p, 16, 4, np.concatenate([GREY[..., None], ALPHA], -1)), GREY >> 8),
    "rgb_alpha_16.png": (lambda p: write_png(p, 16, 6, np.concatenate([RGB, ALPHA], -1)), RGB >> 8),
    "grey_8.png": (lambda p: write_png(p, 8, 0, GREY >> 8), GREY >> 8),
    "grey_4.png": (lambda p: write_png(p, 4, 0, BITS % 16), BITS % 16 * 17),
    "grey_2.png": (lambda p: write_png(p, 2, 0, BITS % 4), BITS % 4 * 85),
    "grey_1.png": (lambda p: write_png(p, 1, 0, BITS % 2), BITS % 2 * 255),
    "palette_4.png": (
        lambda p: write_png(p, 4, 3, BITS % 3, bytes((9, 8, 7, 90, 80, 70, 200, 210, 220))),
        np.array([[9, 8, 7], [90, 80, 70], [200, 210, 220]])[BITS % 3],
    ),
    "grey_16.tif": (lambda p: Image.fromarray(GREY).save(p), GREY >> 8),
    "grey_16.pgm": (lambda p: write_pgm(p, 65535), GREY >> 8),
    "grey_12.pgm": (lambda p: write_pgm(p, 4095), (GREY.astype(int) * 4095 // 65535) * 255 // 4095),
    "grey_16.jp2": (lambda p: Image.fromarray(GREY).save(p), GREY >> 8),
    "cmyk.jpg": (
        lambda p: Image.fromarray((RGB >> 8).astype(np.uint8)).convert("CMYK").save(p, quality=100, subsampling=0),
        RGB >> 8,
    ),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_pictures_of_any_bit_depth_keep_their_values(name: str, tmp_path: Path) -> None:
    write, wanted = DEPTHS[name]
    write(tmp_path / name)
    for thorough in (False, True):
        assert index_frames(tmp_path, [name], thorough).num_frames == 1
    (frame,) = read_frames(tmp_path, [name], (16, 16))
    wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, -1)
    assert np.abs(frame.astype(int) - wanted).max() <= (4 if name.endswith("jpg") else 1 if "12" in name else 0)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_without_a_defined_white_are_refused(kind: type, tmp_path: Path) -> None:
    Image.fromarray((GREY / 65535).astype(kind)).save(tmp_path / "0.tif")
    with pytest.raises(ValueError, match=r"unreadable image 0\.tif \(32-bit values have no defined white"):
        index_frames(tmp_path, ["0.tif"])
