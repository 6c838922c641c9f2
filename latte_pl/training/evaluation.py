"""Measuring under a protocol: a trained model (`latte test`), or folders of finished videos (`latte evaluate`)."""

import hashlib
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import open_index
from latte_pl.data.shapes import MovingShapes
from latte_pl.metrics import Evaluation, Extractor, Protocol, Record, build_extractor, evaluate_folders, text
from latte_pl.metrics.evaluation import real_clip
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
        self.evaluation.add(numbers, torch.cat([sample(self.module, self.evaluation.protocol, n) for n in parts]))


def sample(module: LatteModule, protocol: Protocol, numbers: list[int]) -> Tensor:
    """Return the samples (B, F, 3, H, W) uint8 with these numbers, of the protocol's seed and classes."""
    num_classes = module.net.num_classes
    labels = None
    if protocol.labels == "cycle":
        labels = [number % num_classes for number in numbers]
    elif protocol.labels == "uniform":
        labels = [int(numpy_stream(protocol.seed, "test label", n).integers(num_classes)) for n in numbers]
    return module.sample(numbers, labels, seed=protocol.seed)


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
    reals: Any = data.dataset(split)
    if reals.key != "video":
        raise ValueError("reals are compared as videos, these data are cached latents; say --data.latents null")
    sampling = module.sampling
    classes = module.net.conditioning == "class"
    labels = stated.get("labels", "cycle") if classes else "none"
    settings = {
        "dataset": type(data).__name__,
        "fingerprint": fingerprint(reals, stated.get("view")),
        "interval": data.interval,
        "height": size[0],
        "width": size[1],
        "resize": "none" if isinstance(reals, MovingShapes) else "centre-crop",
        "weights": sampling.weights,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        # what eta means where it is no setting: the chain's own noise is eta 1, a solver of an equation has none
        "eta": {"ddim": sampling.eta, "ddpm": 1.0}.get(sampling.sampler, 0.0),
        "guidance": sampling.guidance if classes else 1.0,
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
        Path(trainer.default_root_dir).parent / "real_features" / f"{protocol.dataset}_{protocol.real_hash[:12]}",
    )
    missing = len(evaluation.pending())
    Trainer.test(trainer, Samples(module, evaluation, data.dataset(protocol.split), batch_size), verbose=False)  # type: ignore[arg-type]
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
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def evaluate(
    real: str,
    fake: str,
    protocol: str = "files-embedded-8f",
    size: int | tuple[int, int] | None = None,
    interval: int | None = None,
    generated_interval: int = 1,
    split: str | None = None,
    fake_split: str | None = None,
    num_real: int | None = None,
    extractor_path: str | None = None,
    device: str | None = None,
    output: str | None = None,
) -> None:
    """Score finished videos against real ones: MP4s or frame folders of any model, or a datamodule's split.

    Args:
        real: Folder of the real videos, or a data configuration such as data/shapes.yaml.
        fake: The same for the generated videos; each gives one clip, from its start.
        protocol: Name of a protocol of files, or a .yaml file.
        size: Height and width that both are cropped and scaled to; by default that of the first generated video.
        interval: Frames from one frame of a real clip to the next; by default the data configuration's, or 1.
        generated_interval: The same for the generated videos.
        split: Split of the reals: train, val, test or all; by default all of a folder, val of a data configuration.
        fake_split: The same for the generated videos.
        num_real: How many real clips; by default one of each video.
        extractor_path: Weights of the protocol's extractor, where they are neither embedded nor downloaded.
        device: Where features are computed; by default the first GPU, or else the CPU.
        output: The file of the record; by default beside the generated videos.

    Raises:
        FileNotFoundError: When a folder, a protocol or an extractor's weights are not there.
        ValueError: When videos or settings do not fit the protocol.
    """
    began = time.monotonic()
    stated = Protocol.stated(protocol)
    if stated.get("weights") != "files":
        raise ValueError(f"protocol {protocol} samples from a model; use it in latte test, or take files-embedded-8f")
    if "num_frames" not in stated:
        raise ValueError(f"protocol {protocol} does not state num_frames")
    extractor = build_extractor(stated.get("extractor", ""), extractor_path)
    frames = stated["num_frames"]
    fakes = Videos(fake, fake_split, size, frames, generated_interval)
    reals = Videos(real, split, fakes.size, frames, interval)
    settings = Protocol.load(
        protocol,
        dataset=reals.name,
        fingerprint=fingerprint(reals.dataset, stated.get("view")),
        split=reals.split,
        interval=reals.interval,
        height=fakes.size[0],
        width=fakes.size[1],
        resize=reals.resize,
        num_real=len(reals.dataset) if num_real is None else num_real,
        num_generated=len(fakes.dataset),
        generated_interval=fakes.interval,
        extractor_sha256=extractor.sha256,
    )
    scores = evaluate_folders(
        (real_clip(reals.dataset, settings, number) for number in range(settings.num_real)),
        fakes.clips(frames),
        settings,
        extractor,
        torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
    )
    record = Record.make(
        fake,
        scores,
        settings,
        time.monotonic() - began,
        fake_fingerprint=fingerprint(fakes.dataset, "first"),
        real=real,
    )
    name = f"{Path(fake).stem}_{settings.name.partition('+')[0]}_{settings.hash[:12]}.json"
    path = Path(output) if output else Path(fake).parent / name if Path(fake).is_dir() else Path(name)
    record.write(path)
    print(f"\n{text([record])}\n\nrecord  {path}")


