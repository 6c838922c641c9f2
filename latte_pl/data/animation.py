"""Animated pictures as videos: WebP, PNG, AVIF and TIFF files with several frames. GIF is read as other video files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latte_pl.data.contents import Animation
from latte_pl.data.frames import image_problem, to_rgb
from latte_pl.data.orientation import from_exif, upright
from latte_pl.data.transforms import centre_box

ANIMATED_SUFFIXES = frozenset((".webp", ".png", ".apng", ".avif", ".gif", ".tif", ".tiff"))


def is_animated(path: Path) -> bool:
    """Whether a picture has several frames of one size; False if it cannot be opened."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            size = image.size
            if not getattr(image, "is_animated", False):
                return False
            image.seek(1)  # a page of another size is a thumbnail
            return image.size == size
    except Exception:  # Pillow raises errors of many types for damaged files
        return False


def index_animation(path: Path) -> Animation:
    """Decode all frames of an animated picture.

    Raises:
        ValueError: The picture is damaged, or its frames have different sizes. The message states the reason without
            the path.
    """
    shapes, count = set(), 0
    try:
        for frame in _frames(path):
            shapes.add(frame.shape[:2])
            count += 1
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise ValueError(f"not a readable animation ({image_problem(error)})") from error
    if len(shapes) > 1:
        raise ValueError("its frames have different sizes")
    ((height, width),) = shapes
    return Animation(count, height, width)


def read_animation(
    path: Path, start: int, num_frames: int, interval: int, size: tuple[int, int]
) -> Iterator[NDArray[np.uint8]]:
    """Decode the frames start, start + interval, ... of an animated picture.

    Args:
        path: The picture.
        start: First frame.
        num_frames: Number of frames F.
        interval: Distance between two frames of the clip.
        size: Height and width; the frames are cropped to this aspect ratio.

    Yields:
        F pictures (h, w, 3) uint8 in RGB.

    Raises:
        ValueError: A frame cannot be decoded.
    """
    last = start + (num_frames - 1) * interval
    frames = _frames(path, last + 1)
    for position in range(last + 1):
        try:
            frame = next(frames)
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({image_problem(error)}); run `latte data check`, then such videos are skipped"
            ) from error
        if position >= start and (position - start) % interval == 0:
            top, left, height, width = centre_box(frame.shape[0], frame.shape[1], size)
            yield frame[top : top + height, left : left + width]


def _frames(path: Path, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield the first frames of a picture; they are decoded in order, because later frames change earlier ones."""
    from PIL import Image

    with Image.open(path) as image:
        for position in range(getattr(image, "n_frames", 1) if count is None else count):
            image.seek(position)
            image.load()
            yield upright(to_rgb(image), from_exif(image))
