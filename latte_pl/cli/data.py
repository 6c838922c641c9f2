"""Check or download a data set: `latte data check DATASET PATH`, `latte data download DATASET PATH`."""

import sys
from collections.abc import Sequence
from typing import Literal

from latte_pl.cli.functions import run


def main(args: Sequence[str]) -> None:
    """Run `latte data`; the exit status is 0 if every video can be used, else 1."""
    args = ["--accept_licence=true" if arg == "--accept-licence" else arg for arg in args]
    sys.exit(run("latte data", {"check": check, "download": download}, args))


def check(
    dataset: str,
    path: str,
    num_frames: int = 16,
    interval: int = 3,
    cache_dir: str | None = None,
    num_threads: int | None = None,
    index: Literal["exact", "fast"] = "exact",
) -> int:
    """Count the videos of a data set and list every file that cannot be used.

    Args:
        dataset: ucf101, faceforensics, skytimelapse, taichi, folder, or the import path of a subclass of VideoFolder.
        path: Folder of the data set.
        num_frames: Number of frames of a clip; shorter videos cannot be used.
        interval: Distance between two frames of a clip, in frames of the video.
        cache_dir: Folder of the index file. Default: a hidden folder in the folder of the data set.
        num_threads: Number of files to read at once. Default: one per processor.
        index: "exact" decodes everything. "fast" trusts what the files state and does not find damage.

    Returns:
        0 if every video can be used, else 1.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The data set is unknown.
    """
    from latte_pl.data.check import check as report_of

    report = report_of(dataset, path, num_frames, interval, cache_dir, num_threads, index)
    print(report)
    return 0 if report.ok else 1


def download(
    dataset: str,
    path: str,
    accept_licence: bool = False,
    num_frames: int = 16,
    interval: int = 3,
    index: Literal["exact", "fast"] = "exact",
) -> int:
    """Download a data set, unpack it, and check it. An interrupted download resumes.

    Args:
        dataset: ucf101, faceforensics, skytimelapse or taichi.
        path: Folder of the data set, which is created if necessary.
        accept_licence: Agree to what the command says about licence and use (--accept-licence).
        num_frames: Number of frames of a clip, for the check.
        interval: Distance between two frames of a clip, for the check.
        index: "exact" decodes everything. "fast" trusts what the files state and does not find damage.

    Returns:
        0 if every video can be used, else 1.

    Raises:
        FileNotFoundError: A file cannot be downloaded, or no program can unpack it.
        ValueError: The data set cannot be downloaded, the licence is not accepted, or a checksum is wrong.
    """
    from latte_pl.data import download as downloads

    print(downloads.licence(dataset))
    if not accept_licence:
        raise ValueError("add --accept-licence to agree, and to download")
    root = downloads.download(dataset, path)
    return check(dataset, str(root), num_frames, interval, index=index)
