"""The report behind ``latte data check``: what a data set holds and which of its files cannot be used."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import VideoFolder, too_short
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
BINS = 8


@dataclass
class Report:
    """What a check found.

    Attributes:
        title: Data set, folder and clip.
        splits: Usable videos of each split; "" where the layout has none.
        classes: Usable videos of each class and split.
        resolutions: Usable videos of each (width, height).
        lengths: Frames of each usable video.
        unusable: Path and reason.
    """

    title: str
    splits: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Counter[str]] = field(default_factory=dict)
    resolutions: Counter[tuple[int, int]] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there are videos and every one of them can be used."""
        return bool(self.lengths) and not self.unusable

    def __str__(self) -> str:
        """Format the report for a terminal."""
        lines = [self.title, ""]
        total = len(self.lengths)
        lines += [f"{total:,} usable videos, {sum(self.lengths):,} frames; {len(self.unusable):,} unusable", ""]
        if total:
            lines += ["split", *_bars({name or "(no split)": n for name, n in self.splits.items()}), ""]
            if self.classes:
                lines += [f"class ({len(self.classes)})", *self._class_lines(), ""]
            sizes = {f"{w} x {h}": n for (w, h), n in self.resolutions.most_common(BINS)}
            rest = sum(n for _, n in self.resolutions.most_common()[BINS:])
            lines += ["resolution", *_bars(sizes | ({"other": rest} if rest else {})), ""]
            lines += ["frames of a video", *_bars(_histogram(self.lengths)), ""]
        if self.unusable:
            lines += ["unusable", *(f"  {path}: {reason}" for path, reason in self.unusable)]
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
    name: str,
    path: str | Path,
    num_frames: int = 16,
    interval: int = 3,
    cache_dir: str | Path | None = None,
    num_threads: int | None = None,
) -> Report:
    """Open every file of a data set; what is found is kept in its index, so training knows it too.

    Videos are decoded to the end and images are decoded; only the latter is more than training itself checks.

    Args:
        name: One of `DATASETS`.
        path: Root of the data set.
        num_frames: Frames of a clip.
        interval: Distance between them.
        cache_dir: Where the index is kept; None for the place that training uses.
        num_threads: Files read at once; None for one per processor.

    Raises:
        ValueError: When the data set is unknown.
        FileNotFoundError: When the folder does not exist.
    """
    if name not in DATASETS:
        raise ValueError(f'no data set "{name}"; one of {", ".join(DATASETS)}')
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist")
    layout = DATASETS[name].layout(root)
    needed = span(num_frames, interval)
    report = Report(f"{name} in {root}, clips of {num_frames} frames at interval {interval} ({needed} frames)")
    report.unusable += [(file, reason) for _, file, reason in layout.problems]
    report.classes = {c: Counter() for c in layout.class_names}
    entries = open_index(root, [item.found for item in layout.items], cache_dir, True, num_threads)
    for item, entry in zip(layout.items, entries):
        if entry.index is None:
            report.unusable.append((item.found.path, entry.problem))
        elif entry.index.num_frames < needed:
            report.unusable.append((item.found.path, too_short(entry.index.num_frames, num_frames, interval)))
        else:
            report.splits[item.split] += 1
            report.resolutions[entry.index.width, entry.index.height] += 1
            report.lengths.append(entry.index.num_frames)
            if layout.class_names:
                report.classes[layout.class_names[item.label]][item.split] += 1
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``latte data check``; return 0 when every file can be used, else 1."""
    parser = argparse.ArgumentParser(
        prog="latte data check", description="Count the videos of a data set and name every file that is unusable."
    )
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("path", help="root folder of the data set")
    parser.add_argument("--num_frames", type=int, default=16, help="frames of a clip (default 16)")
    parser.add_argument("--interval", type=int, default=3, help="distance between them (default 3)")
    parser.add_argument("--cache_dir", help="where the index is kept, if not beside the data")
    parser.add_argument("--num_threads", type=int, help="files read at once (default: one per processor)")
    args = parser.parse_args(argv)
    try:
        report = check(args.dataset, args.path, args.num_frames, args.interval, args.cache_dir, args.num_threads)
    except (FileNotFoundError, ValueError) as error:
        print(f"latte data check: {error}", file=sys.stderr)
        return 1
    print(report)
    return 0 if report.ok else 1


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
