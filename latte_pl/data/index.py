"""Find the videos below a folder, and store what is inside each of them for later runs."""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from latte_pl.data.animation import ANIMATED_SUFFIXES, index_animation, is_animated
from latte_pl.data.contents import Animation, Content, EntryPoint, FrameFolder, VideoIndex
from latte_pl.data.frames import IMAGE_SUFFIXES, POINTER, index_frames, is_pointer, order_frames
from latte_pl.files import write_text

_SUFFIXES = """.mp4 .m4v .mov .qt .avi .divx .mkv .webm .mpg .mpeg .m1v .m2v .mpv .vob .ts .mts .m2ts .wmv .asf .flv
 .f4v .ogv .3gp .3g2 .gif .rm .rmvb .swf .mxf .nut .y4m .h264 .264 .hevc .265 .ivf .dv .mjpeg"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
# resource forks, thumbnails and deleted files of operating systems and network storage
IGNORED_FOLDERS = frozenset(("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"))
FOLDER = ".latte_index"
FORMAT = 2  # of the index file; files of another format are rebuilt
PEEKS = 3  # images of a folder that are opened to find out whether they are animated
SAVE_SECONDS = 30.0  # time between two saves of an index that is being built
_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A video file or frame folder that was found, before it is opened.

    Attributes:
        path: Path relative to the root of the data set, with "/" between folders.
        names: Image files of a frame folder, joined by "/"; "" for a video file.
        signature: A string that changes when a file is replaced, edited, added or removed.
    """

    path: str
    names: str
    signature: str


@dataclass(frozen=True)
class Entry:
    """The content of one video, or the reason why it cannot be used.

    Attributes:
        index: The content; None if the video cannot be used.
        problem: The reason; "" if the video can be used.
        thorough: Whether every image of a frame folder was decoded.
        exact: Whether a video file was decoded, and every image of a frame folder opened; False for a fast index.
    """

    index: Content | None
    problem: str = ""
    thorough: bool = True
    exact: bool = True


def scan(root: Path, below: str = "") -> list[Found]:
    """Find the video files and frame folders below ``root / below``, sorted by path.

    A folder that contains images and no video file is one video; if the images are animated, each of them is a video.
    Hidden files and folders are ignored, and so are files that are neither videos nor images. Links are followed.
    """
    found = list(_walk(root, below, ()))
    if len(found) > 1:  # images beside the class folders are covers, not a video
        found = [video for video in found if video.path != below]
    return sorted(found, key=lambda video: video.path.split("/"))


def contains_videos(root: Path, below: str) -> bool:
    """Whether there is a video file or frame folder below ``root / below``."""
    return next(_walk(root, below, ()), None) is not None


def _walk(root: Path, folder: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Found]:
    stat = os.stat(root / folder)
    if (stat.st_dev, stat.st_ino) in ancestors:  # a link to a folder above
        return
    images: list[tuple[str, int, int]] = []
    videos: list[tuple[str, int, int]] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in IGNORED_FOLDERS:
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                path = f"{folder}/{entry.name}".lstrip("/")
                yield from _walk(root, path, (*ancestors, (stat.st_dev, stat.st_ino)))
            elif suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
                try:
                    size, changed = entry.stat().st_size, entry.stat().st_mtime_ns
                except OSError:  # a broken link, reported when it is opened
                    size = changed = -1
                (videos if suffix in VIDEO_SUFFIXES else images).append((entry.name, size, changed))
    place = root / folder
    only_gifs = not images and len(videos) > 1 and all(name.lower().endswith(".gif") for name, _, _ in videos)
    if only_gifs and not _are_animated(place, videos):
        images, videos = videos, []
    elif images and not videos and _are_animated(place, images):
        images, videos = [], images
    for name, size, changed in videos:
        yield Found(f"{folder}/{name}".lstrip("/"), "", f"{size}-{changed}")
    if images and not videos:
        images.sort()
        yield Found(folder, "/".join(i[0] for i in images), f"{len(images)}-{zlib.crc32(repr(images).encode()):08x}")


def _are_animated(folder: Path, images: Sequence[tuple[str, int, int]]) -> bool:
    """Whether the images of a folder are animated; only the first ones are opened."""
    names = sorted(name for name, _, _ in images if os.path.splitext(name)[1].lower() in ANIMATED_SUFFIXES)
    return any(is_animated(folder / name) for name in names[:PEEKS])


