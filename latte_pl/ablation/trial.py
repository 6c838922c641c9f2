"""A trial: one row of a study, trained with one seed; its commands, its files and its state."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["finished", "running", "FAILED", "stopped", "pending"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and its measurement.

    Attributes:
        row: Name of the row, or of the training under ``prepare``.
        seed: Seed of the training.
        hash: Name of the trial: the first digits of the SHA-256 of all that its result depends on.
        folder: Folder of the training and its result.
        encode: Arguments of `latte` that encode the latent cache; None if the trial reads videos.
        commands: Arguments of `latte`, in order: fit; average, if the trial keeps EMA snapshots; test, if the scale has
            a protocol.
        needs: Hashes of the trials that must finish first.
        arm: Whether the trial is a row of the table. Otherwise rows start from it.
        scale: Name of the scale.
        steps: Number of optimizer steps.
        points: Steps at which the held-out loss is measured besides the regular ones, see `plan.with_points`.
        clips: Number of training clips.
        expected: Settings of the row, by dotted name, to compare with the built model.
        config: The resolved configuration of the training.
    """

    row: str
    seed: int
    hash: str
    folder: str
    encode: tuple[str, ...] | None
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    arm: bool
    scale: str
    steps: int
    points: tuple[int, ...] = ()
    clips: int
    expected: dict[str, Any]
    config: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder of the trial."""
        return Path(self.folder)

    @property
    def result(self) -> Path:
        """The file with the result of a finished trial."""
        return self.path / "result.json"

    @property
    def points_file(self) -> Path:
        """The file with the steps of `points`, which the training reads when it starts.

        They are not part of the command: they change no weight, and the rows of several studies share trainings.
        """
        return self.path / "points.json"

    @property
    def failure(self) -> Path:
        """The file with the error of the last attempt, if that failed."""
        return self.path / "failure.json"


def state_of(trial: Trial) -> State:
    """Return the state of a trial, read from its files."""
    if trial.result.is_file():
        return "finished"
    if held(trial.path):
        return "running"
    if trial.failure.is_file():
        return "FAILED"
    return "stopped" if (trial.path / "progress.json").is_file() else "pending"


def progress_of(trial: Trial) -> dict[str, Any]:
    """Return the progress of a trial (step, clips_per_second); empty before its first step."""
    try:
        return json.loads((trial.path / "progress.json").read_text())
    except (OSError, ValueError):
        return {}


def last_error(trial: Trial) -> str:
    """Return the error of a failed trial as one line."""
    try:
        return json.loads(trial.failure.read_text())["error"]
    except (OSError, ValueError, KeyError):
        return "the process ended without a result"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Wait for the lock of a folder and hold it. The kernel releases the lock when its last holder ends.

    Yields:
        The file descriptor of the lock. A process that inherits the descriptor holds the lock too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock_of(folder).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def held(folder: Path) -> bool:
    """Return whether a process holds the lock of a folder.

    Raises:
        OSError: The file system does not support locks.
    """
    path = lock_of(folder)
    try:
        with path.open("r+") as file:  # over NFS an exclusive lock needs a writable file
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise OSError(f"cannot lock {path} ({error}); choose a --root on a file system with locks") from error
    return False


def lock_of(folder: Path) -> Path:
    """Return the lock file of a folder."""
    return folder.with_name(f"{folder.name}.lock")
