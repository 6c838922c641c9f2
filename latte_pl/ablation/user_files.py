"""Digests of the user's files that a trial depends on: weights and data. Imports nothing that takes time."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

SOURCES = (
    "model.pretrained.source",
    "model.autoencoder.init_args.source",
    "model.text_encoder.init_args.source",
)
"""Settings that may name weights in files of the user."""
DATA = "data.init_args.root"
"""The setting that names the folder of the data."""
BLOCK = 1 << 24  # bytes that are read at a time


def contents_of(config: dict[str, Any]) -> dict[str, str]:
    """Return digests of the files that a configuration names, as settings with the suffix ``.content``.

    Weights count with the SHA-256 of their files, a run with its newest checkpoint, and data with the names and sizes
    of the files. Names that are no files, such as those of the hub, of shipped weights and of other trials, have no
    digest.

    Args:
        config: The resolved configuration.
    """
    found = {}
    for name in (*SOURCES, DATA):
        value: Any = config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        path = Path(value).expanduser() if isinstance(value, str) else None
        if path is not None and path.exists():
            found[f"{name}.content"] = _listing(path) if name == DATA else _weights(path)
    return found


def _weights(path: Path) -> str:
    """Return the digest of a file of weights, of a run's newest checkpoint, or of all files in a folder."""
    from latte_pl.training.checkpoints import checkpoints

    if path.is_dir() and (saved := checkpoints(path / "checkpoints") or checkpoints(path)):
        path = saved[-1]
    files = [path] if path.is_file() else _files(path)
    parts = []
    for file in files:
        about = file.stat()
        parts.append(f"{file.relative_to(path)} {_sha256(file.resolve(), about.st_size, about.st_mtime_ns)}")
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()


def _listing(folder: Path) -> str:
    """Return a digest of the names and sizes of all files in a folder."""
    parts = [f"{file.relative_to(folder)} {file.stat().st_size}" for file in _files(folder)]
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder in the order of their paths; hidden files and folders are not part of it."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Return the SHA-256 of a file, computed once for a size and time of change."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
