"""Kill commands at random moments until each has ended by itself, and compare what they leave with an undisturbed run.

    python tests/training/soak.py --kills 200

Kills (SIGKILL, SIGTERM, SIGUSR1) are drawn from a fixed seed and spread over fit on one and on two processes, encode,
test and a study. Nothing may be lost or counted twice, and nothing may hang.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "ablation"), str(HERE.parent / "evaluation")]

from runs import PROCESSES, _latte, curve, differences, final, write_config, write_videos  # noqa: E402
from studies import result_of, start, trials_of, write_study  # noqa: E402
from test_models import PROTOCOL, shards  # noqa: E402

from latte_pl.data.latents import Manifest  # noqa: E402
from latte_pl.data.shards import checksum, shard_name  # noqa: E402
from latte_pl.metrics import Record  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
FIT = [
    *("fit", "-c", "tiny.yaml", "--trainer.log_every_n_steps=1", "--checkpoints.every_n_steps=2"),
    *("--model.ema_snapshot_every=4", "--samples.num_samples=1"),
]
PER_RUN = 5  # kills of one run; it then ends undisturbed
GRACE = 30.0  # seconds after which a launcher ends the processes whose partner was killed
LIMIT = 200.0  # seconds after a signal, or of an undisturbed command, that count as hanging


class LatteCommand:
    """A `latte` command in one or more processes.

    Args:
        folder: Working folder.
        args: Arguments of `latte`.
        ranks: Number of processes, started as torchrun does.
    """

    def __init__(self, folder: Path, args: list[str], ranks: int = 1) -> None:
        environments: list[dict[str, str]] = [{"OMP_NUM_THREADS": "1"}]
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
            environments = [environments[0] | shared | {"LOCAL_RANK": str(rank)} for rank in range(ranks)]
            args = [*args, f"--trainer.devices={ranks}", "-c", "trainer/ddp.yaml"]
        self.processes = [
            PROCESSES.Process(target=_latte, args=(args, folder, folder / f"log{rank}.txt", environment))
            for rank, environment in enumerate(environments)
        ]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def hit(self, number: signal.Signals, rng: random.Random) -> None:
        """Send a signal to one process, or to all."""
        victims = self.processes if rng.random() < 0.5 else [rng.choice(self.processes)]
        for process in victims:
            if process.is_alive():
                os.kill(process.pid, number)  # type: ignore[arg-type]

    def lost_a_process(self) -> bool:
        """Whether a signal ended one of several processes, as torchrun and srun find out."""
        return any(process.exitcode is not None and process.exitcode < 0 for process in self.processes)

    def succeeded(self) -> bool:
        return all(process.exitcode == 0 for process in self.processes)

    def end(self) -> None:
        for process in self.processes:
            process.kill()


class Study:
    """A run of a study; signals hit the runner or the command of its trial."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, start(folder, "run", "study.yaml")

    def alive(self) -> bool:
        return self.process.poll() is None

    def hit(self, number: signal.Signals, rng: random.Random) -> None:
        pids = [int(path.read_text() or 0) for path in self.folder.rglob("trials/*/pid")]
        pid = rng.choice([self.process.pid, *pids])
        try:
            if pid == self.process.pid or str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)
        except (ProcessLookupError, FileNotFoundError):  # it has ended
            pass

    def lost_a_process(self) -> bool:
        return False

    def succeeded(self) -> bool:
        return self.process.returncode == 0

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)


