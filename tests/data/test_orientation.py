"""Stored pictures are shown upright: display matrices of videos and EXIF orientations of images, all eight of each."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from fake_videos import write_video
from PIL import Image, ImageOps

from latte_pl.data.contents import VideoIndex
from latte_pl.data.decoding import index_video, read_video
from latte_pl.data.frames import index_frames, read_frames
from latte_pl.data.index import open_index, scan
from latte_pl.data.orientation import from_matrix, swaps_sides, upright

ONE = 1 << 16
# display matrix (a, b, c, d) of each EXIF orientation: x' = a x + c y and y' = b x + d y
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
HEIGHT, WIDTH = 48, 64


def display_matrix(a: float, b: float, c: float, d: float) -> list[int]:
    return [round(a * ONE), round(b * ONE), 0, round(c * ONE), round(d * ONE), 0, 0, 0, 1 << 30]


def corners(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a picture in which every pixel of the 2 x 3 cells and no two cells are equal."""
    y, x = np.mgrid[:height, :width]
    cell = (2 * y // height) * 3 + 3 * x // width
    return np.stack([40 * cell + 20, 250 - 30 * cell, 255 * (cell == 0)], axis=-1).astype(np.uint8)


def write_matrix(path: Path, matrix: list[int]) -> Path:
    """Write a video whose pixels are exact and whose container stores a display matrix."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        stream.set_display_matrix(matrix)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(corners(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def autorotated(picture: np.ndarray, matrix: list[int]) -> np.ndarray:
    """Apply a display matrix with the filters that the ffmpeg command inserts for it (``-autorotate``)."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if not (np.hypot(a, c) and np.hypot(b, d)):
        return picture
    theta = np.degrees(np.arctan2(b / np.hypot(b, d), a / np.hypot(a, c))) % 360
    chain: list[tuple[str, str]] = []
    if abs(theta - 90) < 1:
        chain = [("transpose", "cclock_flip" if c > 0 else "clock")]
    elif abs(theta - 180) < 1:
        chain = [("hflip", "")] * (a < 0) + [("vflip", "")] * (d < 0)
    elif abs(theta - 270) < 1:
        chain = [("transpose", "clock_flip" if c < 0 else "cclock")]
    elif theta < 1:
        chain = [("vflip", "")] * (d < 0)
    graph = av.filter.Graph()
    height, width = picture.shape[:2]
    nodes = [graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 25))]
    nodes += [graph.add(name, arguments) if arguments else graph.add(name) for name, arguments in chain]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    graph.push(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
    return graph.pull().to_ndarray(format="rgb24")


@pytest.mark.parametrize("orientation", MATRICES)
def test_matrix_moves_every_pixel_to_its_place(orientation: int) -> None:
    picture = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    a, b, c, d = MATRICES[orientation]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.empty(WIDTH * HEIGHT, int).reshape(shown_y.max() - shown_y.min() + 1, -1)
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = picture
    assert np.array_equal(upright(picture, orientation), expected)
    assert swaps_sides(orientation) == (expected.shape != picture.shape)


@pytest.mark.parametrize("orientation", MATRICES)
def test_orientations_are_those_of_exif(orientation: int) -> None:
    image = Image.fromarray(corners())
    image.getexif()[0x0112] = orientation
    assert np.array_equal(upright(corners(), orientation), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("suffix", ["mov", "mp4"])
@pytest.mark.parametrize("orientation", MATRICES)
def test_video_is_shown_as_by_the_ffmpeg_command(orientation: int, suffix: str, tmp_path: Path) -> None:
    matrix = display_matrix(*MATRICES[orientation])
    path = write_matrix(tmp_path / f"video.{suffix}", matrix)
    index = index_video(path)
    assert index.orientation == orientation
    clip = read_video(path, index, 0, 2)
    assert clip.shape[1:3] == (index.height, index.width)
    assert np.array_equal(clip[0], autorotated(corners(), matrix))


@pytest.mark.parametrize("orientation", MATRICES)
def test_orientation_inside_an_h264_stream_is_applied(orientation: int, tmp_path: Path) -> None:
    plain = write_video(tmp_path / "plain.h264", 9, codec="libx264", size=(HEIGHT, WIDTH), options={"crf": "1"})
    # the stream stores a horizontal flip that is followed by a counterclockwise rotation
    flip, degrees = {1: (0, 0), 2: (1, 0), 3: (0, 180), 4: (1, 180), 5: (1, 90), 6: (0, 270), 7: (1, 270), 8: (0, 90)}[
        orientation
    ]
    path = tmp_path / "turned.h264"
    with av.open(str(plain)) as source, path.open("wb") as file:
        stream = source.streams.video[0]
        options = f"rotate={degrees}" + (":flip=horizontal" if flip else "")
        inserted = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{options}", stream)
        for packet in source.demux(stream):
            for changed in inserted.filter(packet if packet.size else None):
                file.write(bytes(changed))
    index = index_video(path)
    assert index.orientation == orientation
    stored = read_video(plain, index_video(plain), 0, 1)[0]
    assert np.array_equal(read_video(path, index, 0, 1)[0], upright(stored, orientation))


@pytest.mark.parametrize(
    ("matrix", "orientation"),
    [
        (display_matrix(0, 0, 0, 0), 1),
        (display_matrix(1, 0, 0, 0), 1),
        (display_matrix(0, 0, 1, 0), 1),
        (display_matrix(1, 1, 1, 1), 1),
        (display_matrix(0.7071, 0.7071, -0.7071, 0.7071), 1),
        (display_matrix(1, 0.5, 0, 1), 1),
        (display_matrix(2, 0, 0, 2), 1),
        (display_matrix(-1.3333, 0, 0, 1), 2),
        (display_matrix(0.00002, 1, -1, 0.00002), 6),
        ([0] * 9, 1),
    ],
)
def test_matrix_that_is_no_orientation_counts_as_none(matrix: list[int], orientation: int) -> None:
    assert from_matrix(np.array(matrix, "<i4").tobytes()) == orientation


def test_short_matrix_counts_as_none() -> None:
    assert from_matrix(b"") == from_matrix(bytes(35)) == 1


def test_video_with_a_zero_matrix_is_shown_as_stored(tmp_path: Path) -> None:
    path = write_matrix(tmp_path / "zero.mov", display_matrix(-1, 0, 0, 1))
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    data[place : place + 32] = bytes(32)
    path.write_bytes(data)
    assert np.array_equal(read_video(path, index_video(path), 0, 1)[0], corners())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", MATRICES)
def test_images_are_shown_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(corners())
    exif = image.getexif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    for number in range(2):
        image.save(tmp_path / f"{number}.{suffix}", exif=exif, **lossless)
    names = [f"{number}.{suffix}" for number in range(2)]
    expected = upright(corners(), orientation)
    for thorough in (False, True):
        index = index_frames(tmp_path, names, thorough)
        assert (index.height, index.width) == expected.shape[:2]
    for frame in read_frames(tmp_path, names, expected.shape[:2]):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_invalid_exif_orientation_counts_as_none(value: int, tmp_path: Path) -> None:
    image = Image.fromarray(corners())
    exif = image.getexif()
    exif[0x0112] = value
    image.save(tmp_path / "0.png", exif=exif)
    assert index_frames(tmp_path, ["0.png"]).height == HEIGHT
    assert np.array_equal(next(read_frames(tmp_path, ["0.png"], (HEIGHT, WIDTH))), corners())


def test_damaged_exif_counts_as_none(tmp_path: Path) -> None:
    image = Image.fromarray(corners())
    image.save(tmp_path / "0.png", exif=b"Exif\x00\x00not a TIFF header")
    assert index_frames(tmp_path, ["0.png"]).height == HEIGHT
    assert np.array_equal(next(read_frames(tmp_path, ["0.png"], (HEIGHT, WIDTH))), corners())


def test_index_stores_the_orientation(tmp_path: Path) -> None:
    write_matrix(tmp_path / "flipped.mov", display_matrix(*MATRICES[7]))
    for _ in range(2):  # the second time from the index file
        (entry,) = open_index(tmp_path, scan(tmp_path))
        assert isinstance(entry.index, VideoIndex)
        assert (entry.index.orientation, entry.index.height, entry.index.width) == (7, WIDTH, HEIGHT)
