"""Log a video distance while a model trains: a callback for `Trainer.fit`."""

from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.evaluation.models import real_folder, request, run_protocol
from latte_pl.evaluation.motion import motion_accuracy
from latte_pl.metrics import I3D, EvaluationProtocol, Extractor, FeatureStore, clip_features, score
from latte_pl.metrics.evaluation import add_reals
from latte_pl.toy.extractor import ShapesR3D
from latte_pl.training.module import LatteModule

PROTOCOLS = {"toy_video_distance": "toy-256-8f", "fvd": "fvd2048-16f"}
"""The protocol of each metric, for what the run does not decide: the real clips and the labels."""


class VideoDistance(Callback):
    """Log ``val/toy_video_distance``, and ``val/fvd`` if I3D is given, every so many steps of training.

    The same samples are drawn each time, and compared with clips of the validation split, whose features are stored
    beside the runs. Unless there are more clips than features (128 of the toy extractor, 400 of I3D) the value is far
    too large; its name then ends in ``_smoke``, and it can be compared only with earlier values of the same run. For
    results, use `latte test`. If the classes of the data are motions, ``val/motion_accuracy`` is the share of these
    samples that move as labelled.

    Args:
        every_n_steps: Optimizer steps between two values; 0 logs none.
        num_clips: Samples, and real clips, of a value; at least 2.
        batch_size: Samples that a device draws at once, at least 1.
        i3d_path: The TorchScript of I3D (``i3d_torchscript.pt``), for ``val/fvd``.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, every_n_steps: int = 0, num_clips: int = 256, batch_size: int = 16, i3d_path: str | None = None
    ) -> None:
        if every_n_steps < 0 or num_clips < 2 or batch_size < 1:
            raise ValueError(
                f"distance.every_n_steps is {every_n_steps}, num_clips is {num_clips} and batch_size is {batch_size}; "
                "they must be at least 0, 2 and 1"
            )
        self.every_n_steps, self.num_clips, self.batch_size = every_n_steps, num_clips, batch_size
        self.i3d_path = i3d_path
        self._extractors: dict[str, Extractor] = {}
        self._real: dict[str, np.ndarray] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the features of the real clips, or read them if they are stored.

        Raises:
            FileNotFoundError: There is no file at ``i3d_path``.
            ValueError: The clips are too short for I3D.
        """
        if not self.every_n_steps:
            return
        assert isinstance(pl_module, LatteModule)
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        frames = pl_module.net.num_frames
        self._extractors = {"toy_video_distance": ShapesR3D()}
        if self.i3d_path is not None:
            if frames < I3D.min_frames:
                raise ValueError(
                    f"distance.i3d_path is given, but I3D needs {I3D.min_frames} frames and the model has {frames}"
                )
            self._extractors["fvd"] = I3D(self.i3d_path)
        for name, extractor in self._extractors.items():
            values = {"metrics": [name], "split": "val", "view": "first", "num_frames": frames}
            values |= {"num_real": self.num_clips, "num_generated": self.num_clips}
            precision = str(trainer.precision)
            protocol = run_protocol(pl_module, data, PROTOCOLS[name], extractor, precision, **values)
            store = FeatureStore(real_folder(trainer, protocol), protocol.real_part(), protocol.num_real)
            rank, world_size, device = trainer.global_rank, trainer.world_size, pl_module.device
            reals = data.videos("val")
            add_reals(store, protocol, extractor, reals, rank, world_size, device, progress=trainer.is_global_zero)
            trainer.strategy.barrier()
            self._real[name] = store.features()
            self._reals = reals
            self._protocol = protocol  # all protocols have the same seed, labels and sampler

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the samples of a step that is due, and log their distance."""
        step = trainer.global_step
        if not self._extractors or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        assert isinstance(pl_module, LatteModule)
        rank, world_size = trainer.global_rank, trainer.world_size
        # sharded weights need equally many forward passes on every process; samples past the end are dropped
        share = list(range(rank, -(-self.num_clips // world_size) * world_size, world_size))
        features: dict[str, list[Tensor]] = {name: [] for name in self._extractors}
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        motions: list[int] | None = [] if pl_module.net.conditioning == "class" else None
        for first in range(0, len(share), self.batch_size):
            with trainer.precision_plugin.forward_context():
                videos = draw(pl_module, self._protocol, share[first : first + self.batch_size], self._reals)
            for name, extractor in self._extractors.items():
                features[name].append(clip_features(extractor, videos))
            seen = data.observed_motions(videos) if motions is not None else None
            motions = None if motions is None or seen is None else motions + seen
        metrics = {}
        for name, rows in features.items():
            found = trainer.strategy.all_gather(torch.cat(rows))  # (N / ranks, 1, D) of this process, or of each
            if found.ndim == 4:
                found = found.transpose(0, 1).flatten(0, 1)  # in the order of the samples
            value = score(name, self._real[name], found[: self.num_clips].cpu().numpy())
            metrics[f"val/{name}{'_smoke' if value.label == 'smoke' else ''}"] = value.value
        if motions is not None:
            found = trainer.strategy.all_gather(torch.tensor(motions, device=pl_module.device))  # (ranks, N / ranks)
            observed = (found.T if found.ndim == 2 else found).flatten()[: self.num_clips].tolist()
            labels = [request(self._protocol, pl_module.net.num_classes, n)["label"] for n in range(self.num_clips)]
            metrics["val/motion_accuracy"] = motion_accuracy(observed, labels, data.class_names)["value"]
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)


def draw(module: LatteModule, protocol: EvaluationProtocol, indices: list[int], reals: Any = None) -> Tensor:
    """Return the samples (B, F, 3, H, W) uint8 of a protocol with these indices."""
    requests = [request(protocol, module.net.num_classes, n, reals) for n in indices]
    labels, prompts = [r["label"] for r in requests], [r["prompt"] for r in requests]
    return module.sample(indices, labels, seed=protocol.seed, prompts=prompts)
