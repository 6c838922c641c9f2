"""Trials on a real SLURM: a value, an error, a cancellation, and a machine left as it was."""

import operator
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit
from slurm_cluster import PARTITION, cluster, members, reason_to_skip, state, wait_for
from studies import result_of, start, trials_of, write_study

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())


def one_cpu(folder: Path) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(folder=folder / "%j", cluster="slurm")
    executor.update_parameters(timeout_min=2, cpus_per_task=1, mem_gb=0.25, slurm_partition=PARTITION)
    return executor


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[submitit.AutoExecutor]:
    with cluster():
        yield one_cpu(tmp_path_factory.mktemp("jobs"))


def test_value_comes_back(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(operator.mul, 6, 7)
    assert job.result() == 42
    wait_for(lambda: state(job.job_id) == "COMPLETED")


def test_error_comes_back_with_its_last_line(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(int, "four")
    error = job.exception()
    assert isinstance(error, submitit.core.utils.FailedJobError)
    assert "ValueError: invalid literal for int() with base 10: 'four'" in str(error).splitlines()
    wait_for(lambda: state(job.job_id) == "FAILED")


def test_cancelled_job_ends_without_result(executor: submitit.AutoExecutor) -> None:
    job = executor.submit(time.sleep, 600)
    wait_for(lambda: state(job.job_id) == "RUNNING")
    job.cancel()
    wait_for(lambda: state(job.job_id) == "CANCELLED")
    assert not job.paths.result_pickle.exists()


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    folders = []

    def fail() -> None:
        with cluster() as folder:
            folders.append(folder)
            job = one_cpu(tmp_path).submit(time.sleep, 600)
            wait_for(lambda: state(job.job_id) == "RUNNING" and job.paths.stdout.exists())
            assert len(members(folder)) > 3  # the daemons and the job's own processes
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not members(folders[0])
    assert not folders[0].exists()


def test_a_study_runs_on_slurm(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    rows = {"uniform": {}, "diverges": {"model.lr": 1.0e30}}
    write_study(tmp_path, rows=rows)
    slurm = ("--executor", "slurm", "--partition", PARTITION, "--jobs", "2", "--mem-gb", "2")
    process = start(tmp_path, "run", "study.yaml", *slurm)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    assert "1 of 2 trials finished, 1 FAILED" in said, said
    uniform, diverges = trials_of(tmp_path)
    assert result_of(uniform)["axes"]["patch_embed"] == "uniform"
    assert "the loss is" in diverges.failure.read_text()


def test_a_job_that_still_runs_is_taken_over_by_the_next_run(executor: submitit.AutoExecutor, tmp_path: Path) -> None:
    write_study(tmp_path, rows={"uniform": {}})
    (trial,) = trials_of(tmp_path)
    slurm = ("run", "study.yaml", "--executor", "slurm", "--partition", PARTITION, "--mem-gb", "2")
    first = start(tmp_path, *slurm)
    wait_for(lambda: (trial.path / "built.json").exists())
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert "go on in SLURM" in said
    second = start(tmp_path, *slurm)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "1 of 1 trials finished" in said
    # a queue that does not answer in time may cost a second job, which then finds the first one's result
    assert (trial.path / "log.txt").read_text().count("checkpoints ") == 1
