"""Download the data sets that can be fetched: `latte data download NAME ROOT`."""

import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from latte_pl import hub

FOLDER = ".download"
"""Hidden folder below the root with unfinished downloads and the names of finished ones."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        licence: What its user has to know and to agree to.
        repo: Repository of data on the hub, OWNER/REPO; empty if there is none.
        urls: Address of each file that is downloaded from elsewhere, with its SHA-256; None where it is not known.
    """

    licence: str
    repo: str = ""
    urls: dict[str, str | None] = field(default_factory=dict)


YOUTUBE = (
    "The videos come from YouTube, and no open licence is known: their authors keep their rights. Use them for "
    "research only, and do not redistribute them."
)
SOURCES = {
    "ucf101": Source(
        "UCF101 (Soomro, Zamir and Shah 2012, https://www.crcv.ucf.edu/data/UCF101.php) is offered for research. "
        f"{YOUTUBE}",
        urls={
            "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar": None,
            "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip": None,
        },
    ),
    "faceforensics": Source(
        "FaceForensics (Rössler et al. 2018, https://github.com/ondyari/FaceForensics) may be used by those who have "
        "signed its terms of use, for research that is not commercial. The hub has a copy of Latte's authors. If you "
        "agree, you state that you have signed the terms.",
        repo="maxin-cn/FaceForensics",
    ),
    "skytimelapse": Source(
        "SkyTimelapse (Xiong et al. 2018, https://github.com/weixiong-ur/mdgan), as a copy of Latte's authors. "
        f"{YOUTUBE}",
        repo="maxin-cn/SkyTimelapse",
    ),
    "taichi": Source(
        "Taichi-HD (Siarohin et al. 2019, https://github.com/AliaksandrSiarohin/first-order-model), as a copy of "
        f"Latte's authors. {YOUTUBE}",
        repo="maxin-cn/Taichi-HD",
    ),
}
"""Data sets that can be downloaded."""
ELSEWHERE = {
    "shapes": "the moving shapes are drawn during training; there is nothing to download (-c data/shapes.yaml)",
    "folder": "put your own videos into a folder, and train with -c data/folder.yaml --data.root FOLDER",
}
"""What to do for the other data sets."""
TOOLS = {
    "rar": (
        ("unrar", "x", "-o+", "-idq", "{file}", "{root}/"),
        ("bsdtar", "-xf", "{file}", "-C", "{root}"),
        ("7z", "x", "-y", "-o{root}", "{file}"),
    ),
    "split zip": (("7z", "x", "-y", "-o{root}", "{file}"), ("7zz", "x", "-y", "-o{root}", "{file}")),
}
"""Programs that unpack what Python cannot, the first one that is installed is used."""


def licence(name: str) -> str:
    """Return what the user of a data set has to agree to.

    Raises:
        ValueError: The data set cannot be downloaded; the message says what to do.
    """
    if name in ELSEWHERE:
        raise ValueError(ELSEWHERE[name])
    if name not in SOURCES:
        raise ValueError(f"unknown data set {name}; those that can be downloaded are {', '.join(SOURCES)}")
    return SOURCES[name].licence


def download(name: str, root: str | Path) -> Path:
    """Download a data set and unpack it. An interrupted download resumes, and finished files are not fetched again.

    Args:
        name: A name in `SOURCES`.
        root: Folder of the data set, which is created if necessary.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: A file cannot be downloaded, or no program can unpack it.
        ValueError: The data set cannot be downloaded, a file has another checksum, or an archive is damaged.
    """
    licence(name)
    source, root = SOURCES[name], Path(root).expanduser()
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    address = hub.Address(source.repo) if source.repo else None
    wanted = hub.files(address, "dataset") if address else source.urls
    fetched: list[Path] = []
    for place, sha256 in wanted.items():
        name = PurePosixPath(place).name
        if name.startswith(".") or name.endswith(".md") or (folder / f"{name}.done").exists():
            continue
        if address:
            file = hub.download(hub.Address(address.repo, place), sha256, folder, "dataset")
        else:
            file = fetch(place, folder / name, sha256)
        if not is_archive(file):
            target = root / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        fetched.append(file)
    for file in fetched:  # all parts of a split archive are there
        if is_archive(file) and not is_part(file):
            unpack(file, root)
    for file in fetched:
        (folder / f"{file.name}.done").touch()
        file.unlink()
    return root


def fetch(url: str, file: Path, sha256: str | None = None) -> Path:
    """Download a file, or the rest of it, with a progress bar.

    Args:
        url: Its address.
        file: Where it goes. A part of it is kept beside it, as NAME.part.
        sha256: Its checksum; None accepts any.

    Raises:
        FileNotFoundError: It cannot be downloaded completely.
        ValueError: The checksum differs; the file is deleted.
    """
    if not file.is_file():
        part = file.with_name(f"{file.name}.part")
        done = part.stat().st_size if part.is_file() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
                done = done if response.status == 206 else 0  # a server that cannot resume sends all
                total = done + int(response.headers.get("Content-Length", 0))
                with (
                    part.open("ab" if done else "wb") as out,
                    tqdm(initial=done, total=total or None, desc=file.name, unit="B", unit_scale=True) as bar,
                ):
                    while block := response.read(CHUNK):
                        out.write(block)
                        bar.update(len(block))
            if total and part.stat().st_size != total:
                raise OSError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")
        except OSError as error:  # includes urllib's errors
            raise FileNotFoundError(
                f"{url} cannot be downloaded ({error}); run the same command again to resume, or download it in "
                f"another way and put it at {file}"
            ) from error
        part.replace(file)
    if sha256 is not None and (found := hub.digest(file)) != sha256:
        file.unlink()
        raise ValueError(f"{url} has sha256 {found}, expected {sha256}; the file is deleted, download it again")
    return file


def is_archive(file: Path) -> bool:
    """Whether a file has to be unpacked."""
    return file.name.endswith((".zip", ".rar", ".tar", ".tar.gz", ".tgz")) or is_part(file)


def is_part(file: Path) -> bool:
    """Whether a file is a part of a split zip archive, such as NAME.z01, but not the last one (NAME.zip)."""
    return file.suffix[:2] == ".z" and file.suffix[2:].isdigit()


def unpack(file: Path, root: Path) -> None:
    """Unpack an archive into a folder.

    Raises:
        FileNotFoundError: No program is installed that can unpack it.
        ValueError: The archive is damaged.
    """
    split = any(is_part(other) and other.stem == file.stem for other in file.parent.iterdir())
    try:
        if file.suffix == ".rar" or split:
            unpack_by_program(file, root, "split zip" if split else "rar")
        elif file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                for member in tqdm(archive.infolist(), f"unpacking {file.name}", unit="file"):
                    archive.extract(member, root)
        else:
            with tarfile.open(file) as tar:
                for entry in tqdm(tar, f"unpacking {file.name}", unit="file"):
                    tar.extract(entry, root, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and run the same command again") from error


def unpack_by_program(file: Path, root: Path, kind: str) -> None:
    """Unpack an archive of a kind in `TOOLS` with the first program that is installed.

    Raises:
        FileNotFoundError: None is installed.
        ValueError: The program fails.
    """
    for program, *arguments in TOOLS[kind]:
        if found := shutil.which(program):
            print(f"unpacking {file.name} with {program}")
            command = [found, *(argument.format(file=file, root=root) for argument in arguments)]
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise ValueError(f"{program} cannot unpack {file}; delete the file and run the same command again")
            return
    programs = ", ".join(program for program, *_ in TOOLS[kind])
    raise FileNotFoundError(f"{file} needs one of the programs {programs}; install one and run the same command again")
