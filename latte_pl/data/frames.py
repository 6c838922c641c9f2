"""Videos stored as folders of images: order the frames by number, check and decode them."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latte_pl.data.contents import FrameFolder
from latte_pl.data.orientation import UPRIGHT, from_exif, swaps_sides, upright
from latte_pl.data.transforms import centre_box

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = ".jpg .jpeg .jfif .png .apng .bmp .webp .avif .tif .tiff .ppm .pgm .pnm .tga .jp2"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
POINTER = "a Git LFS pointer, not the file; run `git lfs pull`"
POINTER_BYTES = 1024
JPEG_TAIL = 1 << 16  # bytes at the end of a JPEG that are searched for its end marker
TIME_STEP = 10  # numbers that are usually this far apart are times, such as milliseconds
_NUMBERS = re.compile(r"(\d+)", re.ASCII)


def order_frames(names: Iterable[str]) -> list[str]:
    """Sort image names by the frame number in them ("2.jpg" before "10.jpg").

    The frame number is the number that varies, wherever it stands (frame12_face0.png). If several numbers vary, they
    must all grow from frame to frame, as a number and a time do (12_0.480.png); "0.480" is one number. If no name
    contains a number, the names are sorted as text. The numbers may have a constant step, for example if only every
    third frame was kept. Steps of 10 and more are taken for times and may vary by half.

    Raises:
        ValueError: A number is missing or occurs twice, or the images belong to several videos. The message states the
            reason without the folder.
    """
    names = sorted(names)
    parts = [_NUMBERS.split(Path(name).stem) for name in names]  # text, number, text, ..., number, text
    if all(len(part) == 1 for part in parts):
        return names
    for name, part in zip(names, parts):
        if len(part) == 1:
            raise ValueError(f"{name} has no frame number, unlike other images of the folder")
    numbers = _frame_numbers(parts)
    if numbers is None:
        series = sorted({"".join(part[:-2]) for part in parts})
        raise ValueError(
            f"frames of several videos ({series[0]}*, {series[1]}*) in one folder; use one folder per video"
        )
    numbered = sorted(zip(numbers, names))
    for (number, name), (after, other) in pairwise(numbered):
        if number == after:
            raise ValueError(f"two files for frame {number}: {name} and {other}")
    steps = [b[0] - a[0] for a, b in pairwise(numbered)]
    step = _usual_step(steps)
    for (number, _), after in zip(numbered, steps):
        if not _is_regular(after, step):
            missing = round(after / step) - 1 if step >= TIME_STEP else after // step - 1
            raise ValueError(f"gap in frame numbers: {missing or 'some'} missing between {number} and {number + after}")
    return [name for _, name in numbered]


def _frame_numbers(parts: Sequence[Sequence[str]]) -> list[int] | None:
    """Return the frame number in each name; None if the names belong to several videos.

    Args:
        parts: Each name as text, number, text, ..., number, text.
    """
    if len({"".join(part[:-2]) for part in parts}) == 1:
        return [int(part[-2]) for part in parts]
    if len({tuple(part[0:-1:2]) for part in parts}) > 1:  # the texts before the last number
        return None
    columns: list[list[int]] = []
    for place in range(1, len(parts[0]), 2):
        digits = [part[place] for part in parts]
        decimals = place > 1 and parts[0][place - 1] == "." and len({len(number) for number in digits}) == 1
        if decimals and len(set(columns[-1])) > 1 and len(set(digits)) > 1:
            columns[-1] = [int(f"{whole}{part}") for whole, part in zip(columns[-1], digits)]
        else:
            columns.append([int(number) for number in digits])
    varying = [column for column in columns if len(set(column)) > 1]
    if len(varying) < 2:
        return varying[0] if varying else columns[-1]
    rows = sorted(zip(*varying))
    steps = [[b - a for a, b in pairwise(column)] for column in zip(*rows)]
    if any(step <= 0 for column in steps for step in column):
        return None
    regular = [all(_is_regular(step, _usual_step(column)) for step in column) for column in steps]
    return varying[regular.index(True) if True in regular else 0]


def _usual_step(steps: Sequence[int]) -> int:
    """Return the distance of two frame numbers if no frame is missing: the smallest, or the median of times."""
    middle = sorted(steps)[(len(steps) - 1) // 2] if steps else 1
    return middle if middle >= TIME_STEP else min(steps, default=1)


def _is_regular(step: int, usual: int) -> bool:
    return step == usual if usual < TIME_STEP else step <= 1.5 * usual


def index_frames(folder: str | Path, names: Sequence[str], thorough: bool = False, fast: bool = False) -> FrameFolder:
    """Order the images of a folder and check each of them.

    Args:
        folder: The folder.
        names: Its image files.
        thorough: Decode every image. This finds all damage, and takes about a hundred times as long as the default
            check of headers and ends.
        fast: Open only the first image.

    Raises:
        ValueError: An image is unusable, or the frames cannot be ordered. The message states the reason.
    """
    ordered = order_frames(names)
    images = [inspect_image(Path(folder, name), thorough) for name in (ordered[:1] if fast else ordered)]
    turned = any(image.orientation != UPRIGHT for image in images)
    return FrameFolder("/".join(ordered), len(ordered), images[0].height, images[0].width, turned=turned)


class ImageSize(NamedTuple):
    """Height and width of an image in pixels after it is turned upright, and its EXIF orientation."""

    height: int
    width: int
    orientation: int


def inspect_image(path: Path, thorough: bool = False) -> ImageSize:
    """Check an image and return its size.

    Args:
        path: The image.
        thorough: Decode the image.

    Raises:
        ValueError: The file is empty, no image, or truncated. The message states the name of the file and the reason.
    """
    from PIL import Image

    if os.path.getsize(path) == 0:
        raise ValueError(f"unreadable image {path.name} (zero bytes)")
    if is_pointer(path):
        raise ValueError(f"unreadable image {path.name} ({POINTER})")
    try:
        with Image.open(path) as image:
            (width, height), kind = image.size, image.format
            animated = kind in ("PNG", "WEBP", "AVIF", "GIF") and getattr(image, "is_animated", False)
            if kind == "JPEG" and not thorough:
                with open(path, "rb") as file:
                    file.seek(max(0, os.path.getsize(path) - JPEG_TAIL))
                    thorough = b"\xff\xd9" not in file.read()
            if kind == "PNG" and not thorough:
                image.verify()  # compares the checksums of all chunks
            elif kind != "JPEG" or thorough:
                image.load()
                to_rgb(image)
                width, height = image.size  # which loading a TIFF can exchange
            orientation = from_exif(image)
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise ValueError(f"unreadable image {path.name} ({image_problem(error)})") from error
    if animated:
        raise ValueError(f"{path.name} is animated, unlike other images of the folder")
    return ImageSize(*((width, height) if swaps_sides(orientation) else (height, width)), orientation)


def read_frames(folder: str | Path, names: Sequence[str], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Decode images to RGB, turn them upright, and crop them to the aspect ratio of ``size``.

    Args:
        folder: The folder of the images.
        names: The images to read.
        size: Height H and width W; only their ratio matters here.

    Yields:
        One picture (h, w, 3) uint8 for each image.

    Raises:
        ValueError: An image cannot be decoded.
    """
    from PIL import Image

    for name in names:
        try:
            with Image.open(Path(folder, name)) as image:
                image.load()  # Pillow turns TIFF images upright when it loads them
                picture = upright(to_rgb(image), from_exif(image))
        except Exception as error:
            raise ValueError(
                f"{Path(folder, name)} cannot be read ({image_problem(error)}); run `latte data check`, then such "
                "videos are skipped"
            ) from error
        top, left, height, width = centre_box(picture.shape[0], picture.shape[1], size)
        yield picture[top : top + height, left : left + width]


def is_pointer(path: Path) -> bool:
    """Whether a file is the pointer that Git leaves where a large file was not downloaded."""
    if os.path.getsize(path) > POINTER_BYTES:
        return False
    return path.read_bytes().startswith(b"version https://git-lfs.github.com/")


def image_problem(error: Exception) -> str:
    """Return in one line why Pillow cannot read an image."""
    if "cannot identify" in str(error):
        return "not an image"
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def to_rgb(image: "Image") -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) uint8 of a loaded image of any bit depth; transparency is ignored.

    Raises:
        ValueError: The values are 32 bits wide, so that it is not known which value is white.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("32-bit values have no defined white; convert the images to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip to 255
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
