"""The trainer behind the commands: Lightning's fit, and the other ways to use a trained model."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.metrics import Record
from latte_pl.metrics.record import write_atomically
from latte_pl.nn import Latte
from latte_pl.training import weights
from latte_pl.training.average import TOLERANCE, exponent, miss, reconstruct, snapshots
from latte_pl.training.cost import cost_table
from latte_pl.training.evaluation import measure
from latte_pl.training.media import contact_sheet, film_strip, gif_bytes, save_mp4, save_png
from latte_pl.training.module import LatteModule


class SampleFiles(Callback):
    """Writes each predicted sample as MP4 and GIF, and all of them as a contact sheet.

    Args:
        folder: Where to.
        data: Knows the frame rate, and what can be measured on samples.
        names: File name of each sample, without ending.
        labels: Class of each sample; empty for a model without classes.
        prompts: Caption of each sample; empty for a model without captions.
    """

    def __init__(
        self, folder: Path, data: VideoDataModule, names: list[str], labels: list[int], prompts: list[str]
    ) -> None:
        self.folder, self.data, self.fps, self.names = folder, data, data.fps, names
        self.labels, self.prompts = labels, prompts
        self._videos: dict[int, torch.Tensor] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Write the samples of one batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, video in zip(batch["number"].tolist(), outputs.cpu()):
            save_mp4(video, self.folder / f"{self.names[number]}.mp4", self.fps)
            (self.folder / f"{self.names[number]}.gif").write_bytes(gif_bytes(video, self.fps))
            self._videos[number] = video

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the contact sheets of all processes' samples, and what can be measured on them."""
        parts = [self._videos]
        if trainer.world_size > 1:
            parts = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._videos)
        if not trainer.is_global_zero:
            return
        merged = {number: video for part in parts for number, video in part.items()}
        videos = torch.stack([merged[number] for number in sorted(merged)])
        (self.folder / "contact_sheet.gif").write_bytes(gif_bytes(contact_sheet(videos), self.fps))
        shown = [name.partition("_")[2] or name for name in self.names[:16]]
        save_png(film_strip(videos[:16], shown), self.folder / "contact_sheet.png")
        verdict = self.data.judge(videos, self.labels, self.prompts) if self.labels or self.prompts else None
        print(f"\n{verdict}" if verdict else "")
        print(f"{len(videos)} samples and contact_sheet.gif, contact_sheet.png in {self.folder}")


