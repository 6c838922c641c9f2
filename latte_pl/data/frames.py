"""Folders of frames: one folder of images is one video, its frames ordered by number."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latte_pl.data.transforms import centre_box

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"))
JPEG_TAIL = 1 << 16  # bytes at the end of a JPEG in which its end marker is looked for
_NUMBER = re.compile(r"(\d+)(?!.*\d)", re.ASCII)


@dataclass(frozen=True)
class FrameFolder:
    """What the files of one folder are.

    Attributes:
        names: File names in the order of their numbers, joined by "/": one object a video, however many frames, so that
            loader processes share it without copying.
        num_frames: Their count.
        height: Height of the first frame in pixels.
        width: Its width.
    """

    names: str
    num_frames: int
    height: int
    width: int


def order_frames(names: Iterable[str]) -> list[str]:
    """Sort image names by their last number ("2.jpg" before "10.jpg"); names without any number by text.

    Raises:
        ValueError: When the numbers leave a gap, repeat, or belong to several series; the message is the reason alone.
            A constant step, as of every third frame, is no gap.
    """
    names = sorted(names)
    found = [_NUMBER.search(Path(name).stem) for name in names]
    if not any(found):
        return names
    without = [name for name, match in zip(names, found) if match is None]
    if without:
        raise ValueError(f"{without[0]} has no frame number, unlike its neighbours")
    series = sorted({name[: match.start()] for name, match in zip(names, found) if match})
    if len(series) > 1:
        raise ValueError(f"frames of several videos ({series[0]}*, {series[1]}*) in one folder; give each its own")
    numbered = sorted((int(match[1]), name) for name, match in zip(names, found) if match)
    for (number, name), (after, other) in pairwise(numbered):
        if number == after:
            raise ValueError(f"two files for frame {number}: {name} and {other}")
    steps = [b[0] - a[0] for a, b in pairwise(numbered)]
    step = min(steps, default=1)
    for (number, _), after in zip(numbered, steps):
        if after != step:
            missing = after // step - 1
            raise ValueError(f"gap in frame numbers: {missing or 'some'} missing between {number} and {number + after}")
    return [name for _, name in numbered]


def index_frames(folder: str | Path, names: Sequence[str], thorough: bool = False) -> FrameFolder:
    """Order the images of a folder and look into each: type, size in pixels, and whether its end is there.

    Args:
        folder: The folder.
        names: The image files in it.
        thorough: Decode every image, which also finds damage inside; a hundred times slower.

    Raises:
        ValueError: With the first unusable image and the reason.
    """
    ordered = order_frames(names)
    first = (0, 0)
    for name in ordered:
        width, height = inspect_image(Path(folder, name), thorough)
        first = first if first != (0, 0) else (height, width)
    return FrameFolder("/".join(ordered), len(ordered), *first)


def inspect_image(path: Path, thorough: bool = False) -> tuple[int, int]:
    """Return the width and height of an image that is complete.

    Raises:
        ValueError: When it is empty, not an image or cut short; the message names the file and the reason.
    """
    if os.path.getsize(path) == 0:
        raise ValueError(f"unreadable image {path.name} (zero bytes)")
    try:
        with Image.open(path) as image:
            size, kind = image.size, image.format
            if kind == "JPEG" and not thorough:
                with open(path, "rb") as file:
                    file.seek(max(0, os.path.getsize(path) - JPEG_TAIL))
                    thorough = b"\xff\xd9" not in file.read()
            if kind == "PNG" and not thorough:
                image.verify()  # checksums of all chunks
            elif kind != "JPEG" or thorough:
                image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        raise ValueError(f"unreadable image {path.name} ({reason})") from error
    return size


def read_frames(folder: str | Path, names: Sequence[str], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Decode images to RGB pixels (h, w, 3), each cropped to the aspect ratio of ``size`` (H, W).

    Raises:
        ValueError: When an image cannot be decoded.
    """
    frames = []
    for name in names:
        try:
            with Image.open(Path(folder, name)) as image:
                top, left, height, width = centre_box(image.height, image.width, size)
                pixels = _rgb(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{Path(folder, name)} cannot be read ({error}); `latte data check` finds and sets aside such videos"
            ) from error
        frames.append(pixels[top : top + height, left : left + width])
    return frames


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
