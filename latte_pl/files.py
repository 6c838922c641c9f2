"""Atomic file writes: a reader sees the previous file or the complete new one, never a part."""

import hashlib
import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextmanager
def replaced(path: Path | str) -> Iterator[Path]:
    """Replace a file atomically.

    The block writes to a temporary file beside ``path``. When the block ends, the temporary file is flushed to disk and
    renamed to ``path``. If anything fails, the temporary file is deleted and the previous file stays as it was. Several
    processes may replace the same file at once; the last rename wins. A process that is killed with SIGKILL leaves its
    temporary file behind, named ``.NAME.TOKEN.part``.

    ::

        with replaced("results/record.json") as temporary:
            temporary.write_text(text)

    Args:
        path: The file to write. Missing folders are created.

    Yields:
        The path of the temporary file, which does not exist yet.

    Raises:
        OSError: The file cannot be written, for example because the disk is full. PyTorch and safetensors report a full
            disk as RuntimeError and SafetensorError, so these are converted too.
    """
    path = Path(path)
    # a token besides the process id: hosts that share a file system have the same process ids
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path}: {reason}; the previous file, if there is one, is unchanged") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: The file to write. Missing folders are created.
        text: Its content.

    Raises:
        OSError: The file cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_intact_zip(path: Path | str) -> bool:
    """Return whether a zip file, such as one of ``torch.save``, matches the checksums in it. Reads the whole file.

    Raises:
        PermissionError: The file must not be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except PermissionError:
        raise
    # a damaged header may name another compression, a password or any offset
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile):
        return False


DIGEST = "content_sha256"


def write_json(path: Path | str, data: dict[str, Any], indent: int = 1) -> None:
    """Write a JSON object atomically, with the SHA-256 of its content under ``content_sha256``.

    Args:
        path: The file to write. Missing folders are created.
        data: Its content.
        indent: Spaces of a level.

    Raises:
        OSError: The file cannot be written.
    """
    data = json.loads(json.dumps(data))  # as it will be read
    write_text(path, json.dumps(data | {DIGEST: _digest(data)}, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object and compare it with its digest; an object without one is taken as it is.

    Returns:
        The content, without its digest.

    Raises:
        ValueError: The content does not match its digest, or is no JSON.
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    stated = data.pop(DIGEST, None) if isinstance(data, dict) else None
    if stated is not None and stated != _digest(data):
        raise ValueError(f"{path} was modified or damaged: its content does not match its {DIGEST}; measure again")
    return data


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
