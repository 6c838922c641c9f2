"""A callback that stops a training at chosen steps, so that a test can interrupt it there."""

import signal
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class PauseOnce(Callback):
    """Wait for a signal after each of some steps, and write the file ``paused-STEP`` first. Later runs do not wait.

    Args:
        steps: Optimizer steps.
        folder: Folder of the files.
    """

    def __init__(self, steps: list[int], folder: str) -> None:
        self.steps, self.folder = steps, Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Wait before the batch that follows the step, when the step's checkpoint is written."""
        file = self.folder / f"paused-{trainer.global_step}"
        if trainer.global_step in self.steps and not file.exists():
            file.touch()
            signal.pause()