class Soak:
    """Tasks with their undisturbed results, and counts of what happened.

    Args:
        folder: Working folder.
        seed: Seed of all random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.counts = folder, random.Random(seed), Counter[str]()
        write_config(folder)
        encode = write_videos(folder, 12)
        (folder / "few.yaml").write_text(PROTOCOL)
        test = [
            "test",
            "--ckpt_path=model",
            "--protocol=few.yaml",
            "--batch_size=1",
            "--trainer.enable_progress_bar=false",
        ]
        self.tasks: dict[str, tuple[Callable[[str], Any], Callable[[str], Any]]] = {
            "fit": (lambda name: LatteCommand(folder, [*FIT, f"--name={name}"]), self._fit),
            "fit on 2 processes": (lambda name: LatteCommand(folder, [*FIT, f"--name={name}"], 2), self._fit),
            "encode": (lambda name: LatteCommand(folder, [*encode, f"--output={name}"]), self._encode),
            "test": (lambda name: LatteCommand(folder, [*test, f"--output={name}"]), self._test),
            "study": (self._study_of, self._study),
        }
        self.whole: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self) -> None:
        """Run every task undisturbed, and keep its result and duration."""
        for task in self.tasks:
            begin, result = self.tasks[task]
            name = f"whole_{task.replace(' ', '_')}"
            began = time.monotonic()
            command = begin(name)
            self._join(task, command)
            assert command.succeeded(), f"{task}: {self._logs()}"
            self.seconds[task] = time.monotonic() - began
            self.whole[task] = result(name)
            if task == "fit":
                shutil.copytree(self.folder / "runs" / name, self.folder / "model")
            print(f"{task}: {self.seconds[task]:.0f} s undisturbed", flush=True)

    def attempt(self, task: str, kills: int) -> int:
        """Kill one run of a task until it ends by itself, compare its result, and return the number of kills."""
        begin, result = self.tasks[task]
        name, done = f"{task.replace(' ', '_')}_{self.counts['results']}", 0
        while True:
            command = begin(name)
            moment = time.monotonic() + self.rng.uniform(0.0, 1.2 * self.seconds[task])
            number, hit = self.rng.choice(SIGNALS), False
            while command.alive() and done < kills:
                if time.monotonic() > moment:
                    command.hit(number, self.rng)
                    hit = True
                    break
                time.sleep(0.005)
            self._join(task, command)
            if hit:
                done += 1
                self.counts[f"{task}, {number.name}"] += 1
            elif command.succeeded():
                break
            else:
                raise AssertionError(f"{task} failed without a signal: {self._logs()}")
        found = result(name)
        for part, value in found.items():
            assert value == self.whole[task][part], f"{task} differs in {part}: {value}"
        self.counts["results"] += 1
        return done

    def _join(self, task: str, command: Any) -> None:
        began = time.monotonic()
        while command.alive():
            passed = time.monotonic() - began
            if passed > GRACE and command.lost_a_process():
                self.counts[f"{task}, ended by the launcher"] += 1
                command.end()
                for process in command.processes:
                    process.join()
            elif passed > LIMIT:
                codes = [process.exitcode for process in getattr(command, "processes", [])]
                command.end()
                raise AssertionError(f"{task} hangs {codes}: {self._logs()}")
            time.sleep(0.01)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("log*.txt")))

    def _fit(self, name: str) -> dict[str, Any]:
        run = self.folder / "runs" / name
        state = final(run)
        whole = self.folder / "runs" / ("whole_fit_on_2_processes" if "on_2" in name else "whole_fit")
        reference = final(whole)
        differing = list(differences({part: reference[part] for part in STATE}, {part: state[part] for part in STATE}))
        snapshots = {path.name: path.read_bytes() for path in (run / "averages").glob("step=*")}
        curves = {tag: curve(run, tag) for tag in ("train/loss", "val/loss", "train/clips_seen")}
        return {"differing": differing, "snapshots": snapshots, **curves}

    def _encode(self, name: str) -> dict[str, Any]:
        manifest = Manifest.read(self.folder / name)
        shards_found = [checksum(self.folder / name / shard_name(n)) for n in range(len(manifest.checksums))]
        return {"manifest": manifest, "shards": shards_found}

    def _test(self, name: str) -> dict[str, Any]:
        (path,) = (self.folder / name).glob("*.json")
        rows, counts = shards(self.folder / name)
        return {"scores": Record.read(path).scores, "features": {n: row.tolist() for n, row in rows.items()},
                "counted once": set(counts.values()) == {1}}  # fmt: skip

    def _study_of(self, name: str) -> Study:
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            write_study(folder, rows={"uniform": {}}, scale={"clips": 40})
        return Study(folder)

    def _study(self, name: str) -> dict[str, Any]:
        (trial,) = trials_of(self.folder / name)
        result = result_of(trial)
        return {"hash": result["hash"], "curves": result["curves"], "held_out": result["held_out"]}


def run(folder: Path, kills: int, seed: int = 0, minutes: float = float("inf")) -> dict[str, int]:
    """Kill commands, and return how often each was killed by which signal, and the number of equal results.

    Args:
        folder: Working folder.
        kills: Number of kills.
        seed: Seed of all random choices.
        minutes: Time after which no further run is started.
    """
    soak, end = Soak(folder, seed), time.monotonic() + 60.0 * minutes
    soak.prepare()
    done = 0
    while done < kills and time.monotonic() < end:
        for task in soak.tasks:
            if done < kills and time.monotonic() < end:
                done += soak.attempt(task, min(PER_RUN, kills - done))
        print(f"{done} kills: {json.dumps(soak.counts)}", flush=True)
    return dict(soak.counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as place:
        print(run(Path(place), options.kills, options.seed, options.minutes))
