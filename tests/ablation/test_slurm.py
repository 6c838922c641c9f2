"""Studies on a real SLURM: trials run as jobs, later runs follow them, and the cluster leaves no process behind."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import PARTITION, cluster, members, reason_to_skip, state, wait_for
from studies import result_of, start, trials_of, write_study

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
OPTIONS = ("--executor", "slurm", "--partition", PARTITION, "--mem-gb", "2")


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A SLURM cluster of this machine alone."""
    with cluster():
        yield


def test_cluster_leaves_no_process_behind(tmp_path: Path) -> None:
    folders = []

    def fail() -> None:
        with cluster() as folder:
            folders.append(folder)
            command = ["sbatch", "--parsable", f"--partition={PARTITION}", "--mem=100", "--wrap=sleep 600"]
            submitted = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
            wait_for(lambda: state(submitted.stdout.strip()) == "RUNNING")
            assert len(members(folder)) > 2  # the daemons at least
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not members(folders[0])
    assert not folders[0].exists()


@pytest.mark.usefixtures("slurm")
def test_study_runs_on_slurm(tmp_path: Path) -> None:
    write_study(tmp_path, rows={"uniform": {}, "diverges": {"model.lr": 1.0e30}}, scale={"clips": 16})
    process = start(tmp_path, "run", "study.yaml", *OPTIONS, "--jobs", "2")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert "1 of 2 trials finished, 1 FAILED" in said, said
    uniform, diverges = trials_of(tmp_path)
    assert result_of(uniform)["axes"]["patch_embed"] == "uniform"
    assert "the loss is" in diverges.failure.read_text()


@pytest.mark.usefixtures("slurm")
def test_next_run_follows_a_job_that_still_runs(tmp_path: Path) -> None:
    write_study(tmp_path, rows={"uniform": {}})
    (trial,) = trials_of(tmp_path)
    first = start(tmp_path, "run", "study.yaml", *OPTIONS)
    wait_for(lambda: (trial.path / "built.json").exists())
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=600)
    assert "keep running" in said
    second = start(tmp_path, "run", "study.yaml", *OPTIONS)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert "1 of 1 trials finished" in said
    # if squeue fails, a second job is submitted, which then uses the result of the first
    assert (trial.path / "log.txt").read_text().count("checkpoints ") == 1
