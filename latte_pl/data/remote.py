"""Shards of a latent cache at a URL (``s3://``, ``gs://``, ``hf://``, ...), with a bounded copy on this machine.

A clip is one range of bytes of a shard. The first time that a video is needed, all of its frames are fetched with one
request and kept in the copy; the videos that were not used for the longest time make room for others.
"""

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latte_pl.data.shards import CHECKSUMS, DTYPES, Checked, of_frames
from latte_pl.files import replaced

FOLDER = "LATTE_LATENTS_CACHE"
"""Environment variable: folder of the copies; ``~/.cache/latte_pl/latents`` if it is not set."""
GIGABYTES = "LATTE_LATENTS_CACHE_GB"
"""Environment variable: size of all copies together in GB, 50 if it is not set; processes share it."""


def is_remote(folder: str | Path) -> bool:
    """Return whether a cache is at a URL."""
    return "://" in str(folder)


class RemoteShards:
    """Tensors of safetensors files at a URL.

    Args:
        url: The cache, in any file system of fsspec.

    Raises:
        ValueError: The file system needs a package that is not installed, or a setting is no number.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        place = Path(os.environ.get(FOLDER, Path.home() / ".cache/latte_pl/latents")).expanduser()
        self.folder = place / "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in self.url)
        self._root = place
        size = os.environ.get(GIGABYTES, "50")
        try:
            self._limit = float(size) * 1e9
        except ValueError as error:
            raise ValueError(f"{GIGABYTES} is {size!r}; it must be a number of gigabytes") from error
        self._files: tuple[int, Any] | None = None
        self._headers: dict[str, dict[str, Any]] = {}
        self.cure = f"delete {self.folder}, its copy; if that does not help, run `latte encode` again"
        self._system()

    def _system(self) -> Any:
        """Return the file system, which a forked process has to open for itself."""
        if self._files is None or self._files[0] != os.getpid():
            import fsspec

            try:
                self._files = os.getpid(), fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
            except (ImportError, ValueError) as error:
                raise ValueError(f"{self.url} cannot be opened ({error})") from error
        return self._files[1][0]

    def _bytes(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return a range of bytes of a file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The range cannot be read.
        """
        files = self._system()
        assert self._files is not None
        data = files.cat_file(f"{self._files[1][1]}/{name}", start=start, end=end)
        if start is not None and end is not None and len(data) != end - start:
            raise OSError(f"{self.url}/{name} has {len(data)} of the bytes {start} to {end}; the cache is incomplete")
        return data

    def text(self, name: str) -> str:
        """Return a text file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return self._bytes(name).decode()

    def header(self, name: str) -> dict[str, Any]:
        """Return the header of a shard; "__metadata__" holds its checksum."""
        if name not in self._headers:
            (size,) = struct.unpack("<Q", self._bytes(name, 0, 8))
            header = json.loads(self._bytes(name, 8, 8 + size))
            self._headers[name] = header | {"offset": 8 + size}
        return self._headers[name]

    def tensor(self, name: str, key: str, part: str = "") -> NDArray[Any]:
        """Return a tensor of a video, which is mapped to memory.

        Args:
            name: The shard.
            key: The video.
            part: "" for its moments, or ".text", ".crc32".
        """
        header = self.header(name)
        neighbours = [header[key + other] for other in ("", ".text", ".crc32") if key + other in header]
        begin, end = neighbours[0]["data_offsets"][0], neighbours[-1]["data_offsets"][1]
        data = self._copy(name, key, header["offset"] + begin, header["offset"] + end)
        about = header[key + part]
        first, last = (place - begin for place in about["data_offsets"])
        return data[first:last].view(DTYPES[about["dtype"]]).reshape(about["shape"])

    def _copy(self, name: str, key: str, start: int, end: int) -> NDArray[np.uint8]:
        """Return the bytes of a video, read from its copy where there is one."""
        # the checksum in the name: a cache that is encoded again is another
        path = self.folder / f"{self.header(name)['__metadata__']['sha256'][:16]}-{key}"
        for _ in range(2):
            try:
                os.utime(path)  # used last now
                return np.memmap(path, np.uint8, "r", shape=(end - start,))
            except (FileNotFoundError, ValueError):  # not copied, or deleted by another process just now
                data = self._bytes(name, start, end)
                self._make_room(len(data))
                with replaced(path) as temporary:
                    temporary.write_bytes(data)
        return np.frombuffer(data, np.uint8)

    def _make_room(self, size: int) -> None:
        """Delete the copies that were not used for the longest time, until another one fits."""
        found = []
        for path in self._root.glob("*/*"):
            try:
                about = path.stat()
            except FileNotFoundError:  # deleted by another process
                continue
            if path.suffix == ".part" and time.time() - about.st_mtime < 600:  # another process is writing it
                continue
            found.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in found) + size
        for _, freed, path in sorted(found):
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= freed

    def frames(self, name: str, key: str, steps: slice, view: int) -> Checked:
        """Return the moments of some frames of a video (F, 2C, h, w) and their checksums."""
        stored = self.tensor(name, key)
        frames = np.array(stored[steps, view])
        if CHECKSUMS not in self.header(name)["__metadata__"]:
            return Checked(frames, None)
        return Checked(frames, of_frames(self.tensor(name, key, ".crc32"), *stored.shape[:2])[steps, view])

    def tokens(self, name: str, key: str) -> Checked:
        """Return the embeddings of a caption (1, n, E) and their checksum."""
        tokens = np.array(self.tensor(name, key, ".text"))[None]
        checked = CHECKSUMS in self.header(name)["__metadata__"]
        return Checked(tokens, self.tensor(name, key, ".crc32")[-1:] if checked else None)
