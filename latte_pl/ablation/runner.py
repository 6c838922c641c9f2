"""Runs the trials of a study, each in a process of its own, through submitit: here or on SLURM."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from rich.live import Live
from rich.table import Table

from latte_pl.ablation.trial import Trial
from latte_pl.ablation.worker import fail, held, progress, run, work

PAUSE = 2.0  # seconds between two looks at what is running
LIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "COMPLETING")


@dataclass(frozen=True)
class Slurm:
    """What a trial asks of SLURM.

    Attributes:
        partition: Where to queue; the cluster's default if None.
        gpus: GPUs of a trial.
        cpus: CPUs of a trial.
        mem_gb: Memory of a trial; the cluster's default if None.
        timeout_min: Longest time of one attempt; what is not done goes on in the next `run`.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    mem_gb: float | None = None
    timeout_min: int = 24 * 60


def state_of(trial: Trial) -> str:
    """Return a trial's state as its files tell it: finished, running, FAILED, stopped or pending."""
    if trial.result.is_file():
        return "finished"
    if held(trial.path):
        return "running"
    if trial.failure.is_file():
        return "FAILED"
    return "stopped" if (trial.path / "progress.json").is_file() else "pending"


def last_error(trial: Trial) -> str:
    """Return the last error line of a failed trial."""
    try:
        return json.loads(trial.failure.read_text())["error"]
    except (OSError, ValueError, KeyError):
        return "the process ended without a result"


@dataclass
class Runner:
    """Works through trials and shows how far they are.

    Args:
        trials: All of a study; each once, what others need before them.
        root: Folder of all trials.
        executor: "local", processes on this machine, or "slurm".
        jobs: Trials at a time.
        slurm: What a trial asks of SLURM.
        threads: CPU threads of a local trial; None shares the cores among the jobs.
        console: Where the table is shown.
    """

    trials: Sequence[Trial]
    root: Path
    executor: str = "local"
    jobs: int = 1
    slurm: Slurm = field(default_factory=Slurm)
    threads: int | None = None
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs is {self.jobs}; it must be at least 1")
        self._active: dict[str, submitit.Job[str]] = {}
        self._over: dict[str, str] = {}  # by hash: finished or FAILED, in this run
        self._said: dict[str, str] = {}

    def run(self) -> bool:
        """Run everything that has no result yet; what failed before is tried again from its checkpoint.

        Returns:
            Whether every trial is finished.
        """
        for trial in self.trials:
            if trial.result.is_file():
                self._over[trial.hash] = "finished"
        todo = [trial for trial in self.trials if trial.hash not in self._over]
        try:
            self._encode(todo)
            submit = self._executor() if todo else None
            with Live(console=self.console, refresh_per_second=1, transient=False) as live:
                while submit and len(self._over) < len(self.trials):
                    self._settle()
                    self._start(submit)
                    self._show(live)
                    if len(self._over) < len(self.trials):
                        time.sleep(PAUSE)
                self._show(live)
        except KeyboardInterrupt:
            self._interrupt()
            return False
        return all(state == "finished" for state in self._over.values())

    # -------------------------------------------------------------------------------------------- parts

    def _encode(self, todo: Sequence[Trial]) -> None:
        """Make the latents that trials read, once."""
        for command in {trial.encode: None for trial in todo if trial.encode}:
            manifest = Path(command[-1]) / "manifest.json"
            if manifest.is_file() and json.loads(manifest.read_text())["checksums"]:
                continue
            self.console.print(f"encoding the data into {command[-1]}")
            run(command, Path(f"{command[-1]}.log"))

    def _executor(self) -> Callable[[Trial], submitit.Job[str]]:
        """Return what submits a trial."""
        # a folder of its own for each run: a new SLURM counts its jobs from 1 again
        folder = self.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" / "%j"
        executor = submitit.AutoExecutor(folder=folder, cluster=self.executor)
        executor.update_parameters(timeout_min=self.slurm.timeout_min, name="latte-ablate")
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.jobs)
        if self.executor == "slurm":
            threads = self.slurm.cpus
            executor.update_parameters(
                cpus_per_task=self.slurm.cpus,
                gpus_per_node=self.slurm.gpus,
                # without srun Lightning finds no SLURM tasks, and starts a process a GPU itself
                slurm_use_srun=False,
                **({"slurm_partition": self.slurm.partition} if self.slurm.partition else {}),
                **({"mem_gb": self.slurm.mem_gb} if self.slurm.mem_gb else {}),
            )
        return lambda trial: executor.submit(work, trial, threads)

    def _settle(self) -> None:
        """Look which trials are over."""
        known = _queued() if self.executor == "slurm" and self._active else set()
        for trial in self.trials:
            if trial.hash in self._over:
                continue
            if trial.result.is_file():
                self._over[trial.hash] = "finished"
                self._active.pop(trial.hash, None)
                continue
            job = self._active.get(trial.hash)
            if job is None or not (job.done() if self.executor == "local" else _ended(job, known)):
                continue
            if trial.result.is_file():  # written between the two looks
                continue
            del self._active[trial.hash]
            if not trial.failure.is_file():
                fail(trial, _death(job))
            self._over[trial.hash] = "FAILED"

    def _start(self, submit: Callable[[Trial], submitit.Job[str]]) -> None:
        """Submit what may start."""
        for trial in self.trials:
            if len(self._active) >= self.jobs:
                return
            if trial.hash in self._over or trial.hash in self._active:
                continue
            needs = [self._over.get(need) for need in trial.needs]
            if "FAILED" in needs:
                fail(trial, "the training that it starts from failed")
                self._over[trial.hash] = "FAILED"
            elif all(state == "finished" for state in needs):
                self._active[trial.hash] = self._adopt(trial) or self._submit(submit, trial)

    def _submit(self, submit: Callable[[Trial], submitit.Job[str]], trial: Trial) -> submitit.Job[str]:
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.unlink(missing_ok=True)
        with _quiet_children(self.root / "jobs"):
            job = submit(trial)
        if self.executor == "slurm":
            place = {"job_id": job.job_id, "folder": str(job.paths.folder), "conf": os.environ.get("SLURM_CONF")}
            (trial.path / "job.json").write_text(json.dumps(place))
        return job

    def _adopt(self, trial: Trial) -> submitit.Job[str] | None:
        """Return the job that an earlier run queued for this trial, if SLURM still has it."""
        path = trial.path / "job.json"
        if self.executor != "slurm" or not path.is_file():
            return None
        place = json.loads(path.read_text())
        if place["conf"] != os.environ.get("SLURM_CONF") or place["job_id"] not in _queued():
            return None
        return submitit.SlurmJob(folder=place["folder"], job_id=place["job_id"])

    def _interrupt(self) -> None:
        """Stop what runs here, and say how to go on; jobs in SLURM's queue stay there."""
        if self.executor == "slurm" and self._active:
            ids = " ".join(job.job_id for job in self._active.values())
            self.console.print(f"\njobs {ids} go on in SLURM; the same command watches them again, scancel ends them")
            return
        for job in self._active.values():
            job.cancel()
        deadline = time.monotonic() + 20
        busy = [trial for trial in self.trials if trial.hash in self._active]
        while time.monotonic() < deadline and any(held(trial.path) for trial in busy):
            time.sleep(0.2)
        self.console.print("\ninterrupted; the same command goes on from the newest checkpoints")

    def _show(self, live: Live) -> None:
        """Show the table; where there is no terminal, a line for every change."""
        rows = [(trial, self._state(trial)) for trial in self.trials]
        if self.console.is_terminal:
            live.update(table(rows))
            return
        for trial, state in rows:
            if self._said.get(trial.hash) != state and state != "pending":
                detail = f": {last_error(trial)}" if state == "FAILED" else ""
                self.console.print(f"{trial.row}, seed {trial.seed} ({trial.hash}) {state}{detail}", soft_wrap=True)
            self._said[trial.hash] = state

    def _state(self, trial: Trial) -> str:
        if trial.hash in self._over:
            return self._over[trial.hash]
        if trial.hash in self._active:
            return "running" if held(trial.path) else "queued"
        state = state_of(trial)
        return state if state == "running" else "pending"


