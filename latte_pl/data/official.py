"""Clips as the authors' training code reads them (github.com/Vchitect/Latte, folder ``datasets``).

The values are those of the official loader, rounded to the 8 bits of a clip; the official code trains on the unrounded
ones.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latte_pl.data.transforms import View, span


class OfficialReading(NamedTuple):
    """What the official loader does with the videos of a data set.

    Attributes:
        spread: Whether the frames are spread over the window of F times interval frames, rounded down, so that most
            distances are the interval and some are longer (0, 3, ..., 21, 25, ..., 47 for 16 frames at interval 3). A
            video shorter than the window is spread over entirely.
        fit: How pictures are fitted to the size. "resize": the short side is resized, then the centre is cropped.
            "crop": the centre square is cropped, then resized. "none": pictures must have the size.
        longer: Whether a video must be longer than the window.
    """

    spread: bool
    fit: Literal["resize", "crop", "none"]
    longer: bool = False

    def needed(self, num_frames: int, interval: int) -> int:
        """Return the number of frames of the shortest video that is used."""
        if self.longer:
            return num_frames * interval + 1
        return num_frames if self.spread else span(num_frames, interval)

    def numbers(self, start: int, length: int, num_frames: int, interval: int) -> list[int]:
        """Return the numbers of the frames of a clip.

        Args:
            start: Number of the first frame.
            length: Number of frames of the video.
            num_frames: Number of frames F of the clip.
            interval: Distance between two frames.
        """
        if not self.spread:
            return list(range(start, start + span(num_frames, interval), interval))
        end = min(start + num_frames * interval, length)
        return np.linspace(start, end - 1, num_frames, dtype=int).tolist()

    def fitted(self, pictures: Sequence[NDArray[np.uint8]], size: tuple[int, int], flipped: bool) -> Tensor:
        """Flip, resize and crop pictures, bilinearly and without antialiasing.

        Args:
            pictures: F pictures (h, w, 3) uint8.
            size: Height H and width W in pixels.
            flipped: Flip horizontally, before the crop.

        Returns:
            (F, 3, H, W) uint8.

        Raises:
            ValueError: The pictures do not have the size, and the official code does not resize them.
        """
        clip = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        clip = clip.flip(-1) if flipped else clip
        height, width = clip.shape[-2:]
        if self.fit == "none":
            if (height, width) != size:
                raise ValueError(
                    f"the videos have {height} x {width} pixels, and the official code does not resize those of this "
                    f"data set; set data.size to [{height}, {width}], or data.official_clips to false"
                )
            return clip.contiguous()
        if self.fit == "crop":
            side = min(height, width)
            clip = F.interpolate(_centre(clip, (side, side)).float() / 255, size=size, mode="bilinear")
        else:
            clip = clip.float() / 255
            scaled = F.interpolate(clip, scale_factor=size[0] / min(height, width), mode="bilinear")
            if min(scaled.shape[-2] - size[0], scaled.shape[-1] - size[1]) < 0:  # the official code fails
                raise ValueError(f"pictures of {height} x {width} pixels do not cover {size[0]} x {size[1]}")
            clip = _centre(scaled, size)
        return clip.mul(255).round().clamp(0, 255).to(torch.uint8)


def draw_official_view(
    length: int, num_frames: int, interval: int, flip: bool, rng: np.random.Generator | None
) -> View:
    """Draw the start and the flip of a clip, with the official range of starts.

    Starts are 0 to length - F interval - 1, one fewer than fit; a video of up to one frame more than the window starts
    at 0.

    Args:
        length: Number of frames of the video.
        num_frames: Number of frames F of the clip.
        interval: Distance between two frames of the clip, in frames of the video.
        flip: Flip half of the clips horizontally.
        rng: Source of both draws; None returns the evaluation view, which starts at frame 0 and is not flipped.
    """
    if rng is None:
        return View(0, False)
    start, coin = int(rng.integers(max(0, length - num_frames * interval - 1) + 1)), rng.random()
    return View(start, flip and bool(coin < 0.5))


def _centre(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the centre of pictures (..., h, w); halves of a pixel are rounded to an even number, as Python does."""
    top, left = (round((have - want) / 2) for have, want in zip(clip.shape[-2:], size))
    return clip[..., top : top + size[0], left : left + size[1]]
