"""What the folders of a data set say before any file is opened: its videos, their splits and their classes."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from latte_pl.data.frames import IMAGE_SUFFIXES
from latte_pl.data.index import IGNORED_FOLDERS, VIDEO_SUFFIXES, Found, contains_videos

DEPTH = 3  # levels below the root at which split folders are searched
WIDTH = 20  # folders at one level, more of them are classes or videos
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
MEDIA_WORDS = frozenset(
    (
        *("video", "videos", "clip", "clips", "image", "images", "frame", "frames", "rawframes"),
        *("jpeg", "jpegs", "jpg", "png", "rgb"),
    )
)
_OTHER_WORDS = frozenset(("", "set", "data", "split", "list"))


class Item(NamedTuple):
    """A video of a data set: where it is, its split ("" if the layout assigns none) and its class."""

    found: Found
    split: str
    label: int


class Layout(NamedTuple):
    """What the folders of a data set say, before any file is opened.

    Attributes:
        items: The videos of all splits.
        class_names: Names of the classes, empty if the videos have no labels.
        problems: Split, path and reason of each video that cannot be used because of where it is.
    """

    items: list[Item]
    class_names: list[str]
    problems: list[tuple[str, str, str]]


def join(*parts: str) -> str:
    """Join the parts of a path relative to the root."""
    return "/".join(part for part in parts if part)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in names if not name.startswith(".") and name not in IGNORED_FOLDERS)


def split_folders(folder: Path, names: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the splits of a folder and the names of their sub-folders, whose case does not matter.

    Args:
        folder: The folder.
        names: Possible names of the sub-folder of each split, in lower case.
    """
    existing = {name.lower(): name for name in subfolders(folder)}
    return [(split, existing[name]) for split, options in names.items() for name in options if name in existing]


def find_splits(root: Path, names: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the splits of a data set and the paths of their folders, which may be inside of another folder.

    Args:
        root: Root of the data set.
        names: Possible names of the folder of each split, in lower case.

    Returns:
        Split and path relative to the root; empty if there are no split folders.

    Raises:
        ValueError: Several folders have split folders.
    """
    level = [""]
    for _ in range(DEPTH):
        having = [place for place in level if split_folders(root / place, names)]
        if len(having) > 1:
            raise ValueError(f"{root} contains several data sets: {', '.join(having)}; use one of these folders")
        if having:
            if any(contains_videos(root, place) for place in level if place not in having):
                return []  # the folders at this level are classes
            return [(split, join(having[0], name)) for split, name in split_folders(root / having[0], names)]
        level = [join(place, name) for place in level for name in subfolders(root / place)]
        if len(level) > WIDTH:
            break
    return []


def unused_folders(root: Path, splits: list[tuple[str, str]]) -> list[str]:
    """Return the folders that contain videos and are beside the folders of the splits, from `find_splits`."""
    if not splits:
        return []
    used = {place for _, place in splits}
    above = splits[0][1].rpartition("/")[0]
    places = [join(above, name) for name in subfolders(root / above)]
    return [place for place in places if place not in used and contains_videos(root, place)]


def media_folder(root: Path, place: str, preferred: tuple[str, ...] = ()) -> str:
    """Return the folder below ``place`` that contains its videos, if ``place`` divides them by kind.

    Args:
        root: Root of the data set.
        place: A folder, relative to the root.
        preferred: Names of sub-folders that contain the videos of the data set, whatever is beside them.

    Returns:
        ``<place>/videos`` if there are only folders such as "videos" and "images" (the frames of the same videos);
        ``<place>/<preferred>`` if it exists; else ``place``.
    """
    names = subfolders(root / place)
    for name in names:
        if name.lower() in preferred:
            return media_folder(root, join(place, name), preferred)
    if names and all(words(name) <= MEDIA_WORDS for name in names) and not _has_media(root / place):
        videos = [name for name in names if words(name) & {"video", "videos"}] or names
        if len(videos) == 1:
            return media_folder(root, join(place, videos[0]), preferred)
    return place


def _has_media(folder: Path) -> bool:
    """Whether there are videos or images directly in a folder."""
    with os.scandir(folder) as entries:
        suffixes = {os.path.splitext(entry.name)[1].lower() for entry in entries if not entry.is_dir()}
    return bool(suffixes & (VIDEO_SUFFIXES | IMAGE_SUFFIXES))


def words(name: str) -> frozenset[str]:
    """Return the lower-case words in the name of a folder, without numbers."""
    return frozenset(re.sub(r"\d+$", "", word) for word in re.split(r"[ _.-]+", name.lower())) - {""}


def is_split_name(name: str) -> bool:
    """Whether the name of a folder is that of a split, such as "train" or "test_videos", so that it is no class."""
    found = words(name)
    return bool(found & SPLIT_WORDS) and found <= SPLIT_WORDS | MEDIA_WORDS | _OTHER_WORDS


def other_files(root: Path, limit: int = 1000) -> str:
    """Return the most frequent suffix of the files below a folder, such as ".parquet"; "" if there are no files."""
    suffixes: Counter[str] = Counter()
    for _, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes.update(Path(name).suffix for name in files if not name.startswith("."))
        if suffixes.total() > limit:
            break
    del suffixes[""]
    return max(suffixes, key=lambda suffix: suffixes[suffix], default="")
