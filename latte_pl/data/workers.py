"""Loader processes that survive a signal to all processes of a job."""

import os
import signal
import threading


def ignore_signals(worker_id: int) -> None:
    """Ignore SIGTERM, SIGUSR1 and Ctrl-C in a loader process, so that the training process decides when it ends.

    Schedulers and terminals signal all processes of a job. If the loader processes died, the training process could not
    finish its step. SIGTERM from the training process, which PyTorch sends to loader processes that do not stop, still
    ends the process.

    Args:
        worker_id: Number of the loader process; unused. The signature is that of a DataLoader's ``worker_init_fn``.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # only sigwaitinfo tells who sent a signal; threads that start later inherit the mask
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
