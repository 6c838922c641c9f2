"""Skip optimizer steps whose gradient is far larger than usual."""

import math
from collections import deque
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class SpikeGuard(Callback):
    """Skip an optimizer step if its gradient norm exceeds ``factor`` times the median of the last ones.

    A skipped step changes neither weights nor the state of the optimizer; it counts as a step all the same, so that
    the order of the clips and the learning rate do not change. Skipped norms enter the median, too: the guard adapts
    to gradients that stay large. Norms that are not finite are always skipped, except with ``16-mixed``, where the
    GradScaler does this.

    Logs the number of skipped steps as ``train/skipped_steps``. The state is part of checkpoints. The decision needs
    the norm on the host, so each step waits for the device::

        Trainer(callbacks=[SpikeGuard(factor=5.0)])

    Args:
        factor: Largest norm of a step, as a multiple of the median, above 1.
        window: Number of norms that the median is over. The guard acts once it has as many.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, factor: float = 5.0, window: int = 100) -> None:
        if factor <= 1.0 or window < 1:
            raise ValueError(f"factor is {factor} and window is {window}; they must be above 1 and at least 1")
        self.factor, self.window = factor, window
        self.skipped = 0
        """Number of skipped steps."""
        self._norms: deque[float] = deque(maxlen=window)
        self._logged_step = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remove the gradients of a step that is to be skipped; the optimizer then changes nothing."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        norm = float(total.full_tensor() if hasattr(total, "full_tensor") else total)  # of sharded gradients
        finite = math.isfinite(norm)
        full = len(self._norms) == self.window
        spike = full and norm > self.factor * median(self._norms) if finite else trainer.precision != "16-mixed"
        if finite:
            self._norms.append(norm)
        if spike:
            self.skipped += 1
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the number of skipped steps."""
        step = trainer.global_step
        if step == self._logged_step or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        self._logged_step = step
        for logger in trainer.loggers:
            logger.log_metrics({"train/skipped_steps": self.skipped}, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Return the norms and the number of skipped steps."""
        return {"norms": list(self._norms), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the norms and the number of skipped steps."""
        self._norms = deque(state_dict["norms"], maxlen=self.window)
        self.skipped = state_dict["skipped"]
