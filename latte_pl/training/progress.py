"""Progress while samples are drawn, which takes hundreds of steps for each batch."""

from collections.abc import Iterator, Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.training.module import LatteModule


class SamplingProgressBar(ProgressBar):
    """Show how many videos a test or a prediction has drawn, and the time left.

    Each denoising step counts as a part of its videos, so the bar moves while a batch is drawn. Processes other than
    the first show nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Hide the bar; the trainer calls this in all processes but the first."""
        self._enabled = False

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        data = getattr(trainer, "datamodule", None)
        requests = data.requests if isinstance(data, VideoDataModule) else None
        if self._enabled and isinstance(pl_module, LatteModule) and requests:
            # each process draws its share, and the others are about as far
            self._bar = tqdm(
                total=-(-len(requests) // trainer.world_size),
                desc="sampling",
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.1f}/{total} videos [{elapsed}<{remaining}]",
            )
            pl_module.sampling_progress = self._count

    on_predict_start = on_test_start

    def _count(self, steps: Sequence[Any], num_videos: int) -> Iterator[Any]:
        assert self._bar is not None
        before = self._bar.n
        for count, step in enumerate(steps, 1):
            yield step
            self._bar.update(before + num_videos * count / len(steps) - self._bar.n)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the bar."""
        if self._bar is not None and isinstance(pl_module, LatteModule):
            self._bar.close()
            self._bar, pl_module.sampling_progress = None, None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the bar."""
        self.teardown(trainer, pl_module, "")
