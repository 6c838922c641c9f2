"""A folder of real videos as a data set, and the base class for data sets with another folder layout."""

import codecs
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latte_pl.data.animation import read_animation
from latte_pl.data.contents import Animation, Content, FrameFolder, VideoIndex
from latte_pl.data.frames import read_frames
from latte_pl.data.index import VIDEO_SUFFIXES, Found, open_index, scan
from latte_pl.data.layout import (
    Item,
    Layout,
    find_splits,
    is_split_name,
    media_folder,
    other_files,
    unused_folders,
)
from latte_pl.data.official import OfficialReading, draw_official_view
from latte_pl.data.stream import ClipSampling, sampling_weights
from latte_pl.data.transforms import centre_box, draw_view, resized, span
from latte_pl.types import Split

Indexing = Literal["exact", "fast"]
SHOWN = 20  # number of skipped videos that a warning names
_log = logging.getLogger(__name__)


class VideoFolder:
    """Clips of the videos in a folder, which may be files in any container that PyAV reads or folders of frames.

    If every video is in a sub-folder, the first folder of its path is its class. Sub-folders ``train``, ``val`` and
    ``test`` are splits, also inside of another folder. Where there are only folders such as ``videos`` and ``images``,
    the videos are used. Without a split for validation, a fixed share of the videos is held out for it.

    A subclass for another layout sets the class attributes ``folders``, ``preferred``, ``labelled``, ``holds_out`` and
    ``expected``, or overrides `layout` if the folders alone do not determine splits and labels.

    Args:
        root: The folder.
        size: Height and width of the clips in pixels; one number for a square. Pictures are cropped around the centre
            to this aspect ratio and then resized.
        num_frames: Number of frames F of the clips that will be read; shorter videos are skipped.
        interval: Distance between two frames of a clip, in frames of the video.
        split: "train", "val", "test" or "all".
        flip: Flip half of the training clips horizontally.
        holdout: Share of the videos that is held out for "val" if the folder has no such split. The videos are chosen
            by a hash of their path. With 0 the validation videos are the training videos.
        cache_dir: Folder of the index file; None stores it in a hidden folder below ``root``.
        num_threads: Number of files to index at once; None uses one thread per processor.
        captions: Skip videos without a caption. The caption of ``<video>.mp4``, or of the folder of frames ``<video>``,
            is the text in ``<video>.txt`` beside it. Use ``flip=False`` if captions contain "left" or "right".
        index: "exact" decodes every video once, before its first use, and checks every image. "fast" trusts the
            containers: damaged files are found when they are read, and frames are wrong where a container is.
        official_clips: Choose the frames of clips and resize them as the authors' training code does.

    Attributes:
        class_names: Names of the classes, empty if the videos have no labels.
        skipped: Path and reason of each video that cannot be used.

    Raises:
        FileNotFoundError: The folder or the split does not exist.
        ValueError: An argument is out of range, or no video can be used.
    """

    key: str = "video"
    resize: str = "centre-crop"
    """How pictures are fitted to ``size``; stored with every metric."""
    folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train", "training"),
        "val": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing"),
    }
    """Possible names of the sub-folder of each split, in lower case."""
    preferred: ClassVar[tuple[str, ...]] = ()
    """Names of sub-folders that contain the videos of the data set, whatever is beside them, in lower case."""
    labelled: ClassVar[bool] = True
    """Whether sub-folders are classes."""
    holds_out: ClassVar[bool] = True
    """Whether videos are held out for "val" if the folder has no such split."""
    square_pixels: ClassVar[bool] = True
    """Whether videos whose pixels are not square are resampled; else they are used as stored."""
    expected: ClassVar[str] = (
        "{root}/<video>.mp4 or {root}/<class>/<video>.mp4, or these below {root}/train and {root}/test"
    )
    """The folder layout, for error messages."""
    official: ClassVar[OfficialReading | None] = None
    """How the authors' training code reads the data set, if it is one of theirs."""

    def __init__(
        self,
        root: str | Path,
        size: int | tuple[int, int] = 256,
        num_frames: int = 16,
        interval: int = 3,
        split: Split = "all",
        flip: bool = False,
        holdout: float = 0.1,
        cache_dir: str | Path | None = None,
        num_threads: int | None = None,
        captions: bool = False,
        index: Indexing = "exact",
        official_clips: bool = False,
    ) -> None:
        self.root = Path(root).expanduser()
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        for name, value in (("size", min(self.size)), ("num_frames", num_frames), ("interval", interval)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if split not in get_args(Split):
            raise ValueError(f'split is "{split}"; it must be one of {", ".join(get_args(Split))}')
        if index not in get_args(Indexing):
            raise ValueError(f'index is "{index}"; it must be "exact" or "fast"')
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout is {holdout}; it must be at least 0 and less than 1")
        if not self.root.exists():
            raise FileNotFoundError(f"the folder {self.root} does not exist; set the path of the data")
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is a file; use the folder that contains the videos")
        self.num_frames, self.interval, self.split, self.flip = num_frames, interval, split, flip
        self.holdout, self.captions = holdout, captions
        if official_clips and self.official is None:
            raise ValueError(
                "official_clips is true, but the official code does not read this data set; set it to false"
            )
        self._reading = self.official if official_clips else None
        layout = self._layout()
        self.class_names = layout.class_names
        items = self._choose(layout.items, split, holdout)
        splits = {item.split for item in items}
        self.skipped = [(path, reason) for place, path, reason in layout.problems if split == "all" or place in splits]
        self._items: list[Item] = []
        self._indices = []
        reading = self._reading
        needed = reading.needed(num_frames, interval) if reading else span(num_frames, interval)
        found = [item.found for item in items]
        for item, entry in zip(items, open_index(self.root, found, cache_dir, False, num_threads, index == "fast")):
            if entry.index is None:
                self.skipped.append((item.found.path, entry.problem))
            elif entry.index.num_frames < needed:
                self.skipped.append((item.found.path, too_short(entry.index.num_frames, num_frames, interval, needed)))
            elif captions and not self._caption(item):
                self.skipped.append((item.found.path, f"no caption in {self._caption_file(item).name} beside it"))
            else:
                self._items.append(item)
                self._indices.append(entry.index)
        self._report()

    def _layout(self) -> Layout:
        return self.layout(self.root)

    @classmethod
    def layout(cls, root: Path) -> Layout:
        """Find the videos of all splits, without opening them."""
        items: list[tuple[Found, str, list[str]]] = []
        splits = find_splits(root, cls.folders)
        if unused := unused_folders(root, splits):
            used = ", ".join(folder for _, folder in splits)
            _warn(
                f"{root}: the videos in {', '.join(unused)} are not used, because {used} are the folders of the splits"
            )
        for split, folder in splits or [("", "")]:
            place = media_folder(root, folder, cls.preferred)
            for found in scan(root, place):
                items.append((found, split, found.path.removeprefix(place).strip("/").split("/")))
        names: list[str] = []
        if cls.labelled and items and all(len(parts) > 1 for _, _, parts in items):
            names = sorted({parts[0] for _, _, parts in items})
        for found, _, parts in items:
            if names and is_split_name(parts[0]):
                raise ValueError(
                    f'the folder "{parts[0]}" is not a class; found {root / found.path}, expected '
                    f"{cls.expected.format(root=root)}"
                )
        return Layout([Item(f, s, names.index(p[0]) if names else 0) for f, s, p in items], names, [])

    def _choose(self, items: list[Item], split: Split, holdout: float) -> list[Item]:
        """Return the videos of one split, sorted by path."""
        if split == "all":
            return items
        given = {item.split for item in items if item.split}
        validation = "val" if "val" in given else "test"  # published data sets have no third split
        wanted = validation if split == "val" else split
        if wanted in given and (wanted != "train" or validation in given or not self.holds_out):
            return [item for item in items if item.split == wanted]
        if not self.holds_out or split == "test":
            raise FileNotFoundError(
                f'{self.root} has no "{split}" split; expected {self.expected.format(root=self.root)}'
            )
        pool = [item for item in items if item.split in ("", "train")]
        if len(pool) == 1 or holdout == 0:
            _warn(f"{self.root}: the validation videos are the training videos")
            return pool
        pool.sort(key=lambda item: hashlib.sha256(item.found.path.encode(errors="replace")).digest())
        count = min(max(1, round(holdout * len(pool))), len(pool) - 1)
        chosen = pool[:count] if split == "val" else pool[count:]
        return sorted(chosen, key=lambda item: item.found.path.split("/"))

    def _report(self) -> None:
        """Warn about skipped videos.

        Raises:
            ValueError: All videos are skipped.
        """
        if not self._items:
            counted = Counter(reason for _, reason in self.skipped).most_common(3)
            other = other_files(self.root)
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counted) or (
                f"no video found, expected {self.expected.format(root=self.root)}"
                + (f"; found {other} files" if other else "")
            )
            raise ValueError(f"no usable video in {self.root} (split {self.split}): {reasons}")
        if self.skipped:
            total = len(self._items) + len(self.skipped)
            _warn(f"{len(self.skipped)} of {total} videos of {self.root} are skipped:{_listing(self.skipped)}")
        notes = [(item.found.path, index.notes) for item, index in zip(self._items, self._indices)]
        for line in note_lines(notes):
            _warn(f"{self.root}: {line}")

    def __len__(self) -> int:
        """Return the number of usable videos."""
        return len(self._items)

    def label(self, index: int) -> int:
        """Return the class of a video; 0 if the videos have no labels."""
        return self._items[index].label

    def caption(self, index: int) -> str:
        """Return the caption of a video; "" if it has none."""
        return self._caption(self._items[index])

    def _caption(self, item: Item) -> str:
        path = self._caption_file(item)
        if not path.is_file():
            return ""
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # of Windows editors
        return " ".join(content.decode("utf-16" if wide else "utf-8-sig", errors="replace").split())

    def _caption_file(self, item: Item) -> Path:
        path = self.root / item.found.path
        return path.with_name(f"{path.name if item.found.names else path.stem}.txt")

    def path(self, index: int) -> str:
        """Return the path of a video relative to the root."""
        return self._items[index].found.path

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._indices[index].num_frames

    def fps(self, index: int) -> float:
        """Return the average frame rate of a video; 0 if the files do not state it, as a folder of frames."""
        inside = self._indices[index]
        return inside.fps if isinstance(inside, VideoIndex) else 0.0

    def source_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a video in pixels, before it is cropped and resized."""
        return self._indices[index].height, self._indices[index].width

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip (F, 3, H, W) uint8; ``rng`` draws its start and its flip, see `draw_view`."""
        if self._reading is not None:
            return self._read_official(self._reading, index, num_frames, interval, rng)
        view = draw_view(self.length(index), num_frames, interval, self.flip, rng)
        clip = self.frames(index, view.start, num_frames, interval)
        return clip.flip(-1) if view.flipped else clip

    def _read_official(
        self, reading: OfficialReading, index: int, num_frames: int, interval: int, rng: np.random.Generator | None
    ) -> Tensor:
        length = self.length(index)
        view = draw_official_view(length, num_frames, interval, self.flip, rng)
        numbers = reading.numbers(view.start, length, num_frames, interval)
        pictures = self.pictures(index, view.start, numbers[-1] - view.start + 1)
        return reading.fitted([pictures[n - view.start] for n in numbers], self.size, view.flipped)

    def frames(self, index: int, start: int, num_frames: int, interval: int = 1) -> Tensor:
        """Return the frames start, start + interval, ... as (F, 3, H, W) uint8, not flipped.

        Raises:
            ValueError: The frames are outside of the video, or cannot be decoded.
        """
        return resized(self._decode(index, start, num_frames, interval, self.size, self.square_pixels), self.size)

    def pictures(
        self, index: int, start: int, num_frames: int, interval: int = 1
    ) -> Sequence[NDArray[np.uint8]] | NDArray[np.uint8]:
        """Return the frames as F pictures (h, w, 3) uint8 of their own size, neither cropped nor resized.

        Raises:
            ValueError: The frames are outside of the video, or cannot be decoded.
        """
        return list(self._decode(index, start, num_frames, interval, self.source_size(index), False))

    def _decode(
        self, index: int, start: int, num_frames: int, interval: int, ratio: tuple[int, int], square_pixels: bool
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield frames, cropped to the aspect ratio that a height and width have in pixels as stored or square."""
        from latte_pl.data.decoding import iterate_video

        path, inside = self.root / self.path(index), self._indices[index]
        last = start + (num_frames - 1) * interval
        if start < 0 or last >= inside.num_frames:
            raise ValueError(f"frames {start} to {last} are outside of {path}, which has {inside.num_frames} frames")
        if isinstance(inside, FrameFolder):
            return read_frames(path, inside.names.split("/")[start : last + 1 : interval], ratio)
        if isinstance(inside, Animation):
            return read_animation(path, start, num_frames, interval, ratio)
        aspect = inside.pixel_aspect if square_pixels else 1.0
        box = centre_box(inside.height, inside.width, ratio, aspect)
        return iterate_video(path, inside, start, num_frames, interval, box)

    def weights(self, kind: ClipSampling) -> NDArray[np.float64] | None:
        """Return the probability of each video in training; see `sampling_weights`."""
        lengths, labels = [i.num_frames for i in self._indices], [item.label for item in self._items]
        reading = self._reading
        needed = (reading.needed if reading else span)(self.num_frames, self.interval)
        return sampling_weights(kind, lengths, labels, bool(self.class_names), needed)

    def members(self, split: Split) -> list[int]:
        """Return the indices that the videos of a split have in this data set, in the order of that split.

        Raises:
            FileNotFoundError: The folder has no such split.
        """
        indices = {item.found.path: index for index, item in enumerate(self._items)}
        chosen = self._choose(self._layout().items, split, self.holdout)
        return [indices[item.found.path] for item in chosen if item.found.path in indices]

    def fingerprint(self) -> str:
        """Return a hash of the files, their order, the size of the clips and, if they are used, the captions."""
        captions = [self._caption(item) for item in self._items] if self.captions else []
        files = [
            f"{item.found.path}\n{item.found.signature}{_geometry(index, self.square_pixels)}"
            for item, index in zip(self._items, self._indices)
        ]
        return _hash([repr(self.size), *files, *captions, *(["official clips"] if self._reading else [])])


def too_short(length: int, num_frames: int, interval: int, needed: int) -> str:
    """Return why a video of ``length`` frames is skipped, where clips need ``needed``."""
    return f"too short: {length} frames, but a clip of {num_frames} at interval {interval} needs {needed}"


def note_lines(notes: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return a line for each note on videos, with the number of the videos that have it and the first three paths.

    Videos of the same name in several formats are noted, too: they are probably the same video.

    Args:
        notes: Path and notes of each video.
    """
    names = Counter(_without_format(path) for path, _ in notes)
    paths: dict[str, list[str]] = {}
    for path, texts in notes:
        doubled = ["same name in several formats, each is used"] if names[_without_format(path)] > 1 else []
        for text in [*texts, *doubled]:
            paths.setdefault(text, []).append(path)
    return [
        f"{text}: {len(found)} of {len(notes)} videos ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for text, found in paths.items()
    ]


def _without_format(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in VIDEO_SUFFIXES else path


def _geometry(index: Content, square_pixels: bool) -> str:
    """Return what reading does to the pictures of a video that earlier versions did not do; "" for most videos."""
    if isinstance(index, FrameFolder):
        return "\nturned" if index.turned else ""
    if isinstance(index, Animation):
        return ""
    flipped = f"\norientation {index.orientation}" if index.orientation in (2, 4, 5, 7) else ""
    return flipped + (f"\npixels {index.pixel_aspect:.6g}" if square_pixels and index.pixel_aspect != 1 else "")


def _listing(skipped: Sequence[tuple[str, str]]) -> str:
    """Return paths and reasons, one per line; if there are many, only the first."""
    lines = [f"\n  {path}: {reason}" for path, reason in skipped[:SHOWN]]
    rest = len(skipped) - len(lines)
    return "".join(lines) + (f"\n  and {rest} more; `latte data check` lists all" if rest else "")


def _warn(message: str) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only(_log.warning)(message)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()
