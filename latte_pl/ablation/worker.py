"""Runs one trial in a process of its own; imports nothing heavy, for it is what submitit starts."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latte_pl.ablation.trial import Trial

ERROR = re.compile(r"^(latte: error:|[\w.]*(Error|Exception|Interrupt)\b)")


class TrialFailed(RuntimeError):
    """A trial that ended with an error; the message is the error's last line."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a trial, once nobody else does; the kernel gives it back when its last holder dies.

    Yields:
        The file descriptor of the lock; a process that inherits it holds the lock too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def held(folder: Path) -> bool:
    """Whether some process is at work on a trial.

    Raises:
        OSError: The file system has no locks.
    """
    path = folder.with_name(f"{folder.name}.lock")
    try:
        with path.open("r+") as file:  # over NFS an exclusive lock needs a file that may be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError):
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise OSError(f"{path} cannot be locked ({error}); choose a --root on a file system with locks") from error
    return False


def work(trial: Trial, threads: int | None = None) -> str:
    """Train and measure a trial, going on from its checkpoint, and write its result.

    A second process that is given the same trial waits for the first one, and finds its result.

    Args:
        trial: What to do.
        threads: CPU threads of the commands; None leaves the choice to torch.

    Returns:
        The path of the result.

    Raises:
        TrialFailed: A command ended with an error.
    """
    with locked(trial.path) as lock:
        if trial.result.is_file():
            return str(trial.result)
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.unlink(missing_ok=True)
        began = time.time()
        try:
            for command in trial.commands:
                run(command, trial.path / "log.txt", threads, lock)
            from latte_pl.ablation.results import collect

            collect(trial, time.time() - began)
        except Exception as error:
            fail(trial, str(error) or type(error).__name__)
            raise
        return str(trial.result)


def fail(trial: Trial, line: str) -> None:
    """Write why a trial failed; a disk that is too full for that must not hide the error itself."""
    try:
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.write_text(json.dumps({"error": " ".join(line.split())[-500:], "time": time.time()}))
    except OSError:
        print(f"cannot write {trial.failure}", file=sys.stderr)


def run(command: tuple[str, ...], log: Path, threads: int | None = None, lock: int | None = None) -> None:
    """Run a `latte` command as a process, its output added to a log.

    Args:
        command: Arguments of `latte`.
        log: The file.
        threads: CPU threads; None leaves the choice to torch.
        lock: Descriptor of a lock that the command holds too: should this process be killed, nobody else starts the
            same trial before its command has ended as well.

    Raises:
        TrialFailed: It ended with an error; the message is its last line.
    """
    # Lightning takes the number of processes from SLURM's variables where it finds them, whatever `devices` says
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    last: deque[str] = deque(maxlen=50)
    process = subprocess.Popen(
        [sys.executable, "-m", "latte_pl", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,  # a process a GPU: all of them are ended together
    )
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.with_name("pid").write_text(str(process.pid))
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            _append(log, line)
        status = process.wait()
    except BaseException:
        end(process.pid)
        process.wait()
        raise
    if status:
        raise TrialFailed(last_line(list(last), status) or f"latte {command[0]} ended with status {status}")


def end(pid: int) -> None:
    """End a command and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def last_line(lines: list[str], status: int) -> str:
    """Return the line that says why a process ended: its last error, else its last word.

    Args:
        lines: The end of its output.
        status: Its exit status, negative for a signal.
    """
    lines = [line for line in lines if line]
    errors = [line for line in lines if ERROR.match(line)]
    said = (errors or lines)[-1:]
    if status < 0:
        said = [f"the process was killed by signal {-status}", *errors[-1:]]
    return ": ".join(said)


def _append(log: Path, line: str) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:  # the lines are kept in memory; the command's own error tells of the disk
        pass


def progress(trial: Trial) -> dict[str, Any]:
    """Return how far a trial says it is: step, clips a second; empty before its first step."""
    try:
        return json.loads((trial.path / "progress.json").read_text())
    except (OSError, ValueError):
        return {}
