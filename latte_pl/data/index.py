"""Finding the videos below a folder and remembering, between runs, what is inside each."""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
from tqdm import tqdm

from latte_pl.data.decoding import EntryPoint, VideoIndex, index_video
from latte_pl.data.frames import IMAGE_SUFFIXES, FrameFolder, index_frames, order_frames

_SUFFIXES = """.mp4 .m4v .mov .qt .avi .divx .mkv .webm .mpg .mpeg .m1v .m2v .mpv .vob .ts .mts .m2ts .wmv .asf .flv
 .f4v .ogv .3gp .3g2 .gif .rm .rmvb .swf .mxf .nut .y4m .h264 .264 .hevc .265 .ivf .dv .mjpeg"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
FOLDER = ".latte_index"
FORMAT = f"1, libavcodec {av.library_versions['libavcodec']}, libavformat {av.library_versions['libavformat']}"
SAVE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """One video as the file system shows it.

    Attributes:
        path: Relative to the root of the data set, with "/" between folders.
        names: The image files of a frame folder joined by "/"; "" for a video file.
        signature: Changes when a file is replaced, edited, added or removed.
    """

    path: str
    names: str
    signature: str


@dataclass(frozen=True)
class Entry:
    """What is inside one video: an index, or the reason why it is unusable."""

    index: VideoIndex | FrameFolder | None
    problem: str = ""
    thorough: bool = True
    """Whether every image of a frame folder was decoded; video files always are."""


def scan(root: Path, below: str = "") -> list[Found]:
    """Find video files and frame folders below ``root / below``, in the order of their paths.

    A folder that holds images and no video file is one video. Hidden files and folders, and files that are neither,
    are passed over; links are followed.
    """
    found = list(_walk(root, below, ()))
    if len(found) > 1:  # pictures beside the class folders are covers, not a video
        found = [video for video in found if video.path != below]
    return sorted(found, key=lambda video: video.path.split("/"))


def _walk(root: Path, folder: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    stat = os.stat(root / folder)
    if (stat.st_dev, stat.st_ino) in ancestors:  # a link back up
        return
    images: list[tuple[str, int, int]] = []
    videos: list[Found] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                continue
            path = f"{folder}/{entry.name}".lstrip("/")
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                yield from _walk(root, path, (*ancestors, (stat.st_dev, stat.st_ino)))
            elif suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
                try:
                    size, changed = entry.stat().st_size, entry.stat().st_mtime_ns
                except OSError:  # a link to nowhere: reported when it is opened
                    size = changed = -1
                if suffix in VIDEO_SUFFIXES:
                    videos.append(Found(path, "", f"{size}-{changed}"))
                else:
                    images.append((entry.name, size, changed))
    yield from videos
    if images and not videos:
        images.sort()
        yield Found(folder, "/".join(i[0] for i in images), f"{len(images)}-{zlib.crc32(repr(images).encode()):08x}")


def open_index(
    root: Path,
    found: Sequence[Found],
    cache_dir: str | Path | None = None,
    thorough: bool = False,
    num_threads: int | None = None,
) -> list[Entry]:
    """Return what is inside each video, from the cache where a video has not changed since.

    The cache is ``.latte_index/`` in the root, or below ``cache_dir`` or the user's cache folder when the root cannot
    be written. It is replaced atomically, and saved every half minute, so an interrupted run goes on where it was.

    Args:
        root: Root of the data set.
        found: Its videos.
        cache_dir: Where to keep the index instead.
        thorough: Decode every image of frame folders too.
        num_threads: Files read at once; None for one per processor that this process may use.
    """
    places = _places(root, cache_dir)
    known = _load(places)
    result: dict[str, Entry] = {}
    for video in found:
        signature, entry = known.get(video.path, ("", Entry(None)))
        if signature == video.signature and (entry.thorough or not thorough):
            result[video.path] = entry
    missing = [video for video in found if video.path not in result]
    if missing:
        threads = num_threads or _processors()
        saved = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:  # the decoders release the interpreter lock
            futures = {pool.submit(_inspect, root, video, thorough): video for video in missing}
            try:
                for future in tqdm(as_completed(futures), f"indexing {root.name}", len(missing), unit="video"):
                    video = futures[future]
                    known[video.path] = (video.signature, future.result())
                    if time.monotonic() - saved > SAVE_SECONDS:
                        _save(places, known)
                        saved = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)  # after an interrupt: nothing new begins, what is done is kept
                for future, video in futures.items():
                    if not future.cancelled() and future.exception() is None:
                        known[video.path] = (video.signature, future.result())
                _save(places, known)
        result |= {video.path: known[video.path][1] for video in missing}
    return [_with_names(result[video.path], video) for video in found]


def _processors() -> int:
    """Return how many processors this process may use, which on a shared machine is fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inspect(root: Path, video: Found, thorough: bool) -> Entry:
    try:
        if video.names:
            return Entry(index_frames(root / video.path, video.names.split("/"), thorough), thorough=thorough)
        if os.path.getsize(root / video.path) == 0:
            return Entry(None, "zero bytes")
        return Entry(index_video(root / video.path))
    except OSError as error:
        return Entry(None, f"cannot be opened ({error.strerror or error})")
    except ValueError as error:
        return Entry(None, str(error), thorough=True)


