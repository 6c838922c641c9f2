"""Trials on this machine, each in a process of its own.

Importing PyTorch and Lightning takes longer than many a short command. So trials are forked from a server process that
has imported everything once, and their commands are forked from the trial. Only trials with several devices start new
processes, because Lightning starts the processes of the other devices by the command line of the first.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from typing import Any

from latte_pl.ablation.trial import Trial
from latte_pl.ablation.worker import work

PRELOAD = [
    *("latte_pl.cli.fit", "latte_pl.cli.test", "latte_pl.cli.average", "latte_pl.toy.datamodule"),
    *("latte_pl.ablation.monitor", "latte_pl.ablation.results", "torch.utils.tensorboard"),
    "tensorboard.backend.event_processing.event_accumulator",
]
"""Modules that trials use."""


class LocalJob:
    """A trial that runs in a process of this machine.

    Args:
        trial: The trial.
        threads: CPU threads of its commands.
    """

    def __init__(self, trial: Trial, threads: int) -> None:
        fork = may_fork(trial)
        if fork:
            start_server()
        context: Any = multiprocessing.get_context("forkserver" if fork else "spawn")
        self._process = context.Process(target=_work, args=(trial, threads, fork))
        self._process.start()

    def done(self) -> bool:
        """Return whether the process has ended."""
        return not self._process.is_alive()

    def cancel(self) -> None:
        """Interrupt the process, which then ends its command."""
        if self._process.pid is not None and not self.done():
            os.kill(self._process.pid, signal.SIGINT)


def may_fork(trial: Trial) -> bool:
    """Return whether the commands of a trial may be forked: on Linux, those that run in one process."""
    trainer = trial.config["trainer"]
    single = trainer["devices"] in (1, "1") or (trainer["devices"], trainer["accelerator"]) == ("auto", "cpu")
    return sys.platform == "linux" and single


def start_server() -> None:
    """Start the process that trials are forked from, unless it runs already. It imports while this process goes on."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    # inherited: tqdm reads its setting when it is imported; a question whether there is a GPU must not initialise CUDA,
    # which forks could not use then; Ctrl-C must reach the trials, not the server
    os.environ |= {"TQDM_DISABLE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)


def _work(trial: Trial, threads: int, fork: bool) -> None:
    """Train and measure a trial. Its errors are not printed, because they are in its log and in its failure.json."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work(trial, threads, fork)
    except (Exception, KeyboardInterrupt):
        sys.exit(1)
