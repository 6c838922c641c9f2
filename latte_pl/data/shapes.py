"""Procedurally drawn videos of one moving shape, labelled by the kind of motion; nothing to download."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latte_pl.data.transforms import draw_view
from latte_pl.streams import numpy_stream

Split = Literal["train", "val"]
Array = NDArray[np.floating[Any]]

DRAWING = 2  # version of the drawing code: raised whenever a pixel changes, and with it every fingerprint
MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "grow", "shrink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
BACKGROUNDS = ("plain", "gradient", "texture")
PALETTE = {
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 170, 71),
    "cyan": (38, 198, 218),
    "blue": (33, 105, 243),
    "purple": (150, 45, 180),
    "pink": (245, 110, 160),
}
VERBS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "clockwise": "circles clockwise",
    "counter-clockwise": "circles counter-clockwise",
    "grow": "grows",
    "shrink": "shrinks",
}


class Attributes(TypedDict):
    """What a video shows, by name."""

    shape: str
    colour: str
    motion: str
    background: str


class MovingShapes:
    """Videos of one shape on a still background; the class is how the shape moves (a ``VideoDataset``).

    A video is a function of time that ends after ``length`` source frames: a translation crosses about half of the
    picture, an orbit makes one turn from near its top, a size changes by a factor of about three. A clip is
    ``num_frames`` of them, ``interval`` apart; 16 frames at interval 1 and 8 frames at interval 2 both show the whole
    motion. Shape, colour, background, place and speed are drawn from the stream of (seed, split, index), so a clip is
    a pure function of (split, index, num_frames, interval), to one grey level across platforms (the last bit of sine
    and cosine).

    Args:
        split: "train" or "val"; no video is in both.
        size: pixels of a side, or (H, W).
        num_videos: number of videos; 50,000 for train and 1,000 for val if None.
        seed: another seed is another data set.
        length: source frames of a video.
        held_out: colours that each motion is never trained with, see `is_held_out`; "val" has them all.

    Raises:
        ValueError: the split is unknown, or a number is too small.
    """

    key = "video"

    def __init__(
        self,
        split: Split = "train",
        size: int | Sequence[int] = 64,
        num_videos: int | None = None,
        seed: int = 0,
        length: int = 16,
        held_out: int = 0,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split is {split!r}; choose one of {', '.join(get_args(Split))}")
        self.split = split
        self.height, self.width = (size, size) if isinstance(size, int) else (int(side) for side in size)
        if min(self.height, self.width) < 16:
            raise ValueError(
                f"shapes of {self.height}x{self.width} pixels can't be told apart; use a size of 16 or more"
            )
        self.num_videos = (50_000 if split == "train" else 1_000) if num_videos is None else num_videos
        if self.num_videos < 1 or length < 2:
            raise ValueError(f"num_videos must be at least 1 and length at least 2, not {self.num_videos} and {length}")
        if not 0 <= held_out < len(PALETTE):
            raise ValueError(f"held_out is {held_out}; of {len(PALETTE)} colours a motion needs one to train with")
        self.seed = seed
        self.length = length
        self.held_out = held_out
        self.class_names = list(MOTIONS)

    def __len__(self) -> int:
        """Return the number of videos."""
        return self.num_videos

    def label(self, index: int) -> int:
        """Return the class of a video; classes take turns, so every run of eight videos is balanced."""
        self._check(index)
        return index % len(MOTIONS)

    def fingerprint(self) -> str:
        """Return a hash of what ``read`` can return: the parameters and the version of the drawing code."""
        about: tuple = (DRAWING, self.split, self.height, self.width, self.num_videos, self.seed, self.length)
        if self.held_out and self.split == "train":
            about += (self.held_out,)
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def attributes(self, index: int) -> Attributes:
        """Return the names of what a video shows."""
        return self._attributes(index, self._stream(index))

    def caption(self, index: int) -> str:
        """Return a sentence such as "a red square moves left"."""
        names = self.attributes(index)
        article = "an" if names["colour"][0] in "aeiou" else "a"
        return f"{article} {names['colour']} {names['shape']} {VERBS[names['motion']]}"

    def read(self, index: int, num_frames: int, interval: int = 1, rng: np.random.Generator | None = None) -> Tensor:
        """Draw a clip.

        Args:
            index: number of the video.
            num_frames: frames of the clip, F.
            interval: source frames from one frame of the clip to the next.
            rng: draws the first source frame, and a coin that turns nothing (a flip would change the class); None
                starts at 0.

        Returns:
            (F, 3, H, W) uint8 RGB.

        Raises:
            ValueError: the clip is longer than the video.
            IndexError: there is no such video.
        """
        stream = self._stream(index)
        span = (num_frames - 1) * interval + 1
        if num_frames < 1 or interval < 1 or span > self.length:
            raise ValueError(
                f"{num_frames} frames at interval {interval} span {span} source frames, a shapes video has "
                f"{self.length}; lower num_frames or interval, or raise length"
            )
        start = draw_view(self.length, num_frames, interval, False, rng).start  # the draws of all data sets
        names = self._attributes(index, stream)
        x, y, radius = (path[start : start + span : interval] for path in self._path(names["motion"], stream))
        tilt = 0.25 * (2 * stream.random() - 1)
        background = self._background(names["background"], stream)
        colour = np.array(PALETTE[names["colour"]], np.float32) * (0.9 + 0.1 * stream.random())

        coverage = self._coverage(names["shape"], x, y, radius, tilt)[:, None]  # (F, 1, H, W)
        frames = coverage * (colour[:, None, None] - background)  # (F, 3, H, W)
        frames += background + 0.5  # rounds to nearest in the cast below
        return torch.from_numpy(frames.astype(np.uint8))

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_videos:
            raise IndexError(f"video {index} of {self.num_videos}")

    def _stream(self, index: int) -> np.random.Generator:
        self._check(index)
        return numpy_stream(self.seed, "shapes", self.split, int(index))

    def _attributes(self, index: int, stream: np.random.Generator) -> Attributes:
        return {
            "shape": SHAPES[stream.integers(len(SHAPES))],
            "colour": self._colour(list(PALETTE)[stream.integers(len(PALETTE))], index),
            "motion": MOTIONS[self.label(index)],
            "background": BACKGROUNDS[stream.integers(len(BACKGROUNDS))],
        }

    def _colour(self, drawn: str, index: int) -> str:
        """Return the colour drawn for a video, or another one where training never sees it."""
        motion = MOTIONS[self.label(index)]
        if self.split != "train" or not is_held_out(drawn, motion, self.held_out):
            return drawn
        seen = [colour for colour in PALETTE if not is_held_out(colour, motion, self.held_out)]
        return seen[numpy_stream(self.seed, "shapes colour", index).integers(len(seen))]

    def _path(self, motion: str, stream: np.random.Generator) -> tuple[Array, Array, Array]:
        """Return centre and radius in pixels in every source frame, each (length,); the shape never leaves."""
        height, width, side = self.height, self.width, min(self.height, self.width)
        times = np.linspace(0, 1, self.length)
        size, reach, turn, *place = stream.random(5)
        radius = side * (0.14 + 0.06 * size) * np.ones_like(times)
        dx, dy = np.zeros_like(times), np.zeros_like(times)
        if motion in ("left", "right"):
            dx = width * (0.45 + 0.12 * reach) * (times if motion == "right" else -times)
        elif motion in ("up", "down"):
            dy = height * (0.45 + 0.12 * reach) * (times if motion == "down" else -times)
        elif motion in ("clockwise", "counter-clockwise"):
            # y points down; a start anywhere on the circle would leave few clues to the sense of the turn under noise
            start = -0.25 + 0.2 * (turn - 0.5)
            angle = 2 * math.pi * (start + (times if motion == "clockwise" else -times))
            dx, dy = side * (0.2 + 0.06 * reach) * np.stack([np.cos(angle), np.sin(angle)])
        else:
            small, big = 0.1 + 0.02 * size, 0.3 + 0.06 * reach
            radius = side * small * (big / small) ** (times if motion == "grow" else 1 - times)
        x = _place(dx, radius, width, place[0])
        y = _place(dy, radius, height, place[1])
        return x.astype(np.float32), y.astype(np.float32), radius.astype(np.float32)

    def _background(self, kind: str, stream: np.random.Generator) -> Array:
        """Return a dark or a light, muted background (3, H, W) in [0, 255]."""
        light = stream.random() < 0.4
        low, high = (195, 240) if light else (22, 72)
        first, second = stream.uniform(low, high, (2, 3)).astype(np.float32)
        angle, phase, period = (stream.random(3) * (2 * math.pi, 2 * math.pi, 1)).tolist()
        y = (np.arange(self.height, dtype=np.float32)[:, None] / self.height) - 0.5
        x = (np.arange(self.width, dtype=np.float32)[None, :] / self.width) - 0.5
        if kind == "plain":
            mix: Array = np.zeros((self.height, self.width), np.float32)
        else:
            along = math.cos(angle) * x + math.sin(angle) * y  # (H, W), within +-0.71
            if kind == "gradient":
                mix = along / 1.42 + 0.5
            else:  # two crossing low waves
                across = math.cos(angle) * y - math.sin(angle) * x
                wave = 2 * math.pi * (1.5 + period)
                mix = 0.5 + 0.22 * (np.sin(wave * along + phase) + np.sin(wave * across))
        return first[:, None, None] + mix * (second - first)[:, None, None]

    def _coverage(self, shape: str, x: Array, y: Array, radius: Array, tilt: float) -> Array:
        """Return the share (F, H, W) of each pixel that the shape covers, from its signed distance."""
        columns = np.arange(self.width, dtype=np.float32) + 0.5  # pixel centres
        rows = np.arange(self.height, dtype=np.float32) + 0.5
        radius = radius[:, None, None]
        dx = (columns - x[:, None, None]) / radius  # (F, 1, W)
        dy = (rows[:, None] - y[:, None, None]) / radius  # (F, H, 1)
        distance = _signed_distance(shape, dx, dy, tilt) * radius  # (F, H, W)
        return np.clip(0.5 - distance, 0, 1)


def is_held_out(colour: str, motion: str, held_out: int) -> bool:
    """Say whether a colour is kept from a motion: on ``held_out`` of the eight diagonals of colours x motions.

    So every colour and every motion loses equally many partners.
    """
    return (list(PALETTE).index(colour) + MOTIONS.index(motion)) % len(MOTIONS) < held_out


def _place(offset: Array, radius: Array, side: int, share: float) -> Array:
    """Put a path somewhere in [0, side] such that no frame reaches out; in the middle if there is too little room."""
    low, high = (offset - radius).min(), (offset + radius).max()
    room = side - (high - low)
    return offset - low + (share * room if room > 0 else room / 2)


def _signed_distance(shape: str, dx: Array, dy: Array, tilt: float) -> Array:
    """Return the distance (F, H, W) to the outline of a shape of circumradius 1, negative inside."""
    if shape in ("circle", "ring"):
        norm = np.sqrt(dx * dx + dy * dy)
        return norm - 1 if shape == "circle" else np.abs(norm - 0.74) - 0.26

    def along(angle: float) -> Array:  # coordinate along a direction, turned by the tilt
        return math.cos(angle + tilt) * dx + math.sin(angle + tilt) * dy

    if shape == "triangle":  # three half-planes; up is -y
        return np.maximum.reduce([along(math.pi * (0.5 + 2 * k / 3)) for k in range(3)]) - 0.5
    if shape == "star":  # a pentagram: outside of at most one of five half-planes
        largest = along(0.5 * math.pi)
        second = np.full_like(largest, -np.inf)
        for k in range(1, 5):
            plane = along(math.pi * (0.5 + 0.4 * k))
            np.maximum(second, np.minimum(plane, largest), out=second)
            np.maximum(largest, plane, out=largest)
        return second - 0.34
    u, v = np.abs(along(0)), np.abs(along(0.5 * math.pi))
    if shape == "square":
        return np.maximum(u, v) - 0.76
    low, high = np.minimum(u, v), np.maximum(u, v)
    return np.maximum(low - 0.32, high - 0.95)  # cross
