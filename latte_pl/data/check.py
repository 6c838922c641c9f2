"""The report of `latte data check`: what a data set contains, and which of its files cannot be used."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import Indexing, VideoFolder, note_lines, too_short
from latte_pl.data.index import open_index
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.transforms import span
from latte_pl.data.ucf101 import UCF101Videos

DATASETS: dict[str, type[VideoFolder]] = {
    "ucf101": UCF101Videos,
    "faceforensics": FaceForensicsVideos,
    "skytimelapse": SkyTimelapseVideos,
    "taichi": TaichiVideos,
    "folder": VideoFolder,
}
BAR = 30  # characters of the longest bar
BINS = 8  # bars of a histogram


@dataclass
class Report:
    """The result of a check.

    Attributes:
        title: The data set, its folder and the length of a clip.
        splits: Number of usable videos of each split; "" if the layout has no splits.
        classes: Number of usable videos of each class and split.
        resolutions: Number of usable videos of each (width, height).
        lengths: Number of frames of each usable video.
        skipped: Path and reason of each video that cannot be used.
        notes: Path and notes of each usable video.
        exact: Whether all videos were decoded and all images opened.
    """

    title: str
    splits: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    resolutions: Counter[tuple[int, int]] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, Sequence[str]]] = field(default_factory=list)
    exact: bool = True

    @property
    def ok(self) -> bool:
        """Whether there is a video and every video can be used."""
        return bool(self.lengths) and not self.skipped

    def __str__(self) -> str:
        """Format the report for a terminal."""
        lines = [self.title, ""]
        total = len(self.lengths)
        lines += [f"{total:,} usable videos, {sum(self.lengths):,} frames; {len(self.skipped):,} unusable", ""]
        if total:
            lines += ["split", *_bars({name or "(no split)": n for name, n in self.splits.items()}), ""]
            if self.classes:
                lines += [f"class ({len(self.classes)})", *self._class_lines(), ""]
            sizes = {f"{w} x {h}": n for (w, h), n in self.resolutions.most_common(BINS)}
            rest = sum(n for _, n in self.resolutions.most_common()[BINS:])
            lines += ["resolution", *_bars(sizes | ({"other": rest} if rest else {})), ""]
            lines += ["frames of a video", *_bars(_histogram(self.lengths)), ""]
        if notes := note_lines(self.notes):
            lines += ["notes", *(f"  {line}" for line in notes), ""]
        if not self.exact:
            lines += ["the videos were not decoded, so damage is not found; lengths are those that the files state", ""]
        if self.skipped:
            lines += ["unusable", *(f"  {path}: {reason}" for path, reason in self.skipped)]
        else:
            lines += ["every video can be used" if total else "no video found"]
        return "\n".join(lines).encode(errors="backslashreplace").decode()

    def _class_lines(self) -> list[str]:
        splits = sorted(self.splits, reverse=True)
        wide = max(map(len, self.classes))
        return [
            f"  {name:<{wide}}  " + "  ".join(f"{counts[s]:>6,} {s}".rstrip() for s in splits)
            for name, counts in self.classes.items()
        ]


def check(
    dataset: str,
    root: str | Path,
    num_frames: int = 16,
    interval: int = 3,
    cache_dir: str | Path | None = None,
    num_threads: int | None = None,
    index: Indexing = "exact",
) -> Report:
    """Open every file of a data set and report which can be used.

    Videos and images are decoded completely. Training decodes videos completely as well, but checks only the headers
    and ends of images. The results are stored in the index of the data set, so that training skips the same videos.

    Args:
        dataset: A name in `DATASETS`, or the import path of a subclass of `VideoFolder`.
        root: Folder of the data set.
        num_frames: Number of frames of a clip; shorter videos cannot be used.
        interval: Distance between two frames of a clip, in frames of the video.
        cache_dir: Folder of the index file; None stores it in a hidden folder below ``root``.
        num_threads: Number of files to read at once; None uses one thread per processor.
        index: "fast" trusts the containers and opens only the first image of a frame folder.

    Raises:
        ValueError: The data set is unknown, or its module cannot be imported.
        FileNotFoundError: The folder does not exist.
    """
    dataset_class = _dataset_class(dataset)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist")
    layout = dataset_class.layout(root)
    needed = span(num_frames, interval)
    report = Report(f"{dataset} in {root}, clips of {num_frames} frames at interval {interval} ({needed} frames)")
    report.skipped += [(file, reason) for _, file, reason in layout.problems]
    report.classes = {c: Counter() for c in layout.class_names}
    fast = index == "fast"
    entries = open_index(root, [item.found for item in layout.items], cache_dir, not fast, num_threads, fast)
    report.exact = all(entry.exact for entry in entries)
    for item, entry in zip(layout.items, entries):
        if entry.index is None:
            report.skipped.append((item.found.path, entry.problem))
        elif entry.index.num_frames < needed:
            report.skipped.append((item.found.path, too_short(entry.index.num_frames, num_frames, interval, needed)))
        else:
            report.splits[item.split] += 1
            report.resolutions[entry.index.width, entry.index.height] += 1
            report.lengths.append(entry.index.num_frames)
            report.notes.append((item.found.path, entry.index.notes))
            if layout.class_names:
                report.classes[layout.class_names[item.label]][item.split] += 1
    return report


def _dataset_class(name: str) -> type[VideoFolder]:
    if name in DATASETS:
        return DATASETS[name]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute, None) if module else None
    except Exception as error:  # the module is a user's, and importing it runs it
        raise ValueError(f"the data set {name} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(found, type) and issubclass(found, VideoFolder)):
        raise ValueError(
            f"unknown data set {name}; use {', '.join(DATASETS)}, or the import path of a subclass of VideoFolder"
        )
    return found


def _histogram(lengths: Sequence[int]) -> dict[str, int]:
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // BINS))
    counts = Counter((length - low) // width for length in lengths)
    starts = [low + k * width for k in range((high - low) // width + 1)]
    return {(f"{s}-{s + width - 1}" if width > 1 else f"{s}"): counts[k] for k, s in enumerate(starts)}


def _bars(counts: dict[str, int]) -> Iterable[str]:
    wide, most = max(map(len, counts)), max(counts.values())
    for name, count in counts.items():
        bar = "█" * max(round(BAR * count / most), 1 if count else 0)
        yield f"  {name:>{wide}}  {count:>7,}  {bar}".rstrip()
