"""Files of the Hugging Face Hub: addresses, the official weights by name, downloads that are checked, and uploads.

The variables of `huggingface_hub` apply: ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_TOKEN``, and the
proxies of the environment.
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

WEIGHTS = "model.safetensors"
"""File of the weights in a repository, also where an address names no file."""
CONFIG = "config.json"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Address:
    """A place in a repository of the hub, written as ``hf://OWNER/REPO/FILE[@REVISION]``.

    Args:
        repo: OWNER/REPO.
        path: File or folder in the repository; empty for all of it.
        revision: Branch, tag or commit; None is the default branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str | Path) -> Self:
        """Parse an address.

        Raises:
            ValueError: The text is no address.
        """
        # a Path has one slash
        found = re.fullmatch(r"hf:/{1,2}(\w[\w.-]*/\w[\w.-]*)(?:/([^@]+?))?/?(?:@([^@\s]+))?", str(text))
        if found is None or ".." in (found[2] or "").split("/"):
            raise ValueError(f"{str(text)!r} is no address of the hub; write hf://OWNER/REPO/FILE or with @REVISION")
        return cls(found[1], found[2] or "", found[3])

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"hf://{self.repo}{path}{f'@{self.revision}' if self.revision else ''}"


@dataclass(frozen=True)
class Release:
    """Weights that the authors of Latte published.

    Args:
        address: Place of the file.
        sha256: Checksum of the file; None where it is not known. The checksum that the hub states is always checked.
        data: Shipped configuration of the data set that they were trained on.
        guidance: Scale of classifier-free guidance with which the authors sample.
    """

    address: Address
    sha256: str | None
    data: str
    guidance: float = 1.0


OFFICIAL = {
    "official/ffs": Release(Address("maxin-cn/Latte", "ffs.pt"), None, "data/faceforensics.yaml"),
    "official/skytimelapse": Release(Address("maxin-cn/Latte", "skytimelapse.pt"), None, "data/skytimelapse.yaml"),
    "official/taichi": Release(Address("maxin-cn/Latte", "taichi-hd.pt"), None, "data/taichi.yaml"),
    "official/ucf101": Release(Address("maxin-cn/Latte", "ucf101.pt"), None, "data/ucf101.yaml", guidance=7.0),
}
"""The official weights by name."""


def is_address(name: str | Path) -> bool:
    """Whether a name begins like an address of the hub."""
    return str(name).startswith("hf:/")


def is_remote(name: str | Path) -> bool:
    """Whether a name is an address of the hub or the name of official weights, and no file of this machine."""
    return is_address(name) or (str(name) in OFFICIAL and not Path(name).exists())


def find(name: str | Path) -> Path:
    """Return the file of a name: itself, or a download where the name is an address or that of official weights.

    Raises:
        FileNotFoundError: The hub has no such file, or cannot be reached.
        ValueError: The address or the checksum is wrong.
    """
    if not is_remote(name):
        return Path(name)
    if is_address(name):
        return download(Address.parse(name))
    release = OFFICIAL[str(name)]
    return download(release.address, release.sha256)


@functools.cache  # a command asks for its checkpoint several times
def download(address: Address, sha256: str | None = None, folder: Path | None = None, kind: str = "model") -> Path:
    """Return a file of the hub, after downloading it where it is missing or has changed. Interrupted downloads resume.

    The checksum of a download is compared with the one that the hub states, which it does for all large files.

    Args:
        address: Place of the file; `WEIGHTS` if it names none.
        sha256: Checksum to compare the file with as well, each time.
        folder: Where to download to; None is the cache of the hub.
        kind: "model" or "dataset", the kind of the repository.

    Raises:
        FileNotFoundError: The hub has no such file, or cannot be reached and the file is not there yet.
        ValueError: A checksum differs; the file is deleted.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    name = address.path or WEIGHTS
    place: dict[str, Any] = {"repo_id": address.repo, "revision": address.revision, "repo_type": kind}
    before = try_to_load_from_cache(filename=name, **place)
    try:
        path = Path(hf_hub_download(filename=name, local_dir=folder, **place))
    except Exception as error:  # also those of the HTTP library, which differs between versions
        missing = Address(address.repo, name, address.revision)
        raise FileNotFoundError(f"{missing} cannot be downloaded: {reason(error)}") from error
    blob = path.resolve()  # the cache names large files by their checksum
    stated = blob.name if SHA256.fullmatch(blob.name) and str(path) != before else None
    for expected in {sha256, stated} - {None}:
        if (found := digest(path)) != expected:
            blob.unlink()
            path.unlink(missing_ok=True)
            raise ValueError(
                f"{address} has sha256 {found}, expected {expected}; the file is deleted, download it again"
            )
    return path


def files(address: Address, kind: str = "model") -> dict[str, str | None]:
    """Return the files of a repository with the checksums that the hub states, which are those of large files.

    Raises:
        FileNotFoundError: The hub has no such repository, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = list(HfApi().list_repo_tree(address.repo, recursive=True, revision=address.revision, repo_type=kind))
    except Exception as error:
        raise FileNotFoundError(f"{address} cannot be listed: {reason(error)}") from error
    return {file.path: file.lfs.sha256 if file.lfs else None for file in tree if isinstance(file, RepoFile)}


def push(folder: Path, repo: str, message: str, private: bool | None = None, revision: str | None = None) -> str:
    """Upload the files of a folder to a repository, which is created if necessary, and return its address.

    Args:
        folder: The folder.
        repo: OWNER/REPO.
        message: Message of the commit.
        private: Whether a new repository is private; None is the default of the owner.
        revision: Branch; None is the default branch.

    Raises:
        OSError: The upload fails, for example without a token (``hf auth login``).
        ValueError: The name of the repository is wrong.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ValueError(f"{repo!r} is no repository of the hub; write OWNER/REPO")
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, revision=revision)
    except Exception as error:
        raise OSError(f"{repo} cannot be uploaded: {reason(error)}") from error
    return f"{api.endpoint}/{repo}"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """Return why the hub failed, in a few words, with what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "access has to be granted on its page, and needs a token (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private and needs a token (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "the repository has no such file"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set and the file is not in the cache"
        return f"{constants.ENDPOINT} cannot be reached and the file is not in the cache; check network and proxies"
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__}"
