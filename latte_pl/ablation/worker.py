"""Trains and measures one trial. Its process is started for it alone, so the imports of this module are light."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from latte_pl.ablation.trial import Trial, locked

ERROR = re.compile(r"^(latte: error:|[\w.]*(Error|Exception|Interrupt)\b)")


class TrialFailed(RuntimeError):
    """A command of a trial failed; the message is its last error line."""


def work(trial: Trial, threads: int | None = None, fork: bool = False) -> str:
    """Train and measure a trial and write its result. An interrupted training resumes from its newest checkpoint.

    If another process already works on the same trial, wait for that process and use its result.

    Args:
        trial: The trial.
        threads: CPU threads of its commands, and the largest number of its loader processes. None: torch decides, and
            the configuration.
        fork: Whether the commands are forks of this process; see `run`.

    Returns:
        The path of the result.

    Raises:
        TrialFailed: A command failed.
    """
    with locked(trial.path) as lock:
        if trial.result.is_file():
            return str(trial.result)
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.unlink(missing_ok=True)
        began = time.time()
        try:
            if trial.points:
                trial.points_file.write_text(json.dumps(trial.points))
            for command in trial.commands:
                run((*command, *_loaders(trial, command, threads)), trial.path / "log.txt", threads, lock, fork)
            from latte_pl.ablation.results import collect

            collect(trial, time.time() - began)
        except Exception as error:
            write_failure(trial, str(error) or type(error).__name__)
            raise
        return str(trial.result)


def _loaders(trial: Trial, command: tuple[str, ...], threads: int | None) -> list[str]:
    """Return the argument that limits the loader processes of a training to its threads; no result depends on it."""
    wanted = trial.config["data"]["init_args"].get("num_workers", 0)
    return [f"--data.num_workers={threads}"] if command[0] == "fit" and threads and wanted > threads else []


def write_failure(trial: Trial, message: str) -> None:
    """Write the error of a failed trial. If the disk is full, only print that the error cannot be written."""
    try:
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.write_text(json.dumps({"error": " ".join(message.split())[-500:], "time": time.time()}))
    except OSError:
        print(f"cannot write {trial.failure}", file=sys.stderr)


def run(
    command: tuple[str, ...], log: Path, threads: int | None = None, lock: int | None = None, fork: bool = False
) -> None:
    """Run a `latte` command in a process of its own and append its output to a log.

    Args:
        command: Arguments of `latte`.
        log: The log file.
        threads: CPU threads. None: torch decides.
        lock: File descriptor of a lock that the command inherits. If this process is killed, the trial stays locked
            until the command has ended too.
        fork: Whether the process is a fork of this one, which must not have used PyTorch yet. Otherwise it is a new
            one, which imports everything again.

    Raises:
        TrialFailed: The command failed.
    """
    # where Lightning finds SLURM's variables, they decide the number of processes, whatever `devices` is
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    pid, output, wait = _fork(command, environment) if fork else _start(command, environment, lock)
    last: deque[str] = deque(maxlen=50)
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.with_name("pid").write_text(str(pid))
    try:
        for line in output:
            last.append(line.rstrip())
            _append(log, line)
        status = wait()
    except BaseException:
        end(pid)
        wait()
        raise
    if status:
        raise TrialFailed(error_line(list(last), status) or f"latte {command[0]} ended with status {status}")


Started = tuple[int, Iterable[str], Callable[[], int]]
"""A started command: its process, the lines that it prints, and a function that waits for its exit status."""


def _start(command: tuple[str, ...], environment: dict[str, str], lock: int | None) -> Started:
    process = subprocess.Popen(
        [sys.executable, "-m", "latte_pl", *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,  # one process per GPU: `end` ends all of them
    )
    assert process.stdout is not None
    return process.pid, process.stdout, process.wait


def _fork(command: tuple[str, ...], environment: dict[str, str]) -> Started:
    reader, writer = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_latte, args=(command, environment, writer))
    process.start()
    os.close(writer)
    assert process.pid is not None

    def wait() -> int:
        process.join()
        return process.exitcode or 0

    return process.pid, os.fdopen(reader, encoding="utf-8", errors="replace"), wait


def _latte(command: tuple[str, ...], environment: dict[str, str], output: int) -> None:
    """Run a `latte` command in this process, which prints to a file descriptor."""
    os.setsid()
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(output, descriptor)
        # a new stream: the one of this process may be that of a file, which allows what a pipe does not
        setattr(sys, name, os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", closefd=False))
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    from latte_pl.cli import main

    if threads := environment.get("OMP_NUM_THREADS"):  # torch was imported before
        torch.set_num_threads(int(threads))
    sys.argv = ["latte", *command]
    main(command)


def end(pid: int) -> None:
    """Kill a command and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:  # a fork that has no group of its own yet
            os.kill(pid, signal.SIGKILL)


def error_line(lines: list[str], status: int) -> str:
    """Return the line that explains why a process ended: its last error, or else its last line of output.

    Args:
        lines: The last lines of its output.
        status: Its exit status; negative for a signal.
    """
    lines = [line for line in lines if line]
    errors = [line for line in lines if ERROR.match(line)]
    found = (errors or lines)[-1:]
    if status < 0:
        found = [f"the process was killed by signal {-status}", *errors[-1:]]
    return ": ".join(found)


def _append(log: Path, line: str) -> None:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError:  # `run` keeps the last lines, and the command reports the full disk
        pass
