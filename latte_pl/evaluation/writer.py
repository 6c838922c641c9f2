"""Write predicted samples as files: a prediction writer for `Trainer.predict`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule
from latte_pl.data.requests import SampleRequest
from latte_pl.files import write_text
from latte_pl.training.media import contact_sheet, film_strip, gif_bytes, save_mp4, save_png

VIDEOS, PREVIEWS, MANIFEST = "videos", "previews", "samples.json"


class VideoWriter(BasePredictionWriter):
    """Write the samples of one call of `Trainer.predict`::

        FOLDER/videos/0000_left.mp4     the samples alone, for evaluations
        FOLDER/previews/0000_left.gif   the same as animations
        FOLDER/contact_sheet.gif        all samples, also as contact_sheet.png
        FOLDER/samples.json             what the call wrote

    The folder belongs to one call: the next call removes the videos and previews of the one before, so that the samples
    of two calls are never mixed. Files of other origin in ``videos`` are never removed; the call fails instead.

    Args:
        folder: Folder of the files.
        names: File name of each sample, without ending; by default the sample's index.
        fps: Frames a second.
    """

    def __init__(self, folder: str | Path, names: dict[int, str] | None = None, fps: float = 8.0) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.names, self.fps = Path(folder), names or {}, fps
        self._samples: dict[int, tuple[Tensor, int, str]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the samples of an earlier call.

        Raises:
            ValueError: The folder of the videos contains files that no earlier call wrote.
        """
        self._samples = {}
        if trainer.is_global_zero:
            replaced = self._clear()
            if replaced:
                print(f"replacing {replaced} samples of an earlier call in {self.folder}")
            write_text(self.folder / MANIFEST, json.dumps({"complete": False}) + "\n")
        trainer.strategy.barrier()

    def _clear(self) -> int:
        """Delete the files of an earlier call, and return the number of its samples."""
        ours = (self.folder / MANIFEST).is_file()
        found = [path for place in (VIDEOS, PREVIEWS) for path in sorted(self.folder.glob(f"{place}/[!.]*"))]
        foreign = [path for path in found if not ours or path.suffix not in (".mp4", ".gif")]
        if foreign:
            raise ValueError(
                f"{foreign[0]} was not written by latte predict, so it is not replaced; "
                "choose another folder with --output, or move it"
            )
        for path in found:
            path.unlink()
        return sum(path.suffix == ".mp4" for path in found)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the samples of a batch."""
        videos, previews = self.folder / VIDEOS, self.folder / PREVIEWS
        for place in (videos, previews):
            place.mkdir(parents=True, exist_ok=True)
        labels = batch["label"].tolist() if "label" in batch else [0] * len(prediction)
        prompts = batch.get("prompt", [""] * len(prediction))
        for index, video, label, prompt in zip(batch["index"].tolist(), prediction.cpu(), labels, prompts):
            name = self._name(index)
            save_mp4(video, videos / f"{name}.mp4", self.fps)
            (previews / f"{name}.gif").write_bytes(gif_bytes(video, self.fps))
            self._samples[index] = (video, label, prompt)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the contact sheets of all processes' samples, and print what can be measured on them."""
        parts: list[dict[int, tuple[Tensor, int, str]]] = [self._samples]
        if trainer.world_size > 1:
            parts = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(parts, self._samples)
        if not trainer.is_global_zero:
            return
        samples = dict(sorted((index, sample) for part in parts for index, sample in part.items()))
        if not samples:
            return
        videos = torch.stack([video for video, _, _ in samples.values()])
        (self.folder / "contact_sheet.gif").write_bytes(gif_bytes(contact_sheet(videos), self.fps))
        shown = [self._name(index).partition("_")[2] or self._name(index) for index in list(samples)[:16]]
        save_png(film_strip(videos[:16], shown), self.folder / "contact_sheet.png")
        listed = [
            {"file": f"{VIDEOS}/{self._name(index)}.mp4", "index": index, "label": label, "prompt": prompt}
            for index, (_, label, prompt) in samples.items()
        ]
        about = {"complete": True, "fps": self.fps, "samples": listed}
        write_text(self.folder / MANIFEST, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        print(self._measured(trainer, pl_module, videos, list(samples.values())))
        print(f"{len(videos)} samples in {self.folder / VIDEOS}, contact_sheet.gif and contact_sheet.png beside it")

    def _measured(
        self, trainer: Trainer, pl_module: LightningModule, videos: Tensor, samples: list[tuple[Tensor, int, str]]
    ) -> str:
        data = getattr(trainer, "datamodule", None)
        conditioning = getattr(getattr(pl_module, "net", None), "conditioning", "none")
        if not isinstance(data, VideoDataModule) or conditioning == "none":
            return ""
        labels = [label for _, label, _ in samples] if conditioning == "class" else []
        prompts = [prompt for _, _, prompt in samples] if conditioning == "text" else []
        verdict = data.judge(videos, labels, prompts)
        return f"\n{verdict}" if verdict else ""

    def _name(self, index: int) -> str:
        return self.names.get(index, f"{index:04d}")


def file_names(requests: Sequence[SampleRequest], classes: Sequence[str], prompts: bool) -> dict[int, str]:
    """Return a file name for each request: its index, then its class or the beginning of its caption.

    Args:
        requests: The samples.
        classes: Names of the classes; empty for a model without classes.
        prompts: Whether the model uses captions.
    """
    names = {}
    for request in requests:
        about = [classes[request["label"]]] if classes else [slug(request["prompt"])] if prompts else []
        names[request["index"]] = "_".join([f"{request['index']:04d}", *about])
    return names


def slug(text: str) -> str:
    """Return the beginning of a caption in letters that every file system accepts."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].rstrip("-") or "sample"