class Videos:
    """One side of a comparison: a folder of videos, or a split of a datamodule.

    Args:
        source: A folder, or a YAML file with ``data``, of the user or shipped.
        split: Which split; None is all of a folder, "val" of a datamodule.
        size: Height and width; None is that of the first video, or the datamodule's.
        num_frames: Frames of a clip.
        interval: Frames from one to the next; None is the datamodule's, or 1.

    Raises:
        FileNotFoundError: When there is neither a folder nor such a file.
        ValueError: When the datamodule has another size, or holds latents.
    """

    def __init__(
        self,
        source: str,
        split: str | None,
        size: int | tuple[int, int] | None,
        num_frames: int,
        interval: int | None,
    ) -> None:
        wanted = (size, size) if isinstance(size, int) else size
        self.dataset: Any
        self.size: tuple[int, int]
        if source.endswith((".yaml", ".yml")):
            data = _datamodule(source)
            self.name, self.split = type(data).__name__, split or "val"
            if self.split not in ("train", "val"):
                raise ValueError(f"split is {self.split!r}; a data configuration has train and val")
            self.interval = interval or data.interval
            self.size = (data.size[0], data.size[1])
            if wanted not in (None, self.size):
                raise ValueError(
                    f"{source} gives videos of {self.size} pixels, not {wanted}; change the size of one side"
                )
            self.dataset = data.dataset(self.split)  # type: ignore[arg-type]
            if self.dataset.key != "video":
                raise ValueError(f"{source} gives cached latents; distances of videos are taken on pixels")
        else:
            self.name, self.split, self.interval = Path(source).resolve().name, split or "all", interval or 1
            self.size = wanted or native_size(Path(source))
            options: Any = {"split": self.split, "num_frames": num_frames, "interval": self.interval}
            self.dataset = VideoFolder(source, size=self.size, **options)
        self.resize = "none" if isinstance(self.dataset, MovingShapes) else "centre-crop"

    def clips(self, num_frames: int) -> Iterator[Tensor]:
        """Yield the clip (F, 3, H, W) uint8 from the start of each video."""
        for index in range(len(self.dataset)):
            yield self.dataset.read(index, num_frames, self.interval, None)


def native_size(root: Path) -> tuple[int, int]:
    """Return height and width of the first usable video of a folder.

    Raises:
        FileNotFoundError: When there is no such folder.
        ValueError: When it holds no usable video.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the folder {root} does not exist")
    for item in VideoFolder.layout(root).items:
        if (inside := open_index(root, [item.found])[0].index) is not None:
            return inside.height, inside.width
    raise ValueError(f"no usable video in {root}; expected {VideoFolder.expected.format(root=root)}")


def _datamodule(source: str) -> VideoDataModule:
    """Build the datamodule of a configuration file: as given, or among those that the package ships."""
    for file in (Path(source), resources.files("latte_pl") / "configs" / source):
        if file.is_file():
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            if not isinstance(config, dict) or "data" not in config:
                raise ValueError(f"{source} states no data; take a configuration such as data/shapes.yaml")
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(VideoDataModule, "data")
            return parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    raise FileNotFoundError(f"no data configuration {source}")


def _frames_and_kind(name: str) -> tuple[int, str]:
    stated = Protocol.stated(name)
    return stated["num_frames"], "files" if stated.get("weights") == "files" else "model"
