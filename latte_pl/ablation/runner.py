"""Runs the trials of a study, each in a process of its own, on this machine or, through submitit, on SLURM."""

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import submitit
from rich.console import Console
from rich.live import Live

from latte_pl.ablation.local import LocalJob
from latte_pl.ablation.progress import table
from latte_pl.ablation.trial import Trial, held, last_error, locked, state_of
from latte_pl.ablation.worker import end, run, work, write_failure
from latte_pl.files import write_text

PAUSE = {"local": 0.5, "slurm": 6.0}  # seconds between two checks of the running trials
GRACE = 30.0  # seconds that a result may appear after its job has ended
UNKNOWN = "?"  # in the place of job ids while squeue does not answer
Job = LocalJob | submitit.Job[str]
QUEUED = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED", "RESIZING", "COMPLETING")


@dataclass(frozen=True)
class Slurm:
    """SLURM resources of a trial.

    Attributes:
        partition: Partition. None: the cluster's default.
        gpus: Number of GPUs.
        cpus: Number of CPUs.
        mem_gb: Memory in GB. None: the cluster's default.
        timeout_min: Time limit of a job in minutes. The next `latte-ablate run` resumes trials that exceeded it.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    mem_gb: float | None = None
    timeout_min: int = 24 * 60


@dataclass
class Runner:
    """Runs trials and shows their progress.

    Args:
        trials: The trials, each once and after the trials that it needs.
        root: Folder of all trials.
        executor: "local" (processes on this machine) or "slurm".
        jobs: Number of trials at a time.
        slurm: SLURM resources of a trial.
        threads: CPU threads, and at most as many loader processes, per local trial. None: the cores that this process
            may use, divided by ``jobs``.
        console: Console for the table.
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
        self._active: dict[str, Job] = {}  # jobs by hash
        self._ended: dict[str, str] = {}  # "finished" or "FAILED" by hash
        self._printed: dict[str, str] = {}  # last printed state by hash
        self._queue: dict[str, int] = {}  # jobs in SLURM's queue, and how often each was queued again
        self._missing_since: dict[str, float] = {}  # time at which a job left SLURM's queue, by job id

    def run(self) -> bool:
        """Run all trials without a result. Trials that failed before are tried again, from their checkpoint.

        Returns:
            Whether every trial is finished.
        """
        for trial in self.trials:
            if trial.result.is_file():
                self._ended[trial.hash] = "finished"
        todo = [trial for trial in self.trials if trial.hash not in self._ended]
        try:
            self._encode(todo)
            submit = self._executor() if todo else None
            with Live(console=self.console, refresh_per_second=1, transient=False) as live:
                while submit and len(self._ended) < len(self.trials):
                    self._check()
                    self._start(submit)
                    self._show(live)
                    if len(self._ended) < len(self.trials):
                        time.sleep(PAUSE[self.executor])
                self._show(live)
        except KeyboardInterrupt:
            self._interrupt()
            return False
        return all(state == "finished" for state in self._ended.values())

    def _encode(self, todo: Sequence[Trial]) -> None:
        """Encode the latent caches that trials read, each once."""
        for command in {trial.encode: None for trial in todo if trial.encode}:
            folder = Path(command[-1])
            manifest = folder / "manifest.json"
            with locked(folder):  # another `latte-ablate run` may be encoding the same cache
                if manifest.is_file() and json.loads(manifest.read_text())["checksums"]:
                    continue
                self.console.print(f"encoding the data into {folder}", markup=False)
                run(command, folder.with_suffix(".log"))

    def _executor(self) -> Callable[[Trial], Job]:
        """Return a function that starts a trial, or submits it to SLURM."""
        if self.executor == "local":
            threads = self.threads or max(1, _num_cores() // self.jobs)
            return lambda trial: LocalJob(trial, threads)
        # a folder for each run, because a newly started SLURM counts its jobs from 1 again
        folder = self.root / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" / "%j"
        executor = submitit.AutoExecutor(folder=folder, cluster=self.executor)
        executor.update_parameters(timeout_min=self.slurm.timeout_min, name="latte-ablate")
        executor.update_parameters(
            cpus_per_task=self.slurm.cpus,
            gpus_per_node=self.slurm.gpus,
            # without srun Lightning finds no SLURM tasks and starts one process per GPU itself
            slurm_use_srun=False,
            **({"slurm_partition": self.slurm.partition} if self.slurm.partition else {}),
            **({"mem_gb": self.slurm.mem_gb} if self.slurm.mem_gb else {}),
        )
        return lambda trial: executor.submit(work, trial, self.slurm.cpus)

    def _check(self) -> None:
        """Find the trials that have ended."""
        self._queue = _queued_jobs() if self.executor == "slurm" and self._active else {}
        for trial in self.trials:
            if trial.hash in self._ended:
                continue
            if trial.result.is_file():
                self._ended[trial.hash] = "finished"
                self._active.pop(trial.hash, None)
                continue
            job = self._active.get(trial.hash)
            if job is None or not self._has_ended(job):
                continue
            if trial.result.is_file():  # written since the check above
                continue
            del self._active[trial.hash]
            if held(trial.path):  # another `latte-ablate run` works on the trial; a new job waits for it
                continue
            if not trial.failure.is_file():
                write_failure(trial, _reason(job))
            self._ended[trial.hash] = "FAILED"

    def _has_ended(self, job: Job) -> bool:
        """Return whether a local process has ended, or a SLURM job left the queue with a result, or a while ago."""
        if isinstance(job, LocalJob):
            return job.done()
        if UNKNOWN in self._queue or job.job_id in self._queue:  # SLURM may queue a job again that wrote an error
            self._missing_since.pop(job.job_id, None)
            return False
        if job.paths.result_pickle.exists():
            return bool(job.done())
        # on a shared file system the result may appear after the job has left the queue
        return time.monotonic() - self._missing_since.setdefault(job.job_id, time.monotonic()) > GRACE

    def _start(self, submit: Callable[[Trial], Job]) -> None:
        """Submit trials whose needs are finished, up to the number of jobs."""
        for trial in self.trials:
            if len(self._active) >= self.jobs:
                return
            if trial.hash in self._ended or trial.hash in self._active:
                continue
            needs = [self._ended.get(need) for need in trial.needs]
            if "FAILED" in needs:
                write_failure(trial, "the training that it starts from failed")
                self._ended[trial.hash] = "FAILED"
            elif all(state == "finished" for state in needs):
                self._active[trial.hash] = self._queued_before(trial) or self._submit(submit, trial)

    def _submit(self, submit: Callable[[Trial], Job], trial: Trial) -> Job:
        trial.path.mkdir(parents=True, exist_ok=True)
        trial.failure.unlink(missing_ok=True)
        job = submit(trial)
        if not isinstance(job, LocalJob):
            place = {"job_id": job.job_id, "folder": str(job.paths.folder), "conf": os.environ.get("SLURM_CONF")}
            write_text(trial.path / "job.json", json.dumps(place))
        return job

    def _queued_before(self, trial: Trial) -> submitit.Job[str] | None:
        """Return the job that an earlier `latte-ablate run` submitted for a trial, if SLURM still has it."""
        path = trial.path / "job.json"
        if self.executor != "slurm" or not path.is_file():
            return None
        place = json.loads(path.read_text())
        if place["conf"] != os.environ.get("SLURM_CONF") or not {place["job_id"], UNKNOWN} & _queued_jobs().keys():
            return None
        return submitit.SlurmJob(folder=place["folder"], job_id=place["job_id"])

    def _interrupt(self) -> None:
        """Stop local trials and print how to resume. Jobs in SLURM's queue are left there."""
        if self.executor == "slurm" and self._active:
            ids = " ".join(job.job_id for job in self._active.values() if not isinstance(job, LocalJob))
            self.console.print(
                f"\nSLURM jobs {ids} keep running; the same command follows them again, scancel cancels them"
            )
            return
        for job in self._active.values():
            job.cancel()
        deadline = time.monotonic() + 20
        busy = [trial for trial in self.trials if trial.hash in self._active]
        while time.monotonic() < deadline and any(held(trial.path) for trial in busy):
            time.sleep(0.2)
            if time.monotonic() > deadline - 15:
                for trial in busy:
                    pid = trial.path / "pid"
                    if held(trial.path) and pid.is_file():
                        end(int(pid.read_text()))
        self.console.print("\ninterrupted; the same command resumes from the newest checkpoints")

    def _show(self, live: Live) -> None:
        """Show the table, or print every change of a state if the output is not a terminal."""
        rows = [(trial, self._state(trial)) for trial in self.trials]
        if self.console.is_terminal:
            live.update(table(rows))
            return
        for trial, state in rows:
            if self._printed.get(trial.hash) != state and state != "pending":
                detail = f": {last_error(trial)}" if state == "FAILED" else ""
                line = f"{trial.row}, seed {trial.seed} ({trial.hash}) {state}{detail}"
                self.console.print(line, soft_wrap=True, markup=False, highlight=False)
            self._printed[trial.hash] = state

    def _state(self, trial: Trial) -> str:
        if trial.hash in self._ended:
            return self._ended[trial.hash]
        if job := self._active.get(trial.hash):
            again = not isinstance(job, LocalJob) and self._queue.get(job.job_id)
            if held(trial.path):
                return "running, requeued" if again else "running"
            return "requeued" if again else "queued"
        state = state_of(trial)
        return state if state == "running" else "pending"


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _queued_jobs() -> dict[str, int]:
    """Return the jobs that wait or run in SLURM, and how often each was queued again."""
    columns = "--Format=jobid:32,state:32,restartcnt:16"
    command = ["squeue", "--noheader", "--states=all", f"--user={getpass.getuser()}", columns]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"squeue failed ({error}); trying again", file=sys.stderr)
        return {UNKNOWN: 0}
    jobs = (line.split() for line in lines if line.strip())
    return {job: int(restarts) for job, state, restarts in jobs if state in QUEUED}


def _reason(job: Job) -> str:
    """Return why a job died without writing an error."""
    if isinstance(job, LocalJob) or not job.paths.result_pickle.exists():
        return "the process was killed, or died without a result (out of memory, or out of time?)"
    try:
        error = job.exception()
    except Exception as unreadable:
        return f"its result cannot be read ({unreadable}); is the disk full?"
    lines = [line for line in str(error).splitlines() if line.strip() and not set(line.strip()) <= {"-"}]
    return lines[-1] if lines else "the process ended without a result"
