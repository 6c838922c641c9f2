"""Trials on a real SLURM: a value, an error, a cancellation, and a machine left as it was."""

import operator
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import submitit
from slurm_cluster import PARTITION, cluster, members, reason_to_skip, state, wait_for

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
