"""Measuring a trained model under a protocol: the substance of `latte test`."""

import hashlib
import time
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from latte_pl.data.datamodule import Shapes, VideoDataModule
from latte_pl.data.shapes import MovingShapes
from latte_pl.data.videos import VideoFiles
from latte_pl.metrics import Evaluation, Extractor, Protocol, Record, build_extractor, text
from latte_pl.metrics.protocol import shipped
from latte_pl.streams import numpy_stream
from latte_pl.training.module import LatteModule

# names of Lightning's precisions in protocols; the others are called as Lightning calls them
PRECISIONS = {"16-true": "16", "bf16-true": "bf16", "32-true": "32", "64-true": "64"}


class Samples(LightningModule):
    """Draws the samples that an evaluation still lacks, and stores their features: a model under `Trainer.test`.

    Batch k holds the samples [k B, (k + 1) B) and belongs to rank k modulo the number of ranks. So a batch is made of
    the same samples on any number of devices and after any interruption, and the arithmetic of its kernels is the same.
    On a CPU, where a batch gains little, each sample is drawn alone, and B does not change it by a bit either.

    Args:
        module: The trained model.
        evaluation: What is to be measured, and what is done of it.
        reals: The data set of the reals.
        batch_size: Samples B of a batch.
    """

    def __init__(self, module: LatteModule, evaluation: Evaluation, reals: Any, batch_size: int) -> None:
        super().__init__()
        self.module, self.evaluation, self.reals, self.batch_size = module, evaluation, reals, batch_size
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may be done before the others

    def setup(self, stage: str) -> None:
        """Measure this rank's share of the reals."""
        ours = self.trainer.global_rank, self.trainer.world_size
        device = self.trainer.strategy.root_device
        self.evaluation.add_real(self.reals, *ours, device, progress=self.trainer.is_global_zero)

    def configure_model(self) -> None:
        """Prepare the model as for training."""
        self.module.configure_model()

    def test_dataloader(self) -> DataLoader:
        """Return this rank's batches of sample numbers that are still missing."""
        batches: dict[int, list[int]] = {}
        for number in self.evaluation.pending():
            batches.setdefault(number // self.batch_size, []).append(number)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        ours: Any = [{"numbers": batch} for k, batch in batches.items() if k % world_size == rank]
        return DataLoader(ours, batch_size=None)

    def test_step(self, batch: dict[str, list[int]], batch_idx: int) -> None:
        """Sample a batch and store its features."""
        numbers = batch["numbers"]
        parts = [[number] for number in numbers] if self.device.type == "cpu" else [numbers]
        drawn = [sample(self.module, self.evaluation.protocol, n, self.reals) for n in parts]
        self.evaluation.add(numbers, torch.cat(drawn))


def sample(module: LatteModule, protocol: Protocol, numbers: list[int], reals: Any = None) -> Tensor:
    """Return the samples (B, F, 3, H, W) uint8 with these numbers, of the protocol's seed and classes or captions."""
    num_classes = module.net.num_classes
    labels = None
    if protocol.labels == "cycle":
        labels = [number % num_classes for number in numbers]
    elif protocol.labels == "uniform":
        labels = [int(numpy_stream(protocol.seed, "test label", n).integers(num_classes)) for n in numbers]
    prompts = [reals.caption(n % len(reals)) for n in numbers] if protocol.labels == "captions" else None
    return module.sample(numbers, labels, seed=protocol.seed, prompts=prompts)


def run_protocol(
    module: LatteModule, data: VideoDataModule, source: str, extractor: Extractor, precision: str, **values: Any
) -> Protocol:
    """Return the protocol of a run: what its file leaves open comes from the model and the data.

    Args:
        module: The model, with its sampler.
        data: The data, with the reals.
        source: Name or file of the protocol; what the run contradicts changes its name.
        extractor: The network that the protocol names.
        precision: The trainer's.
        values: More that the run decides.

    Raises:
        FileNotFoundError: When there is no such protocol.
        ValueError: When model or data cannot be measured under it.
    """
    stated = Protocol.stated(source) | values
    if stated.get("weights") == "files":
        raise ValueError(f"protocol {source} scores finished videos; use it in latte evaluate")
    if (frames := stated.get("num_frames")) != module.net.num_frames:
        fitting = [name for name in shipped() if _frames_and_kind(name) == (module.net.num_frames, "model")]
        raise ValueError(
            f"protocol {source} measures clips of {frames} frames, the model makes {module.net.num_frames}; "
            f"choose --protocol {', '.join(fitting) or 'a .yaml file of your own'}"
        )
    size = tuple(side * module.codec.factor for side in module.net.input_size)
    if size != tuple(data.size):
        raise ValueError(
            f"the model makes videos of {size} pixels, the data are of {tuple(data.size)}; change data.size"
        )
    split = stated.get("split")
    if split not in ("train", "val"):
        raise ValueError(f"protocol {source} takes reals from the split {split!r}; a datamodule has train and val")
    reals = real_videos(data, split)
    sampling = module.sampling
    classes = module.net.conditioning == "class"
    labels = stated.get("labels", "cycle") if classes else "captions" if module.net.conditioning == "text" else "none"
    settings = {
        "dataset": type(data).__name__,
        "fingerprint": fingerprint(reals, stated.get("view")),
        "interval": data.val_interval,
        "height": size[0],
        "width": size[1],
        "resize": "none" if isinstance(reals, MovingShapes) else "centre-crop",
        "weights": sampling.weights,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        # what eta means where it is no setting: the chain's own noise is eta 1, a solver of an equation has none
        "eta": {"ddim": sampling.eta, "ddpm": 1.0}.get(sampling.sampler, 0.0),
        "guidance": sampling.guidance if module.net.conditioning != "none" else 1.0,
        "guidance_interval": list(sampling.guidance_interval),
        "labels": "cycle" if classes and labels == "none" else labels,
        "precision": PRECISIONS.get(precision, precision),
        "extractor_sha256": extractor.sha256,
    }
    return Protocol.load(source, **values | settings)


def measure(
    trainer: Trainer,
    module: LatteModule,
    data: VideoDataModule,
    model: str,
    source: str,
    extractor_path: str | None,
    batch_size: int,
    output: Path,
) -> Record | None:
    """Measure a trained model on all devices, going on where an earlier call was killed, and write the record.

    Args:
        trainer: Runs the samplers.
        module: The model with its trained weights.
        data: The data, with the reals.
        model: What to call the model: its checkpoint's path.
        source: Name or file of the protocol.
        extractor_path: Weights of the protocol's extractor.
        batch_size: Samples drawn at once on each device.
        output: Folder of the record and of what is done so far.

    Returns:
        The record; None on other processes than the first.

    Raises:
        FileNotFoundError: When there is no such protocol, or no weights of its extractor.
        ValueError: When model, data or strategy do not fit.
    """
    began = time.monotonic()
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise ValueError("latte test samples with the whole model on each device; use --trainer.strategy ddp")
    extractor = build_extractor(Protocol.stated(source).get("extractor", ""), extractor_path)
    protocol = run_protocol(module, data, source, extractor, str(trainer.precision))
    identity = model_hash(module)
    base = protocol.name.partition("+")[0]
    path = output / f"{Path(model).stem}_{base}_{protocol.hash[:12]}.json"
    if path.is_file() and (record := Record.read(path)).about.get("model_sha256") == identity:
        if trainer.is_global_zero:
            print(f"{text([record])}\n\nmeasured before: {path}")
        return record
    evaluation = Evaluation(
        protocol,
        extractor,
        output / f"features_{identity[:12]}_{protocol.hash[:12]}",
        real_folder(trainer, protocol),
    )
    missing = len(evaluation.pending())
    Trainer.test(trainer, Samples(module, evaluation, real_videos(data, protocol.split), batch_size), verbose=False)  # type: ignore[arg-type]
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return None
    device = trainer.strategy.root_device
    record = Record.make(
        model,
        evaluation.result(),
        protocol,
        time.monotonic() - began,
        model_sha256=identity,
        sampled=missing,  # fewer than the protocol's when a killed evaluation went on; the time is theirs
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        num_devices=trainer.world_size,
        batch_size=batch_size,
    )
    record.write(path)
    print(f"\n{text([record])}\n\nrecord  {path}")
    return record


def real_videos(data: VideoDataModule, split: Literal["train", "val"]) -> Any:
    """Return a split as videos: the data set itself, or the files behind cached latents.

    Raises:
        FileNotFoundError: When the files are not there.
        ValueError: When there are latents alone.
    """
    dataset = data.dataset(split)
    if dataset.key == "video":
        return dataset
    if isinstance(data, Shapes):
        return data.videos(split)
    if isinstance(data, VideoFiles):
        return data.open("all" if data.split == "all" else split, data.num_frames, data.val_interval)
    raise ValueError(f"reals are compared as videos, {type(data).__name__} gives latents alone")


def real_folder(trainer: Trainer, protocol: Protocol) -> Path:
    """Return where the features of a protocol's reals are kept: beside the runs, which share them."""
    return Path(trainer.default_root_dir).parent / "real_features" / f"{protocol.dataset}_{protocol.real_hash[:12]}"


def fingerprint(dataset: Any, view: str | None) -> str:
    """Return the fingerprint of a data set's files, marked when random views of them are mirrored."""
    return dataset.fingerprint() + ("+flip" if view == "random" and getattr(dataset, "flip", False) else "")


def model_hash(module: LatteModule) -> str:
    """Return a hash of all in a model that its samples depend on and no protocol states: weights and structure."""
    net = module.ema if module.sampling.weights == "ema" else module.net
    digest = hashlib.sha256()
    for part in (net, module.diffusion):
        plain = {k: v for k, v in vars(part).items() if isinstance(v, str | int | float | tuple)}
        plain.pop("training", None)
        digest.update(f"{type(part).__name__} {sorted(plain.items())!r}\n".encode())
    digest.update(f"{module.codec.fingerprint()}\n".encode())
    if net.conditioning == "text":
        digest.update(f"{module.text_encoder.fingerprint()}\n".encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _frames_and_kind(name: str) -> tuple[int, str]:
    stated = Protocol.stated(name)
    return stated["num_frames"], "files" if stated.get("weights") == "files" else "model"
