"""UCF101: 13,320 videos of 101 human actions, XviD AVI files of 320 x 240 pixels at 25 frames per second."""

import re
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import VIDEO_SUFFIXES, Found, scan
from latte_pl.data.layout import MEDIA_WORDS, Item, Layout, is_split_name, join, subfolders, words
from latte_pl.data.official import OfficialReading
from latte_pl.data.videos import VideoFiles

LISTS = "ucfTrainTestlist"
ARCHIVE = "UCF101TrainTestSplits-RecognitionTask"  # the folder that some tools unpack the lists into
SPLITS = {name: split for split, names in VideoFolder.folders.items() for name in names}


class UCF101Videos(VideoFolder):
    """UCF101 as it is distributed: ``UCF-101/<Class>/v_*.avi`` and the split lists in ``ucfTrainTestlist/``.

    The copies that circulate also work: class folders below ``train``, ``val`` and ``test``, which are then the splits;
    folders of frames instead of the videos; and folders of frames without class folders, since the class is in the
    name of a video. If there are videos and their frames, the videos are used. Pixels are used as stored, as in
    published results.

    Labels start at 0 and follow the order of ``classInd.txt``, which is alphabetical and ignores case. (Sorting the
    folders by character code, as some code bases do, swaps HammerThrow with Hammering and JumpRope with JumpingJack.)
    "val" is the same as "test", and "all" needs no lists.

    Args:
        root: The folder that contains ``UCF-101`` and the lists, or ``UCF-101`` itself with the lists beside it.
        fold: Number of the official split, 1 to 3.
        kwargs: Arguments of `VideoFolder`.

    Raises:
        ValueError: There is no such fold.
    """

    folders: ClassVar[dict[str, tuple[str, ...]]] = {}
    holds_out: ClassVar[bool] = False
    square_pixels: ClassVar[bool] = False
    official = OfficialReading(spread=True, fit="resize")
    expected: ClassVar[str] = (
        "{root}/UCF-101/<Class>/v_*.avi with {root}/ucfTrainTestlist/trainlist01.txt and testlist01.txt beside it, or "
        '{root}/train/<Class>/v_*.avi and {root}/test/<Class>/v_*.avi; split "all" needs no lists'
    )

    def __init__(self, root: str | Path, fold: int = 1, **kwargs: Any) -> None:
        if fold not in (1, 2, 3):
            raise ValueError(f"fold is {fold}; it must be 1, 2 or 3")
        self.fold = fold
        super().__init__(root, **kwargs)

    def _layout(self) -> Layout:
        return self.layout(self.root, self.fold)

    @classmethod
    def layout(cls, root: Path, fold: int = 1) -> Layout:
        """Find the videos of all splits, without opening them, and look up their split in the lists of a fold."""
        folder = _videos_folder(root)
        lists = _lists_folder(root, folder)
        videos = _unique(root, [_locate(found, folder) for found in scan(root, folder)])
        names = _class_names(lists) or sorted({video.kind for video in videos if video.kind}, key=str.casefold)
        labels = {name: label for label, name in enumerate(names)}
        if videos and not any(video.kind in labels for video in videos):
            raise ValueError(
                f"no usable video in {root}: {len(videos)} videos are not in a class folder; found "
                f"{root / videos[0].found.path}, expected {cls.expected.format(root=root)}"
            )
        splits: dict[str, str] = {}
        problems: list[tuple[str, str, str]] = []
        if not any(video.split for video in videos):
            splits, problems = _listed_splits(lists, fold, {f"{video.kind}/{video.name}" for video in videos})
        items = []
        for video in videos:
            split = video.split or splits.get(f"{video.kind}/{video.name}", "")
            if video.kind in labels:
                items.append(Item(video.found, split, labels[video.kind]))
            else:
                problems.append((split, video.found.path, "not in a class folder"))
        return Layout(items, names, problems)


class _Video(NamedTuple):
    """A video and what its path says: its split, its class ("" if unknown) and its name without suffix."""

    found: Found
    split: str
    kind: str
    name: str