class LatteTrainer(Trainer):
    """Lightning's trainer with the commands of `latte` as methods; the command line reads their signatures."""

    def validate(  # type: ignore[override]
        self, model: LatteModule, datamodule: VideoDataModule, ckpt_path: str | None = None
    ) -> None:
        """Measure the held-out loss of a trained model.

        Args:
            ckpt_path: A checkpoint, a run's folder, a release file, or one of the official code (.pt).
        """
        trained = _trained(ckpt_path, "validate")
        trained.load_into(model)
        loss = self._held_out_loss(model, datamodule)
        if self.is_global_zero:
            print(f"val/loss {loss:.6f} of the averaged weights at step {trained.step}")

    def _held_out_loss(self, model: LatteModule, datamodule: VideoDataModule) -> float:
        super().validate(model, datamodule=datamodule, verbose=False)
        return float(self.callback_metrics["val/loss"])

    def average(
        self,
        model: LatteModule,
        datamodule: VideoDataModule,
        run: str,
        lengths: Sequence[float] = (0.03, 0.05, 0.1, 0.15, 0.2, 0.25),
        output: str | None = None,
    ) -> None:
        """Make averages of a finished run's weights, of any length, and keep the one with the lowest held-out loss.

        The run has to be trained with `model.average_every`. The table is kept as `averages/lengths.json` there.

        Args:
            run: A run's folder, or one of its checkpoints.
            lengths: Standard deviations of the averages over training time, as shares of the training.
            output: Release file of the best; default `averages/best.safetensors` in the run's folder.
        """
        checkpoint = weights.find(run)
        folder = checkpoint.parent.parent / "averages"
        best_file = weights.release_file(output or str(folder / "best.safetensors"))
        if not lengths:
            raise ValueError("no lengths to try; give some, such as --lengths 0.05 0.1")
        for length in lengths:
            exponent(length)  # refuses what is no length before anything is measured
        if checkpoint.suffix != ".ckpt" or checkpoint.parent.name != "checkpoints":
            raise ValueError(f"{run} is no run and none of its checkpoints; give a run's folder")
        if isinstance(self.strategy, ModelParallelStrategy):
            raise ValueError("latte average holds the whole model on each device; use --trainer.strategy ddp")
        trained = weights.read(checkpoint)
        every = trained.config["model"].get("average_every", 0)
        if not every:
            raise ValueError(f"{run} kept no averages; train with model.average_every set")
        files = snapshots(checkpoint, trained.step, every)
        far = [length for length in lengths if miss(list(files), length) > TOLERANCE]
        if lengths := [length for length in lengths if length not in far]:
            trained.load_into(model)
        else:
            raise ValueError(
                f"{len(files)} snapshots make no average of length {', '.join(f'{length:g}' for length in far)}; "
                "choose others, or train with a smaller model.average_every"
            )
        weights.make_room(best_file)  # before all that takes time
        own = self._held_out_loss(model, datamodule)
        losses: dict[float, float] = {}
        for length in lengths:
            reconstruct(model.ema, files, length)
            losses[length] = self._held_out_loss(model, datamodule)
        best = min(losses, key=lambda length: losses[length] if math.isfinite(losses[length]) else math.inf)
        reconstruct(model.ema, files, best)
        if not self.is_global_zero:
            return
        weights.release(trained, model.ema.state_dict(), best_file)
        about = {"lengths": {f"{length:g}": loss for length, loss in losses.items()}, "ema": own, "best": best}
        write_atomically(folder / "lengths.json", json.dumps(about | {"step": trained.step}, indent=1))
        print("length  held-out loss")
        for length, loss in losses.items():
            print(f"{length:<7g} {loss:.6f}{'  best' if length == best else ''}")
        for length in far:
            print(f"{length:<7g} left out: {len(files)} snapshots do not make it")
        print(f"EMA     {own:.6f}  the run's own\n\nstep {trained.step}, {len(files)} snapshots; weights  {best_file}")

    def predict(  # type: ignore[override]
        self,
        model: LatteModule,
        datamodule: VideoDataModule,
        ckpt_path: str | None = None,
        num_samples: int | None = None,
        labels: list[str | int] | None = None,
        batch_size: int = 16,
        output: str | None = None,
        prompts: str | None = None,
    ) -> None:
        """Sample videos as MP4, GIF and a contact sheet.

        Args:
            ckpt_path: A checkpoint, a run's folder, a release file, or one of the official code (.pt).
            num_samples: How many videos; default 16, or one of each prompt.
            labels: Classes to cycle through, by name or number; all of them by default.
            batch_size: Videos sampled at once on each device.
            output: Folder for the files; default `predict` in the run's folder.
            prompts: File of captions to cycle through, one a line, for a text-conditional model; empty lines and those
                that begin with # are passed over. By default captions of the validation videos.
        """
        asked = read_prompts(prompts, model)
        num_samples = num_samples if num_samples is not None else len(asked) or 16
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
        if num_samples < self.world_size:
            raise ValueError(f"{self.world_size} devices for {num_samples} samples; take as many devices at most")
        trained = _trained(ckpt_path, "predict")
        trained.load_into(model)
        classes = _classes(labels, trained.class_names, model)
        chosen = [classes[n % len(classes)] for n in range(num_samples)] if classes else [0] * num_samples
        texts: list[str] = []
        if model.net.conditioning == "text":
            texts = [asked[n % len(asked)] for n in range(num_samples)] if asked else datamodule.prompts(num_samples)
        names = [f"{n:04d}" for n in range(num_samples)]
        if classes:
            shown = trained.class_names or [str(n) for n in range(model.net.num_classes)]
            names = [f"{name}_{shown[label]}" for name, label in zip(names, chosen)]
        if texts:
            names = [f"{name}_{slug(text)}" for name, text in zip(names, texts)]
        items: Any = [{"number": n, "label": label, "prompt": ""} for n, label in enumerate(chosen)]
        items = [item | {"prompt": text} for item, text in zip(items, texts)] or items
        folder = Path(output) if output else Path(self.default_root_dir) / "predict"
        self.callbacks.append(SampleFiles(folder, datamodule, names, chosen if classes else [], texts))  # type: ignore[attr-defined]
        share = items[self.global_rank :: self.world_size]
        super().predict(model, DataLoader(share, batch_size=batch_size), return_predictions=False)

    def test(  # type: ignore[override]
        self,
        model: LatteModule,
        datamodule: VideoDataModule,
        ckpt_path: str | None = None,
        protocol: str = "embedded-256-8f",
        extractor_path: str | None = None,
        batch_size: int = 16,
        output: str | None = None,
    ) -> Record | None:
        """Measure a trained model under a protocol; the same call goes on after a kill.

        Args:
            ckpt_path: A checkpoint, a run's folder, a release file, or one of the official code (.pt).
            protocol: Name of a protocol, or a .yaml file.
            extractor_path: Weights of the protocol's extractor, where they are neither embedded nor downloaded.
            batch_size: Videos sampled at once on each device.
            output: Folder for the record and for what is done so far; default `test` in the run's folder.
        """
        trained = _trained(ckpt_path, "test")
        trained.load_into(model)
        folder = Path(output) if output else Path(self.default_root_dir) / "test"
        name = str(weights.find(str(ckpt_path)))
        return measure(self, model, datamodule, name, protocol, extractor_path, batch_size, folder)

    def info(
        self,
        model: Latte,
        datamodule: None = None,
        batch_size: int = 1,
        num_images: int | None = None,
        num_averages: int | None = None,
    ) -> None:
        """Print parameters, FLOPs a clip and the memory of a training step, by part; nothing is allocated.

        The memory is that of `trainer.precision`.

        Args:
            batch_size: Clips a device holds at once, for the memory.
            num_images: Images of joint training appended to each clip; default `data.num_images`.
            num_averages: Averages of the weights beside the moving one; default those of `model.average_every`.
        """
        counts = {"num_images": num_images or 0, "num_averages": num_averages or 0}
        if batch_size < 1 or min(counts.values()) < 0:
            raise ValueError(
                f"batch_size is {batch_size}, {counts}; at least 1 clip, and no fewer than 0 of the others"
            )
        half = self.precision == "bf16-mixed"
        print(cost_table(model, batch_size=batch_size, precision="bf16" if half else "float32", **counts))


