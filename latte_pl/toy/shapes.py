"""Videos of one moving shape, drawn when they are read and labelled by the kind of motion."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latte_pl.data.transforms import draw_view
from latte_pl.rng import numpy_generator
from latte_pl.types import Split

Array = NDArray[np.floating[Any]]

DRAWING = 2  # version of the drawing code; increase it when a pixel changes, so that all fingerprints change
MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "grow", "shrink")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
BACKGROUNDS = ("plain", "gradient", "texture")
DARK = 40.0  # grey level of the background of plain scenes
Scene = Literal["varied", "plain"]
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
    """What a video shows: the name of each attribute."""

    shape: str
    colour: str
    motion: str
    background: str


class MovingShapes:
    """Videos of one shape on a static background; the class is how the shape moves.

    It is a `latte_pl.data.VideoDataset`. A video has ``length`` source frames. In this time a translation crosses about
    half of the picture, an orbit makes one turn from near the top, and a size changes by a factor of about three.
    A clip has ``num_frames`` source frames, ``interval`` apart; 16 frames at interval 1 and 8 frames at interval 2 both
    show the whole motion. The random generator of (seed, split, index) draws shape, colour, background, place and
    speed. So a clip depends only on (seed, split, index, start, num_frames, interval). Across platforms it can differ
    by one grey level, because the last bit of sine and cosine differs.

    Args:
        split: "train" or "val"; the two have no video in common.
        size: Height and width in pixels, at least 16; one number for a square.
        num_videos: Number of videos; None uses 50,000 for "train" and 1,000 for "val".
        seed: Seed of the videos.
        length: Number of source frames of a video, at least 2.
        held_out: Number of colours that are never combined with each motion in "train", see `is_held_out`. "val"
            contains all combinations.
        scene: "varied" draws six shapes on dark and light backgrounds, some of them graded or textured; "plain" draws
            circles on one dark grey, from which small models learn the motion within minutes.

    Raises:
        ValueError: The split or the scene is unknown, or a number is out of range.
    """

    key = "video"
    resize = "none"  # videos are drawn at their size

    def __init__(
        self,
        split: Split = "train",
        size: int | Sequence[int] = 64,
        num_videos: int | None = None,
        seed: int = 0,
        length: int = 16,
        held_out: int = 0,
        scene: Scene = "varied",
    ) -> None:
        if scene not in get_args(Scene):
            raise ValueError(f"scene is {scene!r}; it must be {' or '.join(get_args(Scene))}")
        if split not in ("train", "val"):
            raise ValueError(f"split is {split!r}; it must be train or val")
        self.split = split
        self.height, self.width = (size, size) if isinstance(size, int) else (int(side) for side in size)
        if min(self.height, self.width) < 16:
            raise ValueError(
                f"size is {(self.height, self.width)}; both must be at least 16, or the shapes look the same"
            )
        self.num_videos = (50_000 if split == "train" else 1_000) if num_videos is None else num_videos
        if self.num_videos < 1 or length < 2:
            raise ValueError(
                f"num_videos is {self.num_videos} and length is {length}; they must be at least 1 and at least 2"
            )
        if not 0 <= held_out < len(PALETTE):
            raise ValueError(f"held_out is {held_out}; it must be from 0 to {len(PALETTE) - 1}")
        self.seed = seed
        self.length = length
        self.held_out = held_out
        self.scene = scene
        self.class_names = list(MOTIONS)

    def __len__(self) -> int:
        """Return the number of videos."""
        return self.num_videos

    def label(self, index: int) -> int:
        """Return the class of a video; the classes alternate, so every eight consecutive videos are balanced."""
        self._check(index)
        return index % len(MOTIONS)

    def fingerprint(self) -> str:
        """Return a hash of everything that `read` depends on: the arguments and the version of the drawing code."""
        about: tuple = (DRAWING, self.split, self.height, self.width, self.num_videos, self.seed, self.length)
        if self.held_out and self.split == "train":
            about += (self.held_out,)
        if self.scene != "varied":
            about += (self.scene,)
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def attributes(self, index: int) -> Attributes:
        """Return what a video shows."""
        return self._attributes(index, self._generator(index))

    def caption(self, index: int) -> str:
        """Return a sentence such as "a red square moves left"."""
        names = self.attributes(index)
        article = "an" if names["colour"][0] in "aeiou" else "a"
        return f"{article} {names['colour']} {names['shape']} {VERBS[names['motion']]}"

    def read(self, index: int, num_frames: int, interval: int = 1, rng: np.random.Generator | None = None) -> Tensor:
        """Draw a clip.

        Args:
            index: Index of the video.
            num_frames: Number of frames F of the clip.
            interval: Distance between two frames of the clip, in source frames.
            rng: Draws the first source frame. The clip is never flipped, because a flip would change its class. None
                starts at frame 0.

        Returns:
            (F, 3, H, W) uint8 RGB.

        Raises:
            ValueError: The clip is longer than the video.
            IndexError: There is no such video.
        """
        generator = self._generator(index)
        span = (num_frames - 1) * interval + 1
        if num_frames < 1 or interval < 1 or span > self.length:
            raise ValueError(
                f"{num_frames} frames at interval {interval} need {span} source frames, but a video has {self.length}; "
                "decrease num_frames or interval, or increase length"
            )
        start = draw_view(self.length, num_frames, interval, False, rng).start  # the same draws as of other data sets
        names = self._attributes(index, generator)
        x, y, radius = (path[start : start + span : interval] for path in self._path(names["motion"], generator))
        tilt = 0.25 * (2 * generator.random() - 1)
        background = self._background(names["background"], generator)
        colour = np.array(PALETTE[names["colour"]], np.float32) * (0.9 + 0.1 * generator.random())

        coverage = self._coverage(names["shape"], x, y, radius, tilt)[:, None]  # (F, 1, H, W)
        frames = coverage * (colour[:, None, None] - background)  # (F, 3, H, W)
        frames += background + 0.5  # the cast below then rounds to the nearest integer
        return torch.from_numpy(frames.astype(np.uint8))

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_videos:
            raise IndexError(f"there is no video {index}; the data set has {self.num_videos}")

    def _generator(self, index: int) -> np.random.Generator:
        self._check(index)
        return numpy_generator(self.seed, "shapes", self.split, int(index))

    def _attributes(self, index: int, generator: np.random.Generator) -> Attributes:
        names: Attributes = {
            "shape": SHAPES[generator.integers(len(SHAPES))],
            "colour": self._colour(list(PALETTE)[generator.integers(len(PALETTE))], index),
            "motion": MOTIONS[self.label(index)],
            "background": BACKGROUNDS[generator.integers(len(BACKGROUNDS))],
        }
        if self.scene == "plain":
            names |= {"shape": "circle", "background": "plain"}
        return names

    def _colour(self, drawn: str, index: int) -> str:
        """Return the drawn colour of a video, or another colour if its combination with the motion is held out."""
        motion = MOTIONS[self.label(index)]
        if self.split != "train" or not is_held_out(drawn, motion, self.held_out):
            return drawn
        seen = [colour for colour in PALETTE if not is_held_out(colour, motion, self.held_out)]
        return seen[numpy_generator(self.seed, "shapes colour", index).integers(len(seen))]

    def _path(self, motion: str, generator: np.random.Generator) -> tuple[Array, Array, Array]:
        """Return centre and radius in pixels in every source frame, each (length,); the shape stays in the picture."""
        height, width, side = self.height, self.width, min(self.height, self.width)
        times = np.linspace(0, 1, self.length)
        size, reach, turn, *place = generator.random(5)
        radius = side * (0.14 + 0.06 * size) * np.ones_like(times)
        dx, dy = np.zeros_like(times), np.zeros_like(times)
        if motion in ("left", "right"):
            dx = width * (0.45 + 0.12 * reach) * (times if motion == "right" else -times)
        elif motion in ("up", "down"):
            dy = height * (0.45 + 0.12 * reach) * (times if motion == "down" else -times)
        elif motion in ("clockwise", "counter-clockwise"):
            # y points down; a start near the top makes the direction easier to see in noisy clips than a random start
            start = -0.25 + 0.2 * (turn - 0.5)
            angle = 2 * math.pi * (start + (times if motion == "clockwise" else -times))
            dx, dy = side * (0.2 + 0.06 * reach) * np.stack([np.cos(angle), np.sin(angle)])
        else:
            small, big = 0.1 + 0.02 * size, 0.3 + 0.06 * reach
            radius = side * small * (big / small) ** (times if motion == "grow" else 1 - times)
        x = _place(dx, radius, width, place[0])
        y = _place(dy, radius, height, place[1])
        return x.astype(np.float32), y.astype(np.float32), radius.astype(np.float32)

    def _background(self, kind: str, generator: np.random.Generator) -> Array:
        """Return a background (3, H, W) in [0, 255]: a dark or a light, muted one, or the one of plain scenes."""
        if self.scene == "plain":
            return np.full((3, self.height, self.width), DARK, np.float32)
        light = generator.random() < 0.4
        low, high = (195, 240) if light else (22, 72)
        first, second = generator.uniform(low, high, (2, 3)).astype(np.float32)
        angle, phase, period = (generator.random(3) * (2 * math.pi, 2 * math.pi, 1)).tolist()
        y = (np.arange(self.height, dtype=np.float32)[:, None] / self.height) - 0.5
        x = (np.arange(self.width, dtype=np.float32)[None, :] / self.width) - 0.5
        if kind == "plain":
            mix: Array = np.zeros((self.height, self.width), np.float32)
        else:
            along = math.cos(angle) * x + math.sin(angle) * y  # (H, W), within +-0.71
            if kind == "gradient":
                mix = along / 1.42 + 0.5
            else:  # two waves at a right angle
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
    """Return whether a combination of colour and motion is held out.

    The held-out combinations are the first ``held_out`` of the eight diagonals of the matrix of colours and motions, so
    that every colour and every motion loses the same number of combinations.
    """
    return (list(PALETTE).index(colour) + MOTIONS.index(motion)) % len(MOTIONS) < held_out


def _place(offset: Array, radius: Array, side: int, share: float) -> Array:
    """Move a path so that the shape stays in [0, side] in every frame; centre it if there is too little room."""
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
    if shape == "star":  # a pentagram: the points that are outside of at most one of five half-planes
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
