"""The trainer behind the commands: Lightning's fit, and the other ways to use a trained model."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.nn import Latte
from latte_pl.training import weights
from latte_pl.training.cost import cost_table
from latte_pl.training.media import contact_sheet, film_strip, gif_bytes, save_mp4, save_png
from latte_pl.training.module import LatteModule


class SampleFiles(Callback):
    """Writes each predicted sample as MP4 and GIF, and all of them as a contact sheet.

    Args:
        folder: Where to.
        data: Knows the frame rate, and what can be measured on samples.
        names: File name of each sample, without ending.
        labels: Class of each sample.
    """

    def __init__(self, folder: Path, data: VideoDataModule, names: list[str], labels: list[int]) -> None:
        self.folder, self.data, self.fps, self.names, self.labels = folder, data, data.fps, names, labels
        self._videos: list[torch.Tensor] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Write the samples of one batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, video in zip(batch["number"].tolist(), outputs):
            save_mp4(video, self.folder / f"{self.names[number]}.mp4", self.fps)
            (self.folder / f"{self.names[number]}.gif").write_bytes(gif_bytes(video, self.fps))
        self._videos += list(outputs.cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the contact sheets of this process's samples."""
        videos = torch.stack(self._videos)
        rank = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        (self.folder / f"contact_sheet{rank}.gif").write_bytes(gif_bytes(contact_sheet(videos), self.fps))
        save_png(film_strip(videos[:32]), self.folder / f"contact_sheet{rank}.png")
        if trainer.is_global_zero:
            verdict = self.data.judge(videos, self.labels) if trainer.world_size == 1 else None
            print(f"\n{verdict}" if verdict else "")
            print(f"{len(self.names)} samples and contact_sheet.gif, contact_sheet.png in {self.folder}")


class LatteTrainer(Trainer):
    """Lightning's trainer with the commands of `latte` as methods; the command line reads their signatures."""

    def validate(  # type: ignore[override]
        self, model: LatteModule, datamodule: VideoDataModule, ckpt_path: str | None = None
    ) -> None:
        """Measure the held-out loss of a trained model.

        Args:
            ckpt_path: A checkpoint, a run's folder or a release file.
        """
        trained = _trained(ckpt_path, "validate")
        trained.load_into(model)
        super().validate(model, datamodule=datamodule, verbose=False)
        if self.is_global_zero:
            loss = float(self.callback_metrics["val/loss"])
            print(f"val/loss {loss:.6f} of the averaged weights at step {trained.step}")

    def predict(  # type: ignore[override]
        self,
        model: LatteModule,
        datamodule: VideoDataModule,
        ckpt_path: str | None = None,
        num_samples: int = 16,
        labels: list[str | int] | None = None,
        batch_size: int = 16,
        output: str | None = None,
    ) -> None:
        """Sample videos as MP4, GIF and a contact sheet.

        Args:
            ckpt_path: A checkpoint, a run's folder or a release file.
            num_samples: How many videos.
            labels: Classes to cycle through, by name or number; all of them by default.
            batch_size: Videos sampled at once on each device.
            output: Folder for the files; default `predict` in the run's folder, or beside the working folder.
        """
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
        trained = _trained(ckpt_path, "predict")
        trained.load_into(model)
        classes = _classes(labels, trained.class_names, model)
        chosen = [classes[n % len(classes)] for n in range(num_samples)] if classes else [0] * num_samples
        names = [f"{n:04d}" for n in range(num_samples)]
        if classes:
            shown = trained.class_names or [str(n) for n in range(model.net.num_classes)]
            names = [f"{name}_{shown[label]}" for name, label in zip(names, chosen)]
        items: Any = [{"number": n, "label": label} for n, label in enumerate(chosen)]
        folder = Path(output) if output else Path(self.default_root_dir) / "predict"
        self.callbacks.append(SampleFiles(folder, datamodule, names, chosen))  # type: ignore[attr-defined]
        super().predict(model, DataLoader(items, batch_size=batch_size), return_predictions=False)

    def info(self, model: Latte, datamodule: None = None, batch_size: int = 1, num_images: int = 0) -> None:
        """Print parameters, FLOPs a clip and the memory to expect, by part; nothing is allocated.

        Args:
            batch_size: Clips a device holds at once, for the memory.
            num_images: Images of joint training appended to each clip.
        """
        print(cost_table(model, num_images, batch_size))


def _trained(ckpt_path: str | None, command: str) -> weights.Weights:
    if ckpt_path is None:
        raise ValueError(f"latte {command} needs --ckpt_path: a checkpoint, a run's folder or a .safetensors file")
    return weights.read(ckpt_path)


def _classes(labels: list[str | int] | None, names: list[str], model: LatteModule) -> list[int]:
    """Return the class numbers that a user asked for, by name or number."""
    if model.net.conditioning != "class":
        if labels:
            raise ValueError("the model is unconditional; leave out labels")
        return []
    if not labels:
        return list(range(model.net.num_classes))
    known = {name: number for number, name in enumerate(names)}
    known |= {str(number): number for number in range(model.net.num_classes)}
    wanted = [str(label) for label in labels]
    for label in wanted:
        if label not in known:
            raise ValueError(f"label {label!r} is not one of {', '.join(names)} (0..{model.net.num_classes - 1})")
    return [known[label] for label in wanted]
