"""Stop a training at a signal: after the current step, with a checkpoint, on all processes at the same step."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from latte_pl.training.agreement import Agreement
from latte_pl.training.checkpoints import RunCheckpoint

EXIT_STATUS = 75
"""Exit status of a run that a signal stopped (EX_TEMPFAIL): no success, and the same command resumes it."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(Callback):
    """Stop at SIGTERM, SIGUSR1 or Ctrl-C after the current optimizer step, and save a checkpoint.

    The signal handler only sets a flag. The processes agree by a reduction on the CPU that is awaited one step later,
    so no step waits for it and all processes stop at the same step, whichever of them got the signal. Validation and
    sampling that are due at this step are finished first. Ctrl-C before the first step and a second Ctrl-C interrupt
    at once.

    A scheduler that preempts sends SIGTERM. SLURM can send SIGUSR1 before the time limit
    (``sbatch --signal=USR1@90``); the job is then requeued and resumes.

    Schedulers signal the loader processes, too. Those of the datamodules of `latte_pl.data` survive this.

    Attributes:
        stopped: The signal that stopped the training; None otherwise.
    """

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self._received = 0
        self._training = False
        self._interrupted = False
        self._start = 0
        self._agreement: Agreement | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._limit_val_batches: int | float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers in place of Lightning's own, which broadcast inside the handler and may deadlock."""
        if stage != "fit":
            return
        self.stopped, self._received, self._agreement = None, 0, None
        self._training = self._interrupted = False
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # a broadcast that waits for the device in every batch, for Lightning's handlers alone
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop before the first step if any process got a signal during set-up."""
        self._start, self._training = trainer.global_step, True
        self._agreement = Agreement(trainer.world_size)
        self._agreement.propose(self._received)
        if received := self._agreement.result():
            self._stop(trainer, received)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop once all processes know of the signal."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        received = self._received
        if trainer.world_size > 1:
            assert self._agreement is not None
            received = self._agreement.result()
            self._agreement.propose(self._received)
        if received and self.stopped is None and trainer.global_step != trainer.max_steps:
            self._stop(trainer, received)

    def _stop(self, trainer: Trainer, received: int) -> None:
        self.stopped = signal.Signals(received)
        loop = trainer.fit_loop
        # Lightning validates whenever it stops; here only a validation that is due anyway takes place
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):  # type: ignore[arg-type]
            self._limit_val_batches = trainer.limit_val_batches
            trainer.limit_val_batches = 0
        loop.min_epochs = loop.epoch_loop.min_steps = None  # they would postpone the stop
        trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a checkpoint if `RunCheckpoint` does not."""
        if self._agreement is not None:
            self._agreement.result()
        if self._limit_val_batches is not None:
            trainer.limit_val_batches = self._limit_val_batches
            self._limit_val_batches = None
        saves = any(isinstance(callback, RunCheckpoint) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.stopped is not None and not saves and trainer.global_step > self._start:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            trainer.save_checkpoint(folder / f"step={trainer.global_step:07d}.ckpt")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Requeue a SLURM job before its time limit, now that all checkpoints are saved."""
        if self.stopped == signal.SIGUSR1 and trainer.is_global_zero:
            self._requeue()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers from before the training."""
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers from before the training."""
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        vars(trainer._signal_connector).pop("register_signal_handlers", None)
        vars(trainer.fit_loop.epoch_loop).pop("_broadcast_sigterm_tensor", None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self._interrupted or not self._training):
            raise KeyboardInterrupt
        self._interrupted |= number == signal.SIGINT
        self._received = max(self._received, number)  # as in the reduction

    def _requeue(self) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            return
        if "SLURM_ARRAY_JOB_ID" in os.environ:
            job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        try:
            subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"the SLURM job {job} could not be requeued ({error}); submit it again to resume")
