"""A real SLURM on this machine alone: munged, slurmctld and slurmd in a temporary folder, on loopback ports."""

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

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "sinfo", "setpriv")
PARTITION = "all"
CONF = """
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
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
KillWait=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mib} State=UNKNOWN
PartitionName={partition} Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def reason_to_skip() -> str:
    """Say why no cluster can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else ""


def members(folder: Path) -> list[int]:
    """Process ids of the cluster in ``folder`` and of its jobs, which all carry the folder's name."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile, or is the kernel's
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if os.fsencode(folder) in text and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def state(job_id: str) -> str:
    """Ask SLURM for a job's state, ended or not; empty once the job is forgotten (MinJobAge, five minutes)."""
    return _answer("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")


def wait_for(ready: Callable[[], bool], seconds: float = 120) -> None:
    """Return as soon as ``ready`` holds.

    Raises:
        TimeoutError: it did not within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"not reached within {seconds} s")
        time.sleep(0.1)


@contextlib.contextmanager
def cluster() -> Iterator[Path]:
    """Start the cluster, wait for its node, point SLURM_CONF to it, yield its folder and leave no process behind.

    Raises:
        RuntimeError: the node was not idle within two minutes; carries the ends of the daemons' logs.
    """
    with tempfile.TemporaryDirectory(prefix="slurm") as name, patch.dict(os.environ):
        folder, daemons = Path(name), []
        os.environ["SLURM_CONF"] = str(_configure(folder))
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


def _configure(folder: Path) -> Path:
    folder.chmod(0o755)  # munged runs as another user and has to reach its own folder within
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
        CONF.format(folder=folder, cpus=os.cpu_count(), memory_mib=memory_mib, partition=PARTITION, **ports)
    )
    return conf


def _start(name: str, folder: Path, identity: list[str], command: list[str]) -> subprocess.Popen[bytes]:
    # the signal ends the daemon even where this process is killed and clears nothing up
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(["setpriv", "--pdeathsig=KILL", *identity, "--", *command], stdout=log, stderr=log)


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()


def _stop(folder: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired, TimeoutError):
        _answer("scancel", "--user=root")
        wait_for(lambda: not _answer("squeue", "--noheader"), 20)  # a trial sits out SIGTERM until KillWait
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid in members(folder):  # what a daemon that died too early could not end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
