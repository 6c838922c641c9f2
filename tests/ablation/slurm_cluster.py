"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd in a temporary folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "setpriv")
PARTITION = "all"
CONF = """
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait={kill_wait}
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib} State=UNKNOWN
PartitionName={partition} Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def reason_to_skip() -> str:
    """Return why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "a SLURM cluster needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else ""


def members(folder: Path) -> list[int]:
    """Return the process ids of the cluster in ``folder`` and of its jobs, which all have the folder's name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to the kernel
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if os.fsencode(folder) in text and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def state(job_id: str) -> str:
    """Return the state of a job; empty five minutes after its end, when SLURM forgets it (MinJobAge)."""
    return _answer("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")


def wait_for(ready: Callable[[], bool], seconds: float = 600) -> None:
    """Return as soon as ``ready`` holds.

    Raises:
        TimeoutError: It does not hold within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"the condition did not hold within {seconds} s")
        time.sleep(0.1)


def restarts(job_id: str) -> int:
    """Return how often a job was queued again."""
    fields = dict(part.split("=", 1) for part in _answer("scontrol", "show", "job", job_id).split() if "=" in part)
    return int(fields.get("Restarts", 0))


def wait_for_restarted(job_id: str, ready: Callable[[], bool]) -> None:
    """Return as soon as ``ready`` holds, for what a job does after it was queued again.

    SLURM lets such a job wait for two minutes, which it may set again while the former processes of the job end. So the
    job is asked to start now as long as it is pending.
    """

    def starts_or_is_ready() -> bool:
        if ready():
            return True
        if state(job_id) == "PENDING":
            _answer("scontrol", "update", f"JobId={job_id}", "StartTime=now")
            time.sleep(1)
        return ready()

    wait_for(starts_or_is_ready)


def lose_node(folder: Path) -> None:
    """Take the node from the controller, and kill its daemon and all jobs on it; SLURM queues the jobs again."""
    # what the controller does by itself after SlurmdTimeout; first, as else its order to end the job waits for the
    # daemon's return and ends the job that was queued again
    _answer("scontrol", "update", "NodeName=localhost", "State=DOWN", "Reason=lost")
    time.sleep(2)
    for pid in members(folder):
        with contextlib.suppress(OSError):  # it has ended
            process = Path(f"/proc/{pid}")
            command, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            if command.startswith(b"slurmd") or b"slurmstepd" in command or b"SLURM_JOB_ID=" in variables:
                os.kill(pid, signal.SIGKILL)


def repair_node(folder: Path) -> None:
    """Start the daemon of a node that was lost."""
    _start("slurmd", folder, [], ["slurmd", "-D", "-N", "localhost"])
    # the node comes back when its daemon registers (ReturnToService)
    wait_for(lambda: _answer("sinfo", "--noheader", "--format=%T") in ("idle", "mixed", "allocated"))


@contextlib.contextmanager
def cluster(kill_wait: int = 1) -> Iterator[Path]:
    """Start the cluster, set SLURM_CONF, yield the cluster's folder, and stop all of its processes at the end.

    Args:
        kill_wait: Seconds between SIGTERM and SIGKILL of a job that has to end.

    Raises:
        RuntimeError: The node was not idle within two minutes; the message has the ends of the logs.
    """
    with tempfile.TemporaryDirectory(prefix="slurm") as name, patch.dict(os.environ):
        folder, daemons = Path(name), []
        os.environ["SLURM_CONF"] = str(_configure(folder, kill_wait))
        try:
            _bring_up(folder, daemons)
            yield folder
        finally:
            _stop(folder, daemons)


def _bring_up(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    try:
        munge = folder / "munge"
        key, seed, log = (f"--{name}-file={munge}/{name}" for name in ("key", "seed", "log"))
        pid, sock = f"--pid-file={munge}/pid", munge / "socket"
        command = ["munged", "--foreground", f"--socket={sock}", key, seed, log, pid]
        daemons.append(_start("munged", folder, ["--reuid=munge", "--regid=munge", "--clear-groups"], command))
        wait_for(sock.exists)
        daemons.append(_start("slurmctld", folder, [], ["slurmctld", "-D", "-c"]))
        daemons.append(_start("slurmd", folder, [], ["slurmd", "-D", "-N", "localhost"]))
        wait_for(lambda: _answer("sinfo", "--noheader", "--format=%T") == "idle")
    except TimeoutError as error:
        tails = [f"{log.name}: {log.read_text()[-800:]}" for log in sorted(folder.glob("*.log"))]
        raise RuntimeError("SLURM did not start.\n" + "\n".join(tails)) from error


def _configure(folder: Path, kill_wait: int) -> Path:
    folder.chmod(0o755)  # munged runs as another user and needs access to its own folder
    munge = folder / "munge"
    for sub in (munge, folder / "state", folder / "spool"):
        sub.mkdir()
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for path in (munge, key):
        shutil.chown(path, "munge", "munge")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"ctld_port": one.getsockname()[1], "slurmd_port": other.getsockname()[1]}
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            folder=folder,
            cpus=os.cpu_count(),
            memory_mib=memory_mib,
            partition=PARTITION,
            kill_wait=kill_wait,
            **ports,
        )
    )
    return conf


def _start(name: str, folder: Path, identity: list[str], command: list[str]) -> subprocess.Popen[bytes]:
    # the kernel kills the daemon if this process is killed
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(["setpriv", "--pdeathsig=KILL", *identity, "--", *command], stdout=log, stderr=log)


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def _stop(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired, TimeoutError):
        _answer("scancel", "--user=root")
        wait_for(lambda: not _answer("squeue", "--noheader"), 20)  # trials ignore SIGTERM until KillWait
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid in members(folder):  # of daemons that died before they could stop them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
