"""Checkpoints that survive a kill: written aside and renamed, and only whole ones are ever picked."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

NAME = re.compile(r"step=(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name, flushes it to the disk and renames it.

    Lightning's own writer goes through the temporary folder, from where a rename is a copy on most clusters.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; after a kill or a full disk the old files are as they were."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer says "unexpected pos" when the disk is full
            raise OSError(f"cannot write {path}: {error}; is the disk full? The older checkpoints are whole") from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without executing anything that it holds."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def write_tensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file such that a reader sees the old one or the whole new one.

    Raises:
        OSError: When the place cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        save_file({name: value.contiguous() for name, value in state.items()}, part, metadata=metadata)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}; is the disk full?") from error
    finally:
        part.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a folder, the oldest step first; a truncated one is passed over."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if zipfile.is_zipfile(path)]


class Checkpoints(Callback):
    """Saves the whole training state every so many steps and at the end, as ``checkpoints/step=N.ckpt``.

    A step is saved when the next one starts: by then its curves, samples and validation are logged, and the logs are
    flushed first, so that a killed run that goes on from its checkpoint has every point exactly once.

    Args:
        every_n_steps: Optimizer steps between checkpoints.
        keep: Newest checkpoints to keep; None keeps all.
    """

    def __init__(self, every_n_steps: int = 1000, keep: int | None = 2) -> None:
        if every_n_steps < 1 or (keep is not None and keep < 1):
            raise ValueError(f"Checkpoints(every_n_steps={every_n_steps}, keep={keep}): both must be at least 1")
        self.every_n_steps, self.keep = every_n_steps, keep
        self._saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the step that training starts from as saved."""
        self._saved = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the step before this one when its turn has come."""
        if trainer.global_step % self.every_n_steps == 0 and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count batches anew from the optimizer steps.

        The saved counts include a batch that was ready but not trained on, may end inside an accumulated step, and are
        of the accumulation of then.
        """
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._saved = step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        folder = Path(trainer.default_root_dir) / "checkpoints"
        trainer.save_checkpoint(folder / f"step={step:07d}.ckpt")
        if trainer.is_global_zero and self.keep is not None:
            for path in checkpoints(folder)[: -self.keep]:
                path.unlink(missing_ok=True)