def _locate(found: Found, folder: str) -> _Video:
    """Read split and class from the path of a video below ``folder``."""
    *parents, last = found.path.removeprefix(folder).strip("/").split("/")
    name = last if Path(last).suffix.lower() not in VIDEO_SUFFIXES else Path(last).stem
    named = re.fullmatch(r"v_(\w+)_g\d+_c\d+", name)
    split = next((SPLITS[part.lower()] for part in parents if part.lower() in SPLITS), "")
    parent = parents[-1] if parents else ""
    if not parent or is_split_name(parent) or words(parent) <= MEDIA_WORDS or _fold(parent) == "ucf":
        kind = named[1].replace("HandStand", "Handstand") if named else ""  # the one class that is spelled differently
    elif named and _fold(named[1]) != _fold(parent):
        kind = ""
    else:
        kind = parent
    return _Video(found, split, kind, name)


def _fold(name: str) -> str:
    return re.sub(r"[\W\d_]", "", name).casefold()


def _unique(root: Path, videos: list[_Video]) -> list[_Video]:
    """Drop the frames of videos that are also there as files.

    Raises:
        ValueError: A video is there twice.
    """
    kept: dict[tuple[str, str, str], _Video] = {}
    for video in sorted(videos, key=lambda video: bool(video.found.names)):  # files before frames
        first = kept.setdefault(video[1:], video)
        if first is not video and bool(first.found.names) == bool(video.found.names):
            raise ValueError(
                f"{root} contains {video.name} twice ({first.found.path}, {video.found.path}); use one of these folders"
            )
    return [video for video in videos if kept[video[1:]] is video]


def _videos_folder(root: Path) -> str:
    """Return the folder ``UCF-101`` below the root; "" if there is none."""
    places = ["UCF-101", *(join(name, "UCF-101") for name in subfolders(root))]
    return next((place for place in places if (root / place).is_dir()), "")


def _lists_folder(root: Path, folder: str) -> Path:
    """Return the folder of the split lists; it need not exist."""
    above = (root / folder).parent if folder else root.resolve().parent
    places = [place / name for place in (root, above) for name in (LISTS, f"{ARCHIVE}/{LISTS}")]
    return next((place for place in places if place.is_dir()), root / LISTS)


def _listed_splits(lists: Path, fold: int, existing: set[str]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Read the lists of a fold.

    Args:
        lists: Folder of the lists.
        fold: Number of the official split.
        existing: The videos as ``<Class>/<name>``.

    Returns:
        The split of each listed video; and split, path and reason of each listed video that does not exist.
    """
    splits: dict[str, str] = {}
    problems: list[tuple[str, str, str]] = []
    for split in ("train", "test"):
        path = lists / f"{split}list{fold:02}.txt"
        for line in path.read_text().splitlines() if path.is_file() else ():
            if line.strip():
                file = line.split()[0]
                name = Path(file).with_suffix("").as_posix()
                splits[name] = split
                if name not in existing:
                    problems.append((split, file, f"listed in {path.name} but not on disk"))
    return splits, problems


def _class_names(lists: Path) -> list[str]:
    """Read the class names from ``classInd.txt``, whose lines are a number from 1 and a name; [] without the file."""
    path = lists / "classInd.txt"
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    return [name for _, name in sorted((int(number), name) for number, name in rows)]


class UCF101(VideoFiles):
    """UCF101 as it is distributed, with 101 classes of human actions.

    Labels follow the official ``classInd.txt``. The official code of Latte sorts the class folders by character code,
    which swaps HammerThrow with Hammering and JumpRope with JumpingJack. Take this into account with its weights.

    Args:
        root: The folder that contains ``UCF-101`` and ``ucfTrainTestlist``.
        fold: Number of the official split; ``split="all"`` ignores it.
        kwargs: Arguments of `VideoFiles`.
    """

    dataset_class = UCF101Videos
    num_classes: ClassVar[int | None] = 101

    def __init__(self, root: str, fold: Literal[1, 2, 3] = 1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"fold": fold}
