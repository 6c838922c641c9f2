"""Any folder of real videos as a data set of clips, and the base of the data sets with a layout of their own."""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from torch import Tensor

from latte_pl.data.decoding import read_video
from latte_pl.data.frames import FrameFolder, read_frames
from latte_pl.data.index import Found, open_index, scan
from latte_pl.data.stream import Sampling, sampling_weights
from latte_pl.data.transforms import centre_box, draw_view, mirror, span, to_clip

Split = Literal["train", "val", "test", "all"]
SHOWN = 20  # unusable videos that a warning names
_log = logging.getLogger(__name__)


class Item(NamedTuple):
    """A video with its place in the data set; split is "" where the layout assigns none."""

    found: Found
    split: str
    label: int


class Layout(NamedTuple):
    """What the folders of a data set say, before any file is opened."""

    items: list[Item]
    class_names: list[str]
    problems: list[tuple[str, str, str]]
    """Split, path and reason of videos that the layout itself rules out."""


class VideoFolder:
    """Clips from a folder of videos: files in any container that PyAV reads, or folders of frames, nested or flat.

    When every video lies in a sub-folder, the first folder of its path is its class. Sub-folders ``train``, ``val``
    and ``test`` are splits; without one for validation a fixed share of the videos is held out for it.

    Args:
        root: The folder.
        size: Height and width of the clips in pixels, one number for a square; pictures are cropped to its aspect
            ratio around the centre, then scaled.
        num_frames: Frames F of the clips that will be read; shorter videos are set aside.
        interval: Distance between the frames of a clip, in frames of the video.
        split: "train", "val", "test" or "all".
        flip: Mirror half of the training clips.
        holdout: Share of the videos kept for "val" where the folder has no split for it, chosen by a hash of their
            paths; 0 validates on the training videos.
        cache_dir: Where to keep the index of the files; None for a hidden folder in ``root``.
        num_threads: Files indexed at once; None for one per processor.
        captions: Set videos without a caption aside: a text file beside the video, ``<video>.txt`` for ``<video>.mp4``
            or for the folder of frames ``<video>``, whose words are its caption. Captions that speak of left and right
            want ``flip=False``.

    Attributes:
        class_names: Names of the classes, empty when unlabelled.
        quarantine: Path and reason of every video that cannot be used.

    Raises:
        FileNotFoundError: When the folder or the split does not exist.
        ValueError: When no video can be used.
    """

    key: str = "video"
    folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "val": ("val", "valid", "validation"),
        "test": ("test",),
    }
    """Names that the sub-folder of each split may have."""
    labelled: ClassVar[bool] = True
    holds_out: ClassVar[bool] = True
    expected: ClassVar[str] = (
        "{root}/<video>.mp4 or {root}/<class>/<video>.mp4, or these below {root}/train and {root}/test"
    )

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
    ) -> None:
        self.root = Path(root).expanduser()
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        for name, value in (("size", min(self.size)), ("num_frames", num_frames), ("interval", interval)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if split not in get_args(Split):
            raise ValueError(f'split is "{split}"; it must be one of {", ".join(get_args(Split))}')
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout is {holdout}; it is a share of the videos, in [0, 1)")
        if not self.root.exists():
            raise FileNotFoundError(f"the folder {self.root} does not exist; set the path of the data")
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is a file; give the folder that holds the videos")
        self.num_frames, self.interval, self.split, self.flip = num_frames, interval, split, flip
        self.holdout, self.captions = holdout, captions
        layout = self.find()
        self.class_names = layout.class_names
        items = self._choose(layout.items, split, holdout)
        splits = {item.split for item in items}
        self.quarantine = [
            (path, reason) for place, path, reason in layout.problems if split == "all" or place in splits
        ]
        self._items: list[Item] = []
        self._indices = []
        needed = span(num_frames, interval)
        for item, entry in zip(items, open_index(self.root, [i.found for i in items], cache_dir, False, num_threads)):
            if entry.index is None:
                self.quarantine.append((item.found.path, entry.problem))
            elif entry.index.num_frames < needed:
                self.quarantine.append((item.found.path, too_short(entry.index.num_frames, num_frames, interval)))
            elif captions and not self._caption(item):
                self.quarantine.append((item.found.path, f"no caption in {self._caption_file(item).name} beside it"))
            else:
                self._items.append(item)
                self._indices.append(entry.index)
        self._report()

    def find(self) -> Layout:
        """Find the videos of all splits."""
        return self.layout(self.root)

    @classmethod
    def layout(cls, root: Path) -> Layout:
        """Find the videos of all splits below a root."""
        places = [
            (split, folder) for split, names in cls.folders.items() for folder in names if (root / folder).is_dir()
        ]
        items: list[tuple[Found, str, list[str]]] = []
        for split, folder in places or [("", "")]:
            for found in scan(root, folder):
                items.append((found, split, found.path.removeprefix(folder).strip("/").split("/")))
        names: list[str] = []
        if cls.labelled and items and all(len(parts) > 1 for _, _, parts in items):
            names = sorted({parts[0] for _, _, parts in items})
        return Layout([Item(f, s, names.index(p[0]) if names else 0) for f, s, p in items], names, [])

    def _choose(self, items: list[Item], split: Split, holdout: float) -> list[Item]:
        """Return the videos of one split."""
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
        """Name what is set aside.

        Raises:
            ValueError: When nothing is left.
        """
        if not self._items:
            counted = Counter(reason for _, reason in self.quarantine).most_common(3)
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counted) or (
                f"no video found, expected {self.expected.format(root=self.root)}"
            )
            raise ValueError(f"no usable video in {self.root} (split {self.split}): {reasons}")
        if self.quarantine:
            total = len(self._items) + len(self.quarantine)
            _warn(f"{len(self.quarantine)} of {total} videos of {self.root} are set aside:{listing(self.quarantine)}")

    def __len__(self) -> int:
        """Return the number of usable videos."""
        return len(self._items)

    def label(self, index: int) -> int:
        """Return the class of a video, 0 when unlabelled."""
        return self._items[index].label

    def caption(self, index: int) -> str:
        """Return the caption of a video, "" when it has none."""
        return self._caption(self._items[index])

    def _caption(self, item: Item) -> str:
        path = self._caption_file(item)
        return " ".join(path.read_text(encoding="utf-8-sig", errors="replace").split()) if path.is_file() else ""

    def _caption_file(self, item: Item) -> Path:
        path = self.root / item.found.path
        return path.with_name(f"{path.name if item.found.names else path.stem}.txt")

    def path(self, index: int) -> str:
        """Return the path of a video below the root."""
        return self._items[index].found.path

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._indices[index].num_frames

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip (F, 3, H, W) uint8; start and mirroring are drawn from ``rng`` (see `draw_view`)."""
        view = draw_view(self.length(index), num_frames, interval, self.flip, rng)
        clip = self.frames(index, view.start, num_frames, interval)
        return mirror(clip) if view.mirrored else clip

    def frames(self, index: int, start: int, num_frames: int, interval: int = 1) -> Tensor:
        """Return the frames start, start + interval, ... (F, 3, H, W) uint8, never mirrored."""
        path, inside = self.root / self.path(index), self._indices[index]
        if isinstance(inside, FrameFolder):
            last = start + (num_frames - 1) * interval
            if start < 0 or last >= inside.num_frames:
                raise ValueError(f"frames {start} to {last} were asked of {path}, which has {inside.num_frames}")
            names = inside.names.split("/")[start : last + 1 : interval]
            return to_clip(read_frames(path, names, self.size), self.size)
        box = centre_box(inside.height, inside.width, self.size)
        return to_clip(read_video(path, inside, start, num_frames, interval, box), self.size)

    def weights(self, kind: Sampling) -> NDArray[np.float64] | None:
        """Return the probability of each video in training; see `sampling_weights`."""
        lengths, labels = [i.num_frames for i in self._indices], [item.label for item in self._items]
        return sampling_weights(kind, lengths, labels, bool(self.class_names), span(self.num_frames, self.interval))

    def members(self, split: Split) -> list[int]:
        """Return the numbers that the usable videos of a split have in this data set, in that split's order.

        Raises:
            FileNotFoundError: When there is no such split.
        """
        numbers = {item.found.path: number for number, item in enumerate(self._items)}
        chosen = self._choose(self.find().items, split, self.holdout)
        return [numbers[item.found.path] for item in chosen if item.found.path in numbers]

    def fingerprint(self) -> str:
        """Return a hash of what can be read: the files, their order, the size of the pictures, captions."""
        captions = [self._caption(item) for item in self._items] if self.captions else []
        return _hash([repr(self.size), *(f"{i.found.path}\n{i.found.signature}" for i in self._items), *captions])


def too_short(length: int, num_frames: int, interval: int) -> str:
    """Return why a video of ``length`` frames is not used."""
    return f"too short: {length} frames, {num_frames} at interval {interval} need {span(num_frames, interval)}"


def listing(quarantine: Sequence[tuple[str, str]]) -> str:
    """Return paths and reasons, a line each; of very many the first."""
    lines = [f"\n  {path}: {reason}" for path, reason in quarantine[:SHOWN]]
    rest = len(quarantine) - len(lines)
    return "".join(lines) + (f"\n  and {rest} more; `latte data check` names them all" if rest else "")


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()
