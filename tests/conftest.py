"""Settings of all tests. Its place puts this folder on the import path, so that tests can import ``fake_videos``."""

import os
import sys

import pytest

# Threads of all workers together fit the machine: torch reads this when it is imported, here and in processes that
# tests start. Two workers with two threads each on two cores are up to fifteen times slower.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // _workers)))

LAUNCHER = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that Lightning sets when it starts the processes of a distributed strategy, one process included."""


@pytest.fixture(autouse=True)
def _leave_no_launcher():
    """Remove what a distributed strategy leaves in this process.

    A `latte` that a later test starts would inherit the variables, take this process for its launcher, and wait for
    ranks that nobody starts.
    """
    yield
    for name in LAUNCHER:
        os.environ.pop(name, None)
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
