"""Checkpoints that survive kills: written atomically, and only complete ones are used."""

import hashlib
import re
import shutil
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors.torch import save_file
from torch import Tensor

from latte_pl.files import is_intact_zip, replaced
from latte_pl.training import sharded
from latte_pl.training.agreement import Agreement

NAME = re.compile(r"step=(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and read them without executing anything that they hold.

    Lightning's own writer uses the temporary folder; on most clusters that is another disk, so its rename is a copy.

    Args:
        asynchronous: Write in a thread, from a copy of the checkpoint in memory, while the training goes on. The next
            checkpoint and the end of the training wait for the thread.
    """

    def __init__(self, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None
        self._copy: Any = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, or start to write it after the one before is written.

        Raises:
            OSError: The file, or asynchronously the one before, cannot be written; earlier checkpoints are unchanged.
        """
        if not self.asynchronous:
            _write(checkpoint, path)
            return
        self.wait()
        self._copy = _copied(checkpoint, self._copy)
        self._thread = self._thread or ThreadPoolExecutor(1, "checkpoint")
        self._written = self._thread.submit(_write, self._copy, path)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: It cannot be written.
        """
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def teardown(self) -> None:
        """Wait until the last checkpoint is written, and end the thread."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = self._copy = None

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint with ``weights_only=True``: a file memory-mapped, a sharded one into memory."""
        if sharded.is_sharded(Path(path)):
            return sharded.read(Path(path), ("state_dict", "optimizer_0"))
        return torch.load(path, map_location=map_location or "cpu", mmap=True, weights_only=True)


def _copied(value: Any, buffer: Any = None) -> Any:
    """Return a nested value with copies of its tensors in the memory of this process.

    Args:
        value: Dictionaries, lists and tuples of tensors and other values.
        buffer: An earlier copy that is not needed any more. Its tensors are overwritten where they fit, because
            writing to new memory takes several times as long.
    """
    if isinstance(value, Tensor):
        if isinstance(buffer, Tensor) and (buffer.shape, buffer.dtype) == (value.shape, value.dtype):
            return buffer.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        earlier = buffer if isinstance(buffer, dict) else {}
        return {name: _copied(part, earlier.get(name)) for name, part in value.items()}
    if type(value) in (list, tuple):
        parts = buffer if isinstance(buffer, list | tuple) and len(buffer) == len(value) else [None] * len(value)
        return type(value)(_copied(part, other) for part, other in zip(value, parts))
    return value


def _write(checkpoint: dict[str, Any], path: Any) -> None:
    with replaced(path) as temporary:
        torch.save(checkpoint, temporary)


def write_tensors(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    with replaced(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: value.contiguous() for name, value in state.items()}, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors makes files that only their owner can read


def digest(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors of a state dict."""
    content = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def is_intact(path: Path) -> bool:
    """Whether the content of a checkpoint matches the checksums that it carries. Reads the whole file.

    Raises:
        PermissionError: The file must not be read.
    """
    return sharded.is_intact(path) if sharded.is_sharded(path) else is_intact_zip(path)


def newest_intact(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder that is not damaged, and name damaged ones; None if there is none."""
    for path in reversed(_numbered(folder)):
        if is_intact(path):
            return path
        rank_zero_warn(f"{path} is damaged and is skipped")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the oldest step first; truncated files are skipped."""
    return [path for path in _numbered(folder) if sharded.is_sharded(path) or zipfile.is_zipfile(path)]


def _numbered(folder: Path) -> list[Path]:
    """Return all checkpoints of a folder, the oldest step first."""
    found = [(int(match[1]), path) for path in folder.glob("*.ckpt") if (match := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class Diverged(ValueError):
    """The loss or the weights of a training are not finite."""


def check_finite(trainer: Trainer, module: LightningModule, step: int | None = None) -> None:
    """Check that all weights are finite, after a step (the current one if None).

    Raises:
        Diverged: A weight is infinite or no number.
    """
    total = torch.zeros((), device=module.device, dtype=torch.float64)
    for parameter in module.parameters():
        if parameter.requires_grad:
            value = parameter.detach()
            local = value.to_local() if hasattr(value, "to_local") else value  # sharded weights
            total += local.double().sum() * 0.0  # 0, or no number
    total = trainer.strategy.reduce(total, reduce_op="sum")
    if not torch.isfinite(total):
        raise Diverged(advice(trainer, "the weights are not finite", step))


def advice(trainer: Trainer, what: str, step: int | None = None) -> str:
    """Return what diverged, the last checkpoint and what to try."""
    saved = checkpoints(_folder(trainer))
    last = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    return (
        f"{what} at step {trainer.global_step if step is None else step}; {last}. Try a lower model.lr, a longer "
        "model.warmup_steps, a smaller trainer.gradient_clip_val, or trainer.precision 32-true"
    )


class RunCheckpoint(Checkpoint):
    """Save the training state every so many steps and at the end, as ``checkpoints/step=N.ckpt``.

    Weights that are not finite are never saved: the training stops instead, and its last checkpoint stays.

    The state of step N is saved when the next step starts. By then the losses, samples and validation of step N are
    logged, and the logs are flushed first, so that a run that resumes logs every point exactly once.

    Args:
        every_n_steps: Optimizer steps between checkpoints, at least 1.
        keep: Number of newest checkpoints to keep, at least 1; None keeps all.
        every_n_minutes: Save also when this many minutes have passed since the last checkpoint; None does not.
        asynchronous: Write in a thread while the training goes on; needs memory for one more checkpoint on the first
            process.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        keep: int | None = 2,
        every_n_minutes: float | None = None,
        asynchronous: bool = False,
    ) -> None:
        if every_n_steps < 1 or (keep is not None and keep < 1):
            raise ValueError(
                f"checkpoints.every_n_steps is {every_n_steps} and keep is {keep}; both must be at least 1"
            )
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"checkpoints.every_n_minutes is {every_n_minutes}; it must be positive")
        self.every_n_steps, self.keep = every_n_steps, keep
        self.every_n_minutes, self.asynchronous = every_n_minutes, asynchronous
        self._saved = 0
        self._saved_at = 0.0  # time of the last checkpoint
        self._due: Agreement | None = None  # the clocks of the processes differ

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the trainer write in a thread, if this is chosen.

        Raises:
            ValueError: The checkpoints are sharded.
        """
        if stage != "fit" or not self.asynchronous:
            return
        if getattr(trainer.strategy, "sharded_checkpoints", False):
            raise ValueError("checkpoints.asynchronous is true, but the strategy shards checkpoints; set one to false")
        trainer.strategy.checkpoint_io = AtomicCheckpointIO(asynchronous=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the step that training starts from as saved."""
        self._saved, self._saved_at = trainer.global_step, time.monotonic()
        self._due = Agreement(trainer.world_size) if self.every_n_minutes else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save the previous step if its checkpoint is due."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        by_time = self._due is not None and self._due.result()
        if by_time or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer, pl_module)
        if self._due is not None and self.every_n_minutes is not None:
            self._due.propose(int(time.monotonic() - self._saved_at >= 60.0 * self.every_n_minutes))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        if self._due is not None:
            self._due.result()
        self._save(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete old checkpoints, now that the last one is written."""
        if trainer.is_global_zero and self.asynchronous and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._delete_old(_folder(trainer), self._saved)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._saved or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        check_finite(trainer, pl_module)
        self._saved = step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        folder = _folder(trainer)
        trainer.save_checkpoint(folder / f"step={step:07d}.ckpt")
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            self._delete_old(folder, step)

    def _delete_old(self, folder: Path, step: int) -> None:
        if self.keep is None:
            return
        # checkpoints of later steps are damaged ones, from before the run resumed
        done = [path for path in checkpoints(folder) if int(NAME.fullmatch(path.name)[1]) <= step]  # type: ignore[index]
        for path in done[: -self.keep]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"
