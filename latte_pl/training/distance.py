"""The distance between samples and held-out videos as a curve while a run trains."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.metrics import I3D, EmbeddedVideoDistance, FeatureStore, FrechetDistance, FrechetVideoDistance
from latte_pl.metrics.evaluation import add_reals
from latte_pl.training.evaluation import real_folder, real_videos, run_protocol, sample
from latte_pl.training.module import LatteModule

# metric of each protocol whose reals and labels are taken; everything else is the run's
PROTOCOLS = {"embedded_video_distance": "embedded-256-8f", "fvd": "paper-fvd2048-16f"}


class VideoDistance(Callback):
    """Logs `val/embedded_video_distance`, and `val/fvd`, of the same few numbered samples every so many steps.

    The curves' names end in `_smoke` when there are fewer clips than features (128 embedded, 400 of I3D): then a value
    is far too large and good to be compared with its own past alone. The reals are clips of the validation split, whose
    features are measured once and kept beside the runs. For results, use `latte test`.

    Args:
        every_n_steps: Optimizer steps between two values; 0 is off.
        num_clips: Samples and reals of a value.
        batch_size: Samples drawn at once on each device.
        i3d_path: The TorchScript of I3D (`i3d_torchscript.pt`), to log `val/fvd` too.
    """

    def __init__(
        self, every_n_steps: int = 0, num_clips: int = 256, batch_size: int = 16, i3d_path: str | None = None
    ) -> None:
        if every_n_steps < 0 or num_clips < 2 or batch_size < 1:
            raise ValueError(
                f"VideoDistance(every_n_steps={every_n_steps}, num_clips={num_clips}, batch_size={batch_size}): "
                "at least 0, 2 and 1"
            )
        self.every_n_steps, self.num_clips, self.batch_size = every_n_steps, num_clips, batch_size
        self.i3d_path = i3d_path
        self._metrics: dict[str, FrechetDistance] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the reals, or read what was measured of them before.

        Raises:
            FileNotFoundError: When I3D is not where it was said to be.
            ValueError: When clips are too short for I3D.
        """
        if not self.every_n_steps:
            return
        assert isinstance(pl_module, LatteModule)
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        frames = pl_module.net.num_frames
        self._metrics = {"embedded_video_distance": EmbeddedVideoDistance(reset_real=False)}
        if self.i3d_path is not None:
            if frames < I3D.min_frames:
                raise ValueError(f"distance.i3d_path: I3D needs {I3D.min_frames} frames, the model makes {frames}")
            self._metrics["fvd"] = FrechetVideoDistance(I3D(self.i3d_path), reset_real=False)
        for name, metric in self._metrics.items():
            values = {"metrics": [name], "split": "val", "view": "first", "num_frames": frames}
            values |= {"num_real": self.num_clips, "num_generated": self.num_clips}
            extractor, precision = metric.extractor, str(trainer.precision)
            protocol = run_protocol(pl_module, data, PROTOCOLS[name], extractor, precision, **values)
            store = FeatureStore(real_folder(trainer, protocol), protocol.real_part(), protocol.num_real)
            rank, world_size, device = trainer.global_rank, trainer.world_size, pl_module.device
            reals = real_videos(data, "val")
            add_reals(store, protocol, extractor, reals, rank, world_size, device, progress=trainer.is_global_zero)
            trainer.strategy.barrier()
            share = torch.from_numpy(store.features())[rank::world_size]  # (N / ranks, 1, D)
            metric.to(device).add_features(share.to(device), real=True)
            self._reals = reals
            self._protocol = protocol  # seed, labels and sampler are the same in all

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sample and log when the turn has come."""
        step = trainer.global_step
        if not self._metrics or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        assert isinstance(pl_module, LatteModule)
        rank, world_size = trainer.global_rank, trainer.world_size
        # every rank runs the model equally often, as sharded weights need; numbers past the end are not counted
        share = list(range(rank, -(-self.num_clips // world_size) * world_size, world_size))
        for first in range(0, len(share), self.batch_size):
            numbers = share[first : first + self.batch_size]
            with trainer.precision_plugin.forward_context():
                videos = sample(pl_module, self._protocol, numbers, self._reals)
            for metric in self._metrics.values():
                metric.update(videos[: sum(n < self.num_clips for n in numbers)], real=False)
        figures = {}
        for name, metric in self._metrics.items():
            value = float(metric.compute())
            figures[f"val/{name}{'_smoke' if metric.label == 'smoke' else ''}"] = value
            metric.reset()
        if trainer.logger is not None:
            trainer.logger.log_metrics(figures, step=step)
