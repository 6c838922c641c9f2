"""What a run reports while it trains: throughput, samples, a progress bar and where the files are."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.training.media import contact_sheet, gif_bytes, log_video
from latte_pl.training.module import LatteModule


class Throughput(Callback):
    """Log ``train/clips_seen``, ``train/clips_per_second`` and ``train/lr`` every ``trainer.log_every_n_steps`` steps.

    Clips are counted over all devices and accumulated batches. Needs one of the datamodules of `latte_pl.data`.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log once per optimizer step that is due."""
        step, now = trainer.global_step, time.monotonic()
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if self._last is None:
            self._last = (step, now)
        if step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        clips = trainer.datamodule.global_batch_size  # type: ignore[attr-defined]
        metrics = {"train/clips_seen": step * clips, "train/lr": trainer.optimizers[0].param_groups[0]["lr"]}
        then, at = self._last
        if step > then:
            metrics["train/clips_per_second"] = (step - then) * clips / (now - at)
        self._last = (step, now)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


class SampleVideos(Callback):
    """Draw the same samples every so many steps, as an animation for each logger and a GIF in the run's folder.

    Every logger that can show an animation gets one: TensorBoard and Weights & Biases. The file is
    ``samples/step=N.gif``.

    Args:
        every_n_steps: Optimizer steps between two rounds, at least 1; the last step of training has one too.
        num_samples: Videos of a round, at least 1. They cycle through the classes, or through captions of the data.

    Raises:
        ValueError: A number is below 1.
    """

    def __init__(self, every_n_steps: int = 5000, num_samples: int = 8) -> None:
        if every_n_steps < 1 or num_samples < 1:
            raise ValueError(
                f"samples.every_n_steps is {every_n_steps} and num_samples is {num_samples}; both must be at least 1"
            )
        self.every_n_steps, self.num_samples = every_n_steps, num_samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw and log the samples of a step that is due."""
        step = trainer.global_step
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not whole_step or (step % self.every_n_steps and step != trainer.max_steps):
            return
        assert isinstance(pl_module, LatteModule)
        data = getattr(trainer, "datamodule", None)
        prompts = None
        if pl_module.net.conditioning == "text":
            if not isinstance(data, VideoDataModule):
                return  # nothing to draw samples of
            prompts = data.prompts(self.num_samples)
        fps = data.fps if isinstance(data, VideoDataModule) else VideoDataModule.fps
        indices = list(range(self.num_samples))
        labels = [n % pl_module.net.num_classes for n in indices] if pl_module.net.conditioning == "class" else None
        with trainer.precision_plugin.forward_context():
            videos = pl_module.sample(indices, labels, prompts=prompts)
        if not trainer.is_global_zero:
            return
        sheet = contact_sheet(videos)
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step={step:07d}.gif").write_bytes(gif_bytes(sheet, fps))
        for logger in trainer.loggers:
            log_video(logger, "samples", sheet, step, fps)


class StepProgressBar(TQDMProgressBar):
    """Count batches towards ``trainer.max_steps``, because the stream of clips has no end.

    While samples are drawn, a second bar shows their denoising steps.
    """

    @property
    def total_train_batches(self) -> int | float:
        """Return the number of batches of the whole training."""
        total = self.trainer.max_steps
        return super().total_train_batches if total < 0 else total * self.trainer.accumulate_grad_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the step that training starts from."""
        super().on_train_start(trainer, pl_module)
        done, total = trainer.global_step * trainer.accumulate_grad_batches, self.total_train_batches
        self.train_progress_bar.reset(total=None if total == float("inf") else int(total))
        self.train_progress_bar.initial = self.train_progress_bar.n = done
        self.train_progress_bar.set_description("Training")
        if isinstance(pl_module, LatteModule) and self.is_enabled:
            pl_module.sampling_progress = _sampling_bar

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show no bars after the training."""
        if isinstance(pl_module, LatteModule):
            pl_module.sampling_progress = None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keep the bar as it is: the stream of clips has no epochs."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the figures beside the bar, without the logger's version number."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


def _sampling_bar(steps: Sequence[Any], num_videos: int) -> Iterable[Any]:
    return tqdm(steps, desc=f"Sampling {num_videos} videos", unit="step", leave=False)


class RunSummary(Callback):
    """Print where the files of a run are when training ends."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how an interrupted run resumes."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            print(
                f"\ninterrupted at step {trainer.global_step}; run the same command to resume from the last checkpoint"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the folders and the command that shows the curves."""
        if trainer.is_global_zero:  # not trainer.log_dir, which every process would have to ask for
            folder = Path(trainer.default_root_dir)
            saved = "none (fast_dev_run)" if trainer.fast_dev_run else folder / "checkpoints"  # type: ignore[attr-defined]
            print(f"\ncheckpoints  {saved}\nsamples      {folder / 'samples'}")
            print(f"curves       tensorboard --logdir {folder.parent}")