def _trained(ckpt_path: str | None, command: str) -> weights.Weights:
    if ckpt_path is None:
        raise ValueError(
            f"latte {command} needs --ckpt_path: a checkpoint, a run's folder, a .safetensors file or an official .pt"
        )
    return weights.read(ckpt_path)


def _classes(labels: list[str | int] | None, names: list[str], model: LatteModule) -> list[int]:
    """Return the class numbers that a user asked for, by name or number."""
    if model.net.conditioning != "class":
        if labels:
            raise ValueError("the model has no classes; leave out labels")
        return []
    if not labels:
        return list(range(model.net.num_classes))
    known = {str(number): number for number in range(model.net.num_classes)}
    known |= {name: number for number, name in enumerate(names)}  # classes may be named by other numbers
    wanted = [str(label) for label in labels]
    for label in wanted:
        if label not in known:
            raise ValueError(f"label {label!r} is not one of {', '.join(names)} (0..{model.net.num_classes - 1})")
    return [known[label] for label in wanted]


def read_prompts(path: str | None, model: LatteModule) -> list[str]:
    """Return the captions of a file, one a line; none without a file.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it holds no captions, or the model reads none.
    """
    if path is None:
        return []
    if model.net.conditioning != "text":
        raise ValueError(
            f"the model's conditioning is {model.net.conditioning}, it reads no captions; leave out prompts"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file of prompts at {path}; write one caption a line")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; write one caption a line") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{path} holds no captions; write one a line")
    return found


def slug(text: str) -> str:
    """Return what of a caption fits into a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "sample"
