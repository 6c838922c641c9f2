"""An error while training reads a video is one line that starts with the file, also in a loader process."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_videos import write_frames, write_xvid
from test_pictures import write_animation

from latte_pl import cli
from latte_pl.cli import info
from latte_pl.data.folder import VideoFolder
from latte_pl.data.stream import ClipStream


def zeros(path: Path) -> None:
    for file in [path] if path.is_file() else path.iterdir():
        file.write_bytes(bytes(file.stat().st_size))


# how a file changes after it was indexed, and a pattern of the error
CHANGES: list[tuple[str, Callable[[Path], object], Callable[[Path], object], str]] = [
    ("v.avi", lambda p: write_xvid(p, 24), Path.unlink, r"v\.avi can no longer be decoded \(No such file or direct"),
    ("v.avi", lambda p: write_xvid(p, 24), zeros, r"v\.avi can no longer be decoded \(Invalid data found"),
    ("v.avi", lambda p: write_xvid(p, 24), lambda p: write_xvid(p, 4), r"v\.avi ends after \d of the 4 frames of a"),
    ("v", lambda p: write_frames(p, 24), shutil.rmtree, r"v/00000\d\d\.jpg cannot be read \(No such file or direct"),
    ("v", lambda p: write_frames(p, 24), zeros, r"v/00000\d\d\.jpg cannot be read \(not an image\)"),
    ("v.webp", lambda p: write_animation(p, 24), Path.unlink, r"v\.webp cannot be read \(No such file or directory\)"),
    ("v.webp", lambda p: write_animation(p, 24), zeros, r"v\.webp cannot be read \(not an image\)"),
]


@pytest.fixture(params=CHANGES, ids=lambda row: row[3])
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[VideoFolder, str]:
    """A data set whose only video changes after it was indexed, and a pattern of the error message."""
    name, write, change, message = request.param
    write(tmp_path / name)
    dataset = VideoFolder(tmp_path, 16, num_frames=4, interval=3)
    change(tmp_path / name)
    return dataset, f"{tmp_path}/{message}.*; run `latte data check`"


def test_error_starts_with_the_file_and_is_one_line(changed: tuple[VideoFolder, str]) -> None:
    dataset, message = changed
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        dataset.read(0, 4, 3, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("traceback", ["", "1"])
def test_error_of_a_loader_process_is_the_same_line(
    traceback: str,
    changed: tuple[VideoFolder, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, message = changed
    loader = torch.utils.data.DataLoader(ClipStream(dataset, 4, 3, seed=0), batch_sampler=[[0]], num_workers=1)
    monkeypatch.setenv("LATTE_TRACEBACK", traceback)
    monkeypatch.setattr(info, "main", lambda args: list(loader))
    if traceback:
        with pytest.raises(ValueError, match="Original Traceback"):
            cli.main(["info"])
        return
    with pytest.raises(SystemExit) as ended:
        cli.main(["info"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"latte: error: {message}", line)
    assert len(line) < 300


class Killed(torch.utils.data.Dataset):
    """A data set whose loader process is ended by the system, as without memory."""

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index

    def __len__(self) -> int:
        return 1


def test_loader_process_that_was_killed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LATTE_TRACEBACK", raising=False)
    monkeypatch.setattr(info, "main", lambda args: list(torch.utils.data.DataLoader(Killed(), num_workers=1)))
    with pytest.raises(SystemExit):
        cli.main(["info"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latte: error: DataLoader worker (pid")


@pytest.mark.parametrize("error", [ValueError("two\nlines: of a message"), KeyError("a"), OSError(2, "No file", "x")])
def test_cause_of_any_error_of_a_loader_process_is_found(error: Exception) -> None:
    def fail(index: int) -> int:
        try:
            raise RuntimeError("ValueError: an earlier error")
        except RuntimeError as cause:
            raise error from cause

    class Failing(torch.utils.data.Dataset):
        __getitem__ = staticmethod(fail)
        __len__ = staticmethod(lambda: 1)

    with pytest.raises(type(error)) as caught:
        list(torch.utils.data.DataLoader(Failing(), num_workers=1))
    assert cli.one_line(caught.value) == " ".join(str(error).split())
