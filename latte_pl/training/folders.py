"""Scoring finished videos, of any model and in any container: `latte evaluate`."""

import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.folder import VideoFolder
from latte_pl.data.index import open_index
from latte_pl.data.shapes import MovingShapes
from latte_pl.metrics import Protocol, Record, build_extractor, evaluate_folders, text
from latte_pl.metrics.evaluation import real_clip
from latte_pl.training.evaluation import fingerprint


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
