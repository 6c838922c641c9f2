"""What a run shows while it trains: curves, sample videos, a progress bar that knows the end."""

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from latte_pl.training.media import contact_sheet, gif_bytes, log_video
from latte_pl.training.module import LatteModule


class Curves(Callback):
    """Logs the loss, its parts and quartiles by timestep, the gradient norm, clips seen and clips a second.

    Every figure is of one optimizer step over all ranks and accumulated batches, at the step's number.

    Args:
        every_n_steps: Optimizer steps between two points of the curves.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Curves(every_n_steps={every_n_steps}): it must be at least 1")
        self.every_n_steps = every_n_steps
        self._last: tuple[int, float] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once a whole optimizer step has been made."""
        assert isinstance(pl_module, LatteModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        now = time.monotonic()
        if self._last is None:
            self._last = (step, now)
        if step % self.every_n_steps and step != trainer.max_steps:
            pl_module.drop_window()
            return
        window = pl_module.pop_window()
        t, loss = window.pop("t"), window.pop("loss")
        figures = {"train/loss": loss.mean(), **{f"train/{name}": value.mean() for name, value in window.items()}}
        quartile = (t / 250.0).long().clamp(0, 3)
        for q in range(4):
            if (quartile == q).any():
                figures[f"train/loss_t{250 * q}-{250 * (q + 1)}"] = loss[quartile == q].mean()
        num_images = trainer.datamodule.num_images  # type: ignore[attr-defined]
        if num_images:
            figures["train/loss_video"] = loss[:, :-num_images].mean()
            figures["train/loss_image"] = loss[:, -num_images:].mean()
        clips = trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        figures["train/clips_seen"] = step * clips
        figures["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        then, at = self._last
        if step > then:
            figures["train/clips_per_second"] = (step - then) * clips / (now - at)
        self._last = (step, now)
        trainer.callback_metrics["train/loss"] = figures["train/loss"]
        if trainer.logger is not None:
            trainer.logger.log_metrics({name: float(value) for name, value in figures.items()}, step=step)


class SampleVideos(Callback):
    """Samples the same numbered videos every so many steps: an animation in TensorBoard and a GIF in the run's folder.

    Args:
        every_n_steps: Optimizer steps between two rounds of samples.
        num_samples: Videos of a round; a model cycles through its classes, or through captions of the data.
    """

    def __init__(self, every_n_steps: int = 5000, num_samples: int = 8) -> None:
        if every_n_steps < 1 or num_samples < 1:
            raise ValueError(f"SampleVideos(every_n_steps={every_n_steps}, num_samples={num_samples}): at least 1 each")
        self.every_n_steps, self.num_samples = every_n_steps, num_samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample when the turn has come."""
        step = trainer.global_step
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not whole_step or (step % self.every_n_steps and step != trainer.max_steps):
            return
        assert isinstance(pl_module, LatteModule)
        numbers = list(range(self.num_samples))
        labels = [n % pl_module.net.num_classes for n in numbers] if pl_module.net.conditioning == "class" else None
        data = trainer.datamodule  # type: ignore[attr-defined]
        prompts = data.prompts(self.num_samples) if pl_module.net.conditioning == "text" else None
        with trainer.precision_plugin.forward_context():
            videos = pl_module.sample(numbers, labels, prompts=prompts)
        if not trainer.is_global_zero:
            return
        sheet = contact_sheet(videos)
        fps = data.fps
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step={step:07d}.gif").write_bytes(gif_bytes(sheet, fps))
        if isinstance(trainer.logger, TensorBoardLogger):
            log_video(trainer.logger.experiment, "samples", sheet, step, fps)


class StepProgressBar(TQDMProgressBar):
    """Counts batches towards `trainer.max_steps`, since the stream of clips has no end of its own."""

    @property
    def total_train_batches(self) -> int | float:
        """Return the number of batches of the whole training."""
        total = self.trainer.max_steps
        return super().total_train_batches if total < 0 else total * self.trainer.accumulate_grad_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step that training starts from."""
        super().on_train_start(trainer, pl_module)
        done, total = trainer.global_step * trainer.accumulate_grad_batches, self.total_train_batches
        self.train_progress_bar.reset(total=None if total == float("inf") else int(total))
        self.train_progress_bar.initial = self.train_progress_bar.n = done
        self.train_progress_bar.set_description("Training")

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keep the bar: the endless stream of clips has no epochs."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Show the last logged training loss beside the usual figures."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if "train/loss" in trainer.callback_metrics:
            shown["train/loss"] = f"{float(trainer.callback_metrics['train/loss']):.4f}"
        return shown


class FitReport(Callback):
    """Says at the end of training where everything is."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that an interrupted run can go on."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print(f"\ninterrupted at step {trainer.global_step}; the same command goes on from the newest checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the folder's contents and the command that shows the curves."""
        if trainer.is_global_zero:  # trainer.log_dir is a collective call, not to be made on one rank alone
            folder = Path(trainer.default_root_dir)
            kept = "none of a trial run" if trainer.fast_dev_run else folder / "checkpoints"  # type: ignore[attr-defined]
            print(f"\ncheckpoints  {kept}\nsamples      {folder / 'samples'}")
            print(f"curves       tensorboard --logdir {folder.parent}")
