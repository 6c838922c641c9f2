"""From a video to a clip: choose the frames, crop and resize the pictures."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP_BYTES = 1 << 26  # of the pictures that are resized at once
CROP = "centre"  # name of the crop of `centre_box`, stored in latent caches
Box = tuple[int, int, int, int]
"""Top, left, height and width of a crop, in pixels of the upright frame."""


class View(NamedTuple):
    """The random part of a clip: its first frame, and whether it is flipped horizontally."""

    start: int
    flipped: bool


def span(num_frames: int, interval: int) -> int:
    """Return the number of video frames from the first to the last frame of a clip."""
    return (num_frames - 1) * interval + 1


def draw_view(length: int, num_frames: int, interval: int, flip: bool, rng: np.random.Generator | None) -> View:
    """Draw the start and the flip of a clip; all data sets use this function.

    Every start is equally likely. Two numbers are drawn whatever ``flip`` is, so that changing ``flip`` does not change
    the starts.

    Args:
        length: Number of frames of the video.
        num_frames: Number of frames F of the clip.
        interval: Distance between two frames of the clip, in frames of the video.
        flip: Flip half of the clips horizontally.
        rng: Source of both draws; None returns the evaluation view, which starts at frame 0 and is not flipped.

    Raises:
        ValueError: The video is shorter than the clip.
    """
    needed = span(num_frames, interval)
    if length < needed:
        raise ValueError(
            f"a clip of {num_frames} frames at interval {interval} needs {needed} frames, but the video has {length}"
        )
    if rng is None:
        return View(0, False)
    start, coin = int(rng.integers(length - needed + 1)), rng.random()
    return View(start, flip and bool(coin < 0.5))


def centre_box(height: int, width: int, size: tuple[int, int], pixel_aspect: float = 1.0) -> Box:
    """Return the largest centred crop that has the aspect ratio of ``size`` (H, W) when it is shown.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        size: Height H and width W, whose ratio the crop has.
        pixel_aspect: Width of a pixel of the picture, divided by its height. Resizing the crop to ``size`` makes the
            pixels square.
    """
    scale = min(height / size[0], width * pixel_aspect / size[1])
    h, w = min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale / pixel_aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def resized(pictures: Iterable[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Resize pictures while they are decoded, see `to_clip`; at most `GROUP_BYTES` of them are in memory at once.

    Args:
        pictures: F pictures (h, w, 3) uint8 with the aspect ratio of ``size``.
        size: Height H and width W in pixels.

    Returns:
        (F, 3, H, W) uint8, contiguous; the same values as from one call of `to_clip`.
    """
    clips: list[Tensor] = []
    group: list[NDArray[np.uint8]] = []
    for picture in pictures:
        if group and (picture.shape != group[0].shape or (len(group) + 1) * picture.nbytes > GROUP_BYTES):
            clips.append(to_clip(group, size))
            group = []
        group.append(picture)
    clips.append(to_clip(group, size))
    return clips[0] if len(clips) == 1 else torch.cat(clips)


def to_clip(frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resize frames that already have the aspect ratio of ``size``.

    Frames are cropped before they are resized (`centre_box`), as in the paper's evaluation, because pixels outside of
    the crop then need no resizing. Resizing the short side before cropping gives slightly different pixels: the picture
    is shifted by up to half a pixel, because that order rounds the long side and the crop to whole pixels, and the
    antialiasing filter sees no pixels beyond the crop. The mean difference on four real clips is 0.1 to 4 of 255. The
    two orders agree exactly if nothing is cropped or nothing is resized.

    Args:
        frames: F pictures (h, w, 3) uint8, of the same or of different sizes.
        size: Height H and width W in pixels.

    Returns:
        (F, 3, H, W) uint8, contiguous; resized bilinearly with antialiasing.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    if not isinstance(frames, np.ndarray):
        if len({frame.shape for frame in frames}) > 1:
            return torch.cat([to_clip(frame[None], size) for frame in frames])
        frames = np.stack(frames)
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if clip.shape[-2:] != size:
        clip = F.resize(clip, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return clip.contiguous()