def _with_names(entry: Entry, video: Found) -> Entry:
    """Put back the names of a frame folder, which the cache leaves out."""
    if not isinstance(entry.index, FrameFolder):
        return entry
    names = "/".join(order_frames(video.names.split("/")))
    return Entry(FrameFolder(names, entry.index.num_frames, entry.index.height, entry.index.width))


def _places(root: Path, cache_dir: str | Path | None) -> list[Path]:
    """Return the files that may hold the index, the preferred one first."""
    name = f"{root.name}-{hashlib.sha256(str(root.resolve()).encode(errors='replace')).hexdigest()[:12]}.json"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser() / name]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / FOLDER / "index.json", user / "latte_pl" / "index" / name]


def _load(places: Sequence[Path]) -> dict[str, tuple[str, Entry]]:
    known: dict[str, tuple[str, Entry]] = {}
    for place in reversed(places):
        try:
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored["format"] == FORMAT:  # another decoder may decode otherwise: prove anew
                known |= {path: (row["signature"], _unpack(row)) for path, row in stored["videos"].items()}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the index %s is unreadable (%s) and is made anew", place, error)
    return known


def _save(places: Sequence[Path], known: dict[str, tuple[str, Entry]]) -> None:
    """Write the index to the first place that takes it; without any, the next run indexes again."""
    reasons = []
    for place in places:
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            merged = _load([place]) | known  # another process may have added videos of its own split
            rows = {path: {"signature": s, **_pack(entry)} for path, (s, entry) in merged.items()}
            part.write_text(json.dumps({"format": FORMAT, "videos": rows}, separators=(",", ":")), encoding="utf-8")
            os.replace(part, place)
            return
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            reasons.append(f"{place}: {error.strerror or error}")
    _log.warning("the index cannot be kept (%s); set cache_dir to a folder that can be written", "; ".join(reasons))


def _pack(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": entry.problem, "thorough": entry.thorough}
    if isinstance(entry.index, FrameFolder):
        row["folder"] = asdict(entry.index) | {"names": ""}
    elif entry.index is not None:
        row["file"] = asdict(entry.index) | {"entries": list(zip(*entry.index.entries))}
    return row


def _unpack(row: dict[str, Any]) -> Entry:
    index: VideoIndex | FrameFolder | None = None
    if "folder" in row:
        index = FrameFolder(**row["folder"])
    elif "file" in row:
        entries = tuple(EntryPoint(*e) for e in zip(*row["file"]["entries"]))
        index = VideoIndex(**(row["file"] | {"entries": entries}))
    return Entry(index, row["problem"], row["thorough"])
