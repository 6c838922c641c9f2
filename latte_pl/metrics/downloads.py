"""Weights of feature extractors: found at a user's path or in the cache folder, downloaded once, and verified."""

import hashlib
import os
import shutil
import urllib.request
from pathlib import Path

from latte_pl import hub
from latte_pl.files import replaced


def cache_folder() -> Path:
    """Return the folder of downloaded weights: ``$LATTE_CACHE``, or ``~/.cache/latte_pl``."""
    return Path(os.environ.get("LATTE_CACHE") or Path.home() / ".cache" / "latte_pl")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(name: str, url: str | None, sha256: str | None, path: Path | str | None = None) -> Path:
    """Return the path of a weights file, downloading it if necessary.

    The file is written atomically, so an interrupted download leaves no incomplete file and several processes may
    download it at once.

    Args:
        name: Name of the file in the cache folder.
        url: Address to download it from; None if there is none.
        sha256: Expected checksum; None accepts any file.
        path: The user's own file, or an address of the hub (hf://OWNER/REPO/FILE); None uses the cache folder.

    Raises:
        FileNotFoundError: There is no file, and it cannot be downloaded.
        ValueError: The checksum differs.
    """
    file = hub.find(path) if path is not None else cache_folder() / name
    if file.is_file():
        _verify(file, sha256, str(file))
        return file
    if path is not None or url is None:
        source = f", which can be downloaded from {url}" if url else ""
        raise FileNotFoundError(f"there is no file {file}; it must be {name}{source}")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, replaced(file) as temporary:
            with temporary.open("wb") as out:
                shutil.copyfileobj(response, out, 1 << 20)
            _verify(temporary, sha256, f"the download of {name} from {url}")
    except OSError as error:  # includes urllib's errors
        checksum = f" (sha256 {sha256})" if sha256 else ""
        raise FileNotFoundError(
            f"{file} is missing and cannot be downloaded from {url} ({error}); "
            f"download {name}{checksum} on a machine with internet access and copy it there"
        ) from error
    return file


def _verify(file: Path, sha256: str | None, what: str) -> None:
    if sha256 is not None and (found := file_sha256(file)) != sha256:
        raise ValueError(f"{what} has sha256 {found}, expected {sha256}; delete it and download the right file")