@contextlib.contextmanager
def _quiet_children(folder: Path) -> Iterator[None]:
    """Send what submitit's own processes say to a file: Ctrl-C reaches them too, and they answer with a traceback."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with (folder / "submitit.log").open("a") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def table(rows: Sequence[tuple[Trial, str]]) -> Table:
    """Return the progress of trials as a table."""
    shown = Table("row", "seed", "state", "step", "clips/s", "left", box=None, pad_edge=False)
    for trial, state in rows:
        about = progress(trial)
        step, speed = about.get("step", 0), about.get("clips_per_second")
        left = ""
        if state == "running" and speed:
            left = f"{(1 - step / trial.steps) * trial.clips / speed / 60:.1f} min"
        colour = {"finished": "green", "FAILED": "red", "running": "cyan"}.get(state, "")
        name = trial.row if trial.arm else f"({trial.row})"
        cells = (f"{step}/{trial.steps}" if step else "", f"{speed:.0f}" if speed else "", left)
        shown.add_row(name, str(trial.seed), f"[{colour}]{state}[/]" if colour else state, *cells)
        if state == "FAILED":
            shown.add_row("", "", f"[red]{last_error(trial)}[/]")
    return shown


def _queued() -> set[str]:
    """Return the ids of the jobs that SLURM still has to do."""
    command = ["squeue", "--noheader", "--states=all", "--format=%i %T"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"squeue does not answer ({error}); asking again", file=sys.stderr)
        return {"?"}
    return {job for job, state in (line.split() for line in lines if line.strip()) if state in LIVE}


def _ended(job: submitit.Job[Any], queued: set[str]) -> bool:
    """Whether a SLURM job is over: it left its result, or SLURM no longer has it."""
    return job.paths.result_pickle.exists() or ("?" not in queued and job.job_id not in queued)


def _death(job: submitit.Job[Any]) -> str:
    """Return why a job ended without a word of its own."""
    if not job.paths.result_pickle.exists():
        return "the process was killed, or died without a result (out of memory?)"
    try:
        error = job.exception()
    except Exception as unread:
        return f"its result cannot be read ({unread}); is the disk full?"
    lines = [line for line in str(error).splitlines() if line.strip() and not set(line.strip()) <= {"-"}]
    return lines[-1] if lines else "the process ended without a result"
