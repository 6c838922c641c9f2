"""Measure a trained model under an evaluation protocol: a callback for `Trainer.test`."""

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.requests import SampleRequest
from latte_pl.evaluation.extractors import build_extractor
from latte_pl.evaluation.motion import described, motion_accuracy
from latte_pl.metrics import Evaluation, EvaluationProtocol, Extractor, FeatureStore, Record, text
from latte_pl.metrics.clips import RealClips, usable_videos
from latte_pl.metrics.protocol import shipped
from latte_pl.rng import numpy_generator
from latte_pl.training.checkpoints import digest as state_digest
from latte_pl.training.components import describe
from latte_pl.training.module import LatteModule

PRECISIONS = {"16-true": "16", "bf16-true": "bf16", "32-true": "32", "64-true": "64"}
"""Names of Lightning's precisions in protocols, where they differ."""


class ProtocolEvaluation(Callback):
    """Measure the samples of `Trainer.test` under an evaluation protocol, resumably::

        evaluation = ProtocolEvaluation("toy-256-8f", output="runs/x/test")
        Trainer(callbacks=[evaluation]).test(module, datamodule=Shapes(num_frames=8, interval=2))
        print(evaluation.report())

    The callback asks the datamodule for the samples of the protocol that are still missing, stores their features by
    index, and finally computes the scores of all features in order. So batch size, number of devices and interruptions
    change neither samples nor scores. The scores are logged as ``test/METRIC`` and written as a record. If the classes
    of the data are motions, the record also states which share of the samples moves as labelled (``about.motion``).

    Args:
        protocol: Name of a shipped protocol, or path of a .yaml file.
        extractor_path: Weights of the protocol's feature extractor, where they are neither bundled nor downloaded.
        batch_size: Samples that a device draws at once, at least 1.
        output: Folder of the record and of the features; ``test`` in ``trainer.default_root_dir`` if None.
        model: Name of the model in the record, such as the path of its checkpoint.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(
        self,
        protocol: str = "toy-256-8f",
        extractor_path: str | None = None,
        batch_size: int = 16,
        output: str | None = None,
        model: str = "model",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.protocol, self.extractor_path, self.batch_size = protocol, extractor_path, batch_size
        self.output, self.model = output, model
        self.record: Record | None = None
        """The result; None before the end of the test."""
        self.path = Path()
        """File of the record."""
        self.measured_before = False
        """Whether the record existed already."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the samples that are missing, and measure this process's share of the real clips.

        Raises:
            FileNotFoundError: The protocol or the extractor's weights do not exist.
            ValueError: Model, data or strategy do not fit the protocol.
        """
        if stage != "test":
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, VideoDataModule) or not isinstance(pl_module, LatteModule):
            raise ValueError("an evaluation protocol needs a LatteModule and a datamodule of latte_pl")
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("an evaluation needs the whole model on each device; use --trainer.strategy ddp")
        self._began = time.monotonic()
        extractor = build_extractor(EvaluationProtocol.stated(self.protocol).get("extractor", ""), self.extractor_path)
        protocol = run_protocol(pl_module, data, self.protocol, extractor, str(trainer.precision))
        self._identity = model_hash(pl_module)
        self._num_classes = pl_module.net.num_classes
        output = Path(self.output or Path(trainer.default_root_dir) / "test")
        base = protocol.name.partition("+")[0]
        self.path = output / f"{Path(self.model).stem}_{base}_{protocol.hash[:12]}.json"
        if self.path.is_file() and (record := Record.read(self.path)).about.get("model_sha256") == self._identity:
            self.record, self.measured_before = record, True
            data.set_requests([])
            return
        folder = output / f"features_{self._identity[:12]}_{protocol.hash[:12]}"
        self._evaluation = Evaluation(protocol, extractor, folder, real_folder(trainer, protocol))
        self._motions = FeatureStore(folder / "motions", {"hash": protocol.hash}, protocol.num_generated)
        self._data = data
        reals = self._reals = data.videos(protocol.split)  # type: ignore[arg-type]
        pending = self._evaluation.pending()
        self._num_drawn = len(pending)
        requests = [request(protocol, pl_module.net.num_classes, n, reals) for n in pending]
        data.set_requests(requests, self.batch_size, protocol.seed)
        rank, world_size, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
        self._evaluation.add_real(reals, rank, world_size, device, progress=trainer.is_global_zero)
        if not pending:  # Lightning skips the loop of an empty loader
            self._finish(trainer)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Store the features of a batch of samples, and the motions that they show."""
        if isinstance(outputs, Tensor) and len(outputs):
            indices = batch["index"].tolist()
            # motions first: a sample counts as done when its features are stored
            if (motions := self._data.observed_motions(outputs)) is not None:
                self._motions.add(indices, torch.tensor(motions).view(-1, 1, 1))
            self._evaluation.add(indices, outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute, log and write the scores."""
        if self.record is None:
            self._finish(trainer)
        assert self.record is not None
        for name, score in self.record.scores.items():
            pl_module.log(f"test/{name}", score.value, sync_dist=True)

    def _finish(self, trainer: Trainer) -> None:
        trainer.strategy.barrier()  # the features of all processes are stored
        device = trainer.strategy.root_device
        self.record = Record.make(
            self.model,
            self._evaluation.result(*self._labels()),
            self._evaluation.protocol,
            time.monotonic() - self._began,
            model_sha256=self._identity,
            sampled=self._num_drawn,  # the time above is that of these samples; a resumed evaluation draws fewer
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            num_devices=trainer.world_size,
            batch_size=self.batch_size,
            **self._motion(),
        )
        if trainer.is_global_zero:
            self.record.write(self.path)

    def _motion(self) -> dict[str, Any]:
        """Return the motion accuracy for the record; nothing if the samples have no classes that are motions."""
        labels = self._labels()[1]
        if labels is None or self._motions.pending():
            return {}
        observed = self._motions.features().ravel().astype(int).tolist()
        return {"motion": motion_accuracy(observed, labels, self._data.class_names)}

    def _labels(self) -> tuple[list[int] | None, list[int] | None]:
        """Return the classes of the real and of the generated clips; None for a side without classes."""
        protocol = self._evaluation.protocol
        real = RealClips(self._reals, protocol).labels() if protocol.num_real else None
        if protocol.labels not in ("uniform", "cycle"):
            return real, None
        return real, [request(protocol, self._num_classes, n)["label"] for n in range(protocol.num_generated)]

    def report(self) -> str:
        """Return the scores as text, with the path of the record.

        Raises:
            RuntimeError: Nothing was tested yet.
        """
        if self.record is None:
            raise RuntimeError("there is no record; run Trainer.test with this callback first")
        motion = f"\n\n{described(self.record.about['motion'])}" if "motion" in self.record.about else ""
        place = f"{'measured before: ' if self.measured_before else 'record  '}{self.path}"
        return f"\n{text([self.record])}{motion}\n\n{place}"


def request(protocol: EvaluationProtocol, num_classes: int, index: int, reals: Any = None) -> SampleRequest:
    """Return the request for a sample under a protocol: its class or caption follows from the protocol.

    Args:
        protocol: The evaluation protocol.
        num_classes: Classes of the model.
        index: Index of the sample.
        reals: The real videos, whose captions are used by protocols with captions.
    """
    label, prompt = 0, ""
    if protocol.labels == "cycle":
        label = index % num_classes
    elif protocol.labels == "uniform":
        label = int(numpy_generator(protocol.seed, "test label", index).integers(num_classes))
    elif protocol.labels == "captions":
        prompt = reals.caption(index % len(reals))
    return SampleRequest(index=index, label=label, prompt=prompt)


def run_protocol(
    module: LatteModule, data: VideoDataModule, source: str, extractor: Extractor, precision: str, **values: Any
) -> EvaluationProtocol:
    """Return the protocol of a model and its data: they provide what the protocol's file leaves open.

    Args:
        module: The model, with its sampling.
        data: The data, with the real videos.
        source: Name or file of the protocol. Values that contradict the file change the protocol's name.
        extractor: The feature extractor that the protocol names.
        precision: Precision of the trainer.
        values: Further values of the protocol.

    Raises:
        FileNotFoundError: There is no such protocol.
        ValueError: The model or the data do not fit the protocol.
    """
    stated = EvaluationProtocol.stated(source) | values
    if stated.get("weights") == "files":
        raise ValueError(f"protocol {source} scores finished videos; use it with latte evaluate")
    if (frames := stated.get("num_frames")) != module.net.num_frames:
        fitting = [name for name in shipped() if _frames_and_kind(name) == (module.net.num_frames, "model")]
        raise ValueError(
            f"protocol {source} measures clips of {frames} frames, the model generates {module.net.num_frames}; "
            f"choose --protocol {', '.join(fitting) or 'a .yaml file of your own'}"
        )
    size = tuple(side * module.autoencoder.factor for side in module.net.input_size)
    if size != tuple(data.size):
        raise ValueError(
            f"the model generates videos of {size} pixels, the data have {tuple(data.size)}; change data.size"
        )
    split = stated.get("split")
    if split not in ("train", "val"):
        raise ValueError(f"protocol {source} uses the split {split!r}; a datamodule has train and val")
    reals = data.videos(split)
    sampling = module.sampling
    classes = module.net.conditioning == "class"
    labels = stated.get("labels", "cycle") if classes else "captions" if module.net.conditioning == "text" else "none"
    settings = {
        "dataset": type(data).__name__,
        "fingerprint": reals.fingerprint(),
        "interval": data.val_interval,
        "height": size[0],
        "width": size[1],
        "resize": reals.resize,
        "weights": sampling.weights,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        # the noise of DDPM corresponds to eta 1; deterministic solvers have none
        "eta": {"ddim": sampling.eta, "ddpm": 1.0}.get(sampling.sampler, 0.0),
        "guidance": sampling.guidance if module.net.conditioning != "none" else 1.0,
        "guidance_interval": list(sampling.guidance_interval),
        "labels": "cycle" if classes and labels == "none" else labels,
        "precision": PRECISIONS.get(precision, precision),
        "extractor_sha256": extractor.sha256,
    }
    count = len(usable_videos(reals, stated))
    wanted = stated.get("num_real", count)
    if wanted and count < 2:
        raise ValueError(
            f"protocol {source} compares distributions, which takes at least 2 real videos; the {split} split of "
            f"{type(data).__name__} has {count} that can be used"
        )
    if wanted > count:
        rank_zero_info(f"protocol {source} states {wanted} real videos, the data have {count}; each is used once")
    return EvaluationProtocol.load(source, num_videos=count, **{"num_real": wanted} | values | settings)


def real_folder(trainer: Trainer, protocol: EvaluationProtocol) -> Path:
    """Return the folder of the features of real clips, beside the runs that share them."""
    return Path(trainer.default_root_dir).parent / "real_features" / f"{protocol.dataset}_{protocol.real_hash[:12]}"


def model_hash(module: LatteModule) -> str:
    """Return a hash of what samples depend on besides the protocol: weights, structure and autoencoder."""
    net = module.ema if module.sampling.weights == "ema" else module.net
    digest = hashlib.sha256()
    digest.update(f"{describe(net)!r} {describe(module.diffusion)!r}\n".encode())
    digest.update(f"{module.autoencoder.fingerprint()}\n".encode())
    if net.conditioning == "text":
        digest.update(f"{module.text_encoder.fingerprint()}\n".encode())
    digest.update(state_digest(net.state_dict()).encode())
    return digest.hexdigest()


def _frames_and_kind(name: str) -> tuple[int, str]:
    stated = EvaluationProtocol.stated(name)
    return stated["num_frames"], "files" if stated.get("weights") == "files" else "model"
