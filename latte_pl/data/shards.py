"""Shards of a latent cache: safetensors files whose frames carry checksums.

A shard has one float16 tensor per video, named by the index of the video: (F, V, 2C, h, w), the unscaled mean and
log-variance of every frame in V views. View 0 is the frame, view 1 the horizontally flipped frame. Caches with captions
also contain INDEX.text (n, E), the embeddings of the n tokens of the video's caption. INDEX.crc32 holds the CRC-32 of
each frame and view, in their order, and then of the caption's embeddings; shards of earlier versions have none.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

BLOCK = 1 << 22  # bytes hashed at a time
CHECKSUMS = "frames"  # in the metadata of a shard: how its frames are checked
DTYPES = {"F16": "<f2", "U32": "<u4"}


class Checked(NamedTuple):
    """Values of a cache, and the CRC-32 of each index of their first dimension; None in caches without checksums."""

    values: NDArray[np.float16]
    checksums: NDArray[np.uint32] | None

    def is_intact(self) -> bool:
        """Whether the values match their checksums."""
        return self.checksums is None or crc32(self.values) == self.checksums.tolist()


def crc32(values: NDArray[np.float16]) -> list[int]:
    """Return the CRC-32 of each index of the first dimension."""
    return [zlib.crc32(np.ascontiguousarray(value).data) for value in values]


def of_frames(checksums: NDArray[np.uint32], num_frames: int, num_views: int) -> NDArray[np.uint32]:
    """Return the checksums (F, V) of the frames of a video, without that of its caption."""
    return checksums[: num_frames * num_views].reshape(num_frames, num_views)


class LocalShards:
    """Tensors of safetensors files in a folder, mapped to memory.

    Args:
        folder: The cache.
    """

    cure = "run `latte encode` again"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def header(self, name: str) -> dict[str, Any]:
        """Return the metadata of a shard, of which the size is checked."""
        with safe_open(self.folder / name, "np") as file:
            return {"__metadata__": file.metadata() or {}}

    def frames(self, name: str, key: str, steps: slice, view: int) -> Checked:
        """Return the moments of some frames of a video (F, 2C, h, w) and their checksums."""
        with self._open(name) as file:  # mapped to memory, not read
            stored = file.get_slice(key)
            frames = np.ascontiguousarray(stored[steps.start : steps.stop, view][:: steps.step])
            if CHECKSUMS not in (file.metadata() or {}):
                return Checked(frames, None)
            num_frames, num_views = stored.get_shape()[:2]
            return Checked(frames, of_frames(file.get_tensor(f"{key}.crc32"), num_frames, num_views)[steps, view])

    def tokens(self, name: str, key: str) -> Checked:
        """Return the embeddings of a caption (1, n, E) and their checksum."""
        with self._open(name) as file:
            checked = CHECKSUMS in (file.metadata() or {})
            tokens = file.get_tensor(f"{key}.text")[None]
            return Checked(tokens, file.get_tensor(f"{key}.crc32")[-1:] if checked else None)

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self.folder / name, "np") as file:
                yield file
        except SafetensorError as error:  # replaced since its header was checked
            raise ValueError(f"{self.folder / name} is damaged ({error}); run `latte encode` again") from error


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.safetensors"


class ShardWriter:
    """Write a safetensors file piece by piece, with its checksum in the header.

    Until `close` is called, the data is in a file beside ``path`` whose name ends in ``.part``.

    Args:
        path: The file.
        shapes: Name and shape of each tensor, in the order in which their values will be written. Those whose name
            ends in ".crc32" are uint32.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64, CHECKSUMS: "crc32"}}
        self._remaining = 0
        for name, shape in shapes.items():
            dtype = "U32" if name.endswith(".crc32") else "F16"
            size = np.dtype(DTYPES[dtype]).itemsize * int(np.prod(shape))
            start, self._remaining = self._remaining, self._remaining + size
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self._remaining]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._checksum_position = 8 + text.index(b"0" * 64)
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self._part.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, values: NDArray[np.float16] | NDArray[np.uint32]) -> None:
        """Append values to the current tensor, and continue with the next when it is full."""
        data = np.ascontiguousarray(values).tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._remaining -= len(data)

    def close(self) -> None:
        """Write the checksum, flush the file to the disk and rename it to its final name."""
        assert self._remaining == 0, "values are missing"
        self._file.seek(self._checksum_position)
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)


def checksum(path: Path) -> str | None:
    """Return the checksum in the header of a shard; None if the data does not match it."""
    try:
        with safe_open(path, "np") as file:
            expected = (file.metadata() or {}).get("sha256")
        with path.open("rb") as file:
            file.seek(8 + struct.unpack("<Q", file.read(8))[0])
            digest = hashlib.sha256()
            while block := file.read(BLOCK):
                digest.update(block)
    except (OSError, SafetensorError):
        return None
    return expected if digest.hexdigest() == expected else None