def open_index(
    root: Path,
    found: Sequence[Found],
    cache_dir: str | Path | None = None,
    thorough: bool = False,
    num_threads: int | None = None,
    fast: bool = False,
) -> list[Entry]:
    """Return the content of each video, and open only the videos that are new or have changed since the last call.

    The contents are stored in an index file: in ``cache_dir`` if given, else in ``.latte_index/`` below the root, else,
    if the root is not writable, in the user's cache folder. The file is saved every half minute, so that an interrupted
    run resumes.

    Args:
        root: Root of the data set.
        found: The videos, from `scan`.
        cache_dir: Folder of the index file.
        thorough: Also decode every image of frame folders.
        num_threads: Number of files to read at once; None uses one thread per available processor.
        fast: Trust the containers: decode only the first frame of a video file and open only the first image of a frame
            folder. An exact index that exists is used.

    Returns:
        One entry for each video, in the same order.
    """
    places = _places(root, cache_dir)
    known = _load(places)
    result: dict[str, Entry] = {}
    for video in found:
        signature, entry = known.get(video.path, ("", Entry(None)))
        if signature == video.signature and (entry.thorough or not thorough) and (entry.exact or fast):
            result[video.path] = entry
    missing = [video for video in found if video.path not in result]
    if missing:
        threads = num_threads or _processors()
        saved = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:  # the decoders release the interpreter lock
            futures = {pool.submit(_inspect, root, video, thorough, fast): video for video in missing}
            try:
                for future in tqdm(as_completed(futures), f"indexing {root.name}", len(missing), unit="video"):
                    video = futures[future]
                    known[video.path] = (video.signature, future.result())
                    if time.monotonic() - saved > SAVE_SECONDS:
                        _save(places, known)
                        saved = time.monotonic()
            finally:
                pool.shutdown(cancel_futures=True)  # after an interrupt, start no new file and keep what is done
                for future, video in futures.items():
                    if not future.cancelled() and future.exception() is None:
                        known[video.path] = (video.signature, future.result())
                _save(places, known)
        result |= {video.path: known[video.path][1] for video in missing}
    return [_with_names(result[video.path], video) for video in found]


def _processors() -> int:
    """Return the number of processors that this process may use, which can be less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inspect(root: Path, video: Found, thorough: bool, fast: bool = False) -> Entry:
    from latte_pl.data.decoding import index_video

    try:
        if video.names:
            frames = index_frames(root / video.path, video.names.split("/"), thorough, fast)
            return Entry(frames, thorough=thorough, exact=not fast)
        if os.path.getsize(root / video.path) == 0:
            return Entry(None, "zero bytes")
        if is_pointer(root / video.path):
            return Entry(None, POINTER)
        if os.path.splitext(video.path)[1].lower() in IMAGE_SUFFIXES:
            return Entry(index_animation(root / video.path))
        return Entry(index_video(root / video.path, fast), exact=not fast)
    except OSError as error:
        return Entry(None, f"cannot be opened ({error.strerror or error})")
    except ValueError as error:
        return Entry(None, str(error), thorough=True)
    except Exception as error:  # one file must not end the indexing of all
        return Entry(None, f"cannot be indexed ({type(error).__name__}: {' '.join(str(error).split())})")


def _with_names(entry: Entry, video: Found) -> Entry:
    """Add the file names of a frame folder, which the index file does not store."""
    if not isinstance(entry.index, FrameFolder):
        return entry
    names = "/".join(order_frames(video.names.split("/")))
    return Entry(replace(entry.index, names=names))


def _places(root: Path, cache_dir: str | Path | None) -> list[Path]:
    """Return the possible index files, the preferred one first."""
    name = f"{root.name}-{hashlib.sha256(str(root.resolve()).encode(errors='replace')).hexdigest()[:12]}.json"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser() / name]
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [root / FOLDER / "index.json", user / "latte_pl" / "index" / name]


def _format() -> str:
    """Return the format of the index file; it includes the decoder, since another decoder may decode differently."""
    from av import library_versions

    return f"{FORMAT}, libavcodec {library_versions['libavcodec']}, libavformat {library_versions['libavformat']}"


def _load(places: Sequence[Path]) -> dict[str, tuple[str, Entry]]:
    known: dict[str, tuple[str, Entry]] = {}
    for place in reversed(places):
        try:
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored["format"] == _format():
                known |= {path: (row["signature"], _unpack(row)) for path, row in stored["videos"].items()}
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the index %s cannot be read (%s) and is rebuilt", place, error)
    return known


def _save(places: Sequence[Path], known: dict[str, tuple[str, Entry]]) -> None:
    """Write the index file to the first writable place; if there is none, warn that the next run indexes again."""
    reasons = []
    for place in places:
        merged = _load([place]) | known  # another process may have added videos
        rows = {path: {"signature": s, **_pack(entry)} for path, (s, entry) in merged.items()}
        try:
            write_text(place, json.dumps({"format": _format(), "videos": rows}, separators=(",", ":")))
            return
        except OSError as error:
            reasons.append(str(error.__cause__ or error))
    _log.warning("the index cannot be saved (%s); set cache_dir to a writable folder", "; ".join(reasons))


def _pack(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": entry.problem, "thorough": entry.thorough, "exact": entry.exact}
    if isinstance(entry.index, FrameFolder):
        row["folder"] = asdict(entry.index) | {"names": ""}
    elif isinstance(entry.index, Animation):
        row["animation"] = asdict(entry.index)
    elif entry.index is not None:
        row["file"] = asdict(entry.index) | {"entries": list(zip(*entry.index.entries))}
    return row


def _unpack(row: dict[str, Any]) -> Entry:
    index: Content | None = None
    for kind, content in (("folder", FrameFolder), ("animation", Animation), ("file", VideoIndex)):
        if kind in row:
            values = row[kind] | {"notes": tuple(row[kind]["notes"])}
            if kind == "file":
                values["entries"] = tuple(EntryPoint(*e) for e in zip(*values["entries"]))
            index = content(**values)
    return Entry(index, row["problem"], row["thorough"], row["exact"])
