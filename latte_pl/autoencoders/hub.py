"""Load pretrained weights from a local folder, from the cache of the Hugging Face Hub, or from the Hub."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from latte_pl.hub import CONFIG, Address, download, is_address, reason

Loaded = TypeVar("Loaded")


def load_pretrained(load: Callable[..., Loaded], source: str | Path, kind: str, files: str, example: str) -> Loaded:
    """Load a model from a local folder, else from the Hub's cache, else from the Hub.

    Args:
        load: Loads the model from ``(source, local_files_only=..., revision=..., subfolder=...)``, as the
            ``from_pretrained`` methods of diffusers and transformers do; it gets a revision and a subfolder only where
            the source names them. It raises OSError, ValueError or ImportError if it fails.
        source: Local folder, Hub name, or address hf://OWNER/REPO/FOLDER[@REVISION].
        kind: What is loaded, for error messages: "autoencoder".
        files: What a folder must contain, for error messages: "config.json and model.safetensors".
        example: A source, for error messages: "'stabilityai/sd-vae-ft-ema'".

    Raises:
        FileNotFoundError: The source is not such a folder, and it is not a Hub name that is cached or can be
            downloaded. The message is one line that says what to do.
    """
    folder = Path(source).expanduser()
    failures = (OSError, ValueError, ImportError)
    if folder.is_dir():
        try:
            return load(folder, local_files_only=True)
        except failures as error:
            raise FileNotFoundError(
                f"the folder {source} contains no {kind}; it needs {files} ({reason(error)})"
            ) from error
    name, place = str(source), {}
    if is_address(source):
        address = Address.parse(source)
        name, given = address.repo, {"subfolder": address.path, "revision": address.revision}
        place = {key: value for key, value in given.items() if value}
    elif not _is_hub_name(source):
        raise FileNotFoundError(
            f"the {kind} {str(source)!r} is not a folder; use a folder or a Hub name like {example}"
        )
    for local_files_only in (True, False):
        try:
            return load(name, local_files_only=local_files_only, **place)
        except failures as error:
            cause = error
    raise FileNotFoundError(
        f"the {kind} {str(source)!r} is not a folder, not in the Hub's cache, and cannot be downloaded; run "
        f"'hf download {name} --local-dir FOLDER' on a machine with network access and use that FOLDER as the source "
        f"({reason(cause)})"
    ) from cause


def read_config(source: str | Path) -> dict[str, Any] | None:
    """Read the ``config.json`` of a local folder or of the Hub's cache; that of an address is downloaded.

    Returns:
        The configuration, or None if there is no such file.

    Raises:
        FileNotFoundError: The file of an address cannot be downloaded.
    """
    path: Any = Path(source).expanduser() / CONFIG
    if is_address(source):
        address = Address.parse(source)
        path = download(Address(address.repo, f"{address.path}/{CONFIG}".lstrip("/"), address.revision))
    elif not path.is_file() and _is_hub_name(source):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(str(source), CONFIG)  # neither None nor its marker of absence is a path
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))


def short_name(source: str | Path) -> str:
    """Return the last part of a source's name, the same for a Hub name and for its address."""
    return Path(Address.parse(source).repo if is_address(source) else source).name


def _is_hub_name(source: str | Path) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)) is not None
