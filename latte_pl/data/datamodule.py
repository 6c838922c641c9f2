"""LightningDataModules: two splits of a data set as streams of clips, and the samples to draw."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from lightning import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from latte_pl.data.latents import CachedLatents
from latte_pl.data.requests import RequestBatches, SampleRequest, sample_requests
from latte_pl.data.stream import BoundedBatches, ClipStream, FixedClips, GlobalBatches, VideoDataset
from latte_pl.data.workers import ignore_signals
from latte_pl.types import Split


class VideoDataModule(LightningDataModule):
    """Stream clips of a data set for training and validation, and requests for samples for test and prediction.

    Under a strategy with several devices the `Trainer` needs ``use_distributed_sampler=False``: the loaders share the
    clips out by themselves, so that every number of devices trains on the same ones.

    Args:
        num_frames: Frames F of a clip.
        interval: Distance between the frames of a clip, in frames of the video.
        global_batch_size: Clips of one optimizer step, over all devices and accumulated batches.
        num_images: Single frames of other videos appended to each clip for joint training.
        val_clips: Clips of the validation split that the held-out loss uses; all clips if the split has fewer.
        val_interval: Interval of the held-out clips and of the real clips of a distance; None uses ``interval``.
        num_workers: Loader processes per device; 0 reads in the training process.
        captions: Add captions to the clips, for ``conditioning="text"``.
        seed: Seed of the order of videos and of the random crop, start and flip of each clip.

    Raises:
        ValueError: A number is out of range.
    """

    size: tuple[int, int]
    """Height and width of the clips in pixels."""
    fps: float = 8.0
    """Frames a second at which samples are shown."""
    num_classes: ClassVar[int | None] = None
    """Number of classes where the data set fixes it; None where the files decide."""

    def __init__(
        self,
        num_frames: int = 16,
        interval: int = 3,
        global_batch_size: int = 40,
        num_images: int = 0,
        val_clips: int = 256,
        num_workers: int = 2,
        captions: bool = False,
        val_interval: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_frames", num_frames, 1),
            ("interval", interval, 1),
            ("global_batch_size", global_batch_size, 1),
            ("num_images", num_images, 0),
            ("val_clips", val_clips, 1),
            ("num_workers", num_workers, 0),
            ("val_interval", interval if val_interval is None else val_interval, 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} is {value}; it must be at least {least}")
        self.num_frames, self.interval, self.global_batch_size = num_frames, interval, global_batch_size
        self.num_images, self.val_clips, self.num_workers = num_images, val_clips, num_workers
        self.captions, self.seed = captions, seed
        self.val_interval = interval if val_interval is None else val_interval
        self.requests: Sequence[SampleRequest] | None = None
        self.request_batch_size = 16
        self.request_seed: int | None = None
        self._datasets: dict[str, VideoDataset] = {}

    @abstractmethod
    def build(self, split: Split) -> VideoDataset:
        """Open one split."""

    def dataset(self, split: Split) -> VideoDataset:
        """Return one split, opened at most once."""
        if split not in self._datasets:
            self._datasets[split] = self.build(split)
        return self._datasets[split]

    def videos(self, split: Split) -> Any:
        """Return a split as pixels, also where training reads cached latents.

        Raises:
            FileNotFoundError: The video files do not exist.
            ValueError: The datamodule has latents only.
        """
        dataset = self.dataset(split)
        if dataset.key != "video":
            raise ValueError(f"{type(self).__name__} has latents only, but an evaluation compares videos")
        return dataset

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, empty when unlabelled."""
        return self.dataset("train").class_names

    def train_weights(self) -> NDArray[np.float64] | None:
        """Return the probability of each training video; None visits every video once an epoch."""
        return None

    def prompts(self, count: int) -> list[str]:
        """Return captions to sample from: those of the validation videos in turn."""
        dataset: Any = self.dataset("val")
        return [dataset.caption(n % len(dataset)) for n in range(count)]

    def judge(self, videos: Tensor, labels: list[int], prompts: list[str]) -> str | None:
        """Describe what can be measured on samples (B, F, 3, H, W) uint8; None where nothing can be measured.

        Args:
            videos: The samples.
            labels: Class of each sample; empty for a model without classes.
            prompts: Caption of each sample; empty for a model without captions.
        """
        return None

    def observed_motions(self, videos: Tensor) -> list[int] | None:
        """Return the motion that each sample (B, F, 3, H, W) uint8 shows; None where classes are not motions.

        A motion is a class of the data, or -1 for a sample that shows none of them.
        """
        return None

    def train_dataloader(self) -> DataLoader:
        """Return the endless loader of this process's training clips, from the trainer's current step on."""
        assert self.trainer is not None
        stream = ClipStream(
            self.dataset("train"),
            self.num_frames,
            self.interval,
            self.seed,
            self.num_images,
            self.train_weights(),
            self.captions,
        )
        return self._loader(stream, TrainingBatches(self.trainer, self.global_batch_size))

    def val_dataloader(self) -> DataLoader:
        """Return the loader of this process's share of the fixed validation clips."""
        assert self.trainer is not None
        clips = FixedClips(self.dataset("val"), self.num_frames, self.val_interval, self.val_clips, self.captions)
        world = self.trainer.world_size
        batch = -(-min(self.global_batch_size, clips.num_clips) // world) * world
        return self._loader(clips, BoundedBatches(batch, self.trainer.global_rank, world, num_clips=clips.num_clips))

    def test_dataloader(self) -> DataLoader:
        """Return the loader of this process's share of the samples to draw; see `set_requests`."""
        return self._request_loader()

    def predict_dataloader(self) -> DataLoader:
        """Return the loader of this process's share of the samples to draw; see `set_requests`."""
        return self._request_loader()

    def set_requests(self, requests: Sequence[SampleRequest], batch_size: int = 16, seed: int | None = None) -> None:
        """Choose the samples that `test_dataloader` and `predict_dataloader` ask for.

        Args:
            requests: The samples; by default 16 that cycle through the classes, or through captions of the data.
            batch_size: Samples that a device draws at once.
            seed: Seed of the set of samples; None uses that of the module.
        """
        self.requests, self.request_batch_size, self.request_seed = requests, batch_size, seed

    def _request_loader(self) -> DataLoader:
        assert self.trainer is not None
        requests = self.requests
        if requests is None:
            prompts = self.prompts(16) if self.captions else None
            requests = sample_requests(16, list(range(len(self.class_names))), prompts)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return RequestBatches(requests, self.request_batch_size, rank, world_size, self.request_seed).loader()

    def _loader(self, clips: Any, batches: GlobalBatches) -> DataLoader:
        return DataLoader(
            clips,
            batch_sampler=batches,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.num_workers > 0,
            worker_init_fn=ignore_signals,
        )


class TrainingBatches(GlobalBatches):
    """`GlobalBatches` that start at the trainer's current step whenever an epoch starts.

    A trainer has several epochs if ``limit_train_batches`` is set.
    """

    def __init__(self, trainer: Trainer, global_batch: int) -> None:
        super().__init__(global_batch, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        self.trainer = trainer

    def __iter__(self) -> Iterator[list[int]]:
        self.first_step = self.trainer.global_step
        return super().__iter__()


def check_autoencoder(data: VideoDataModule) -> None:
    """Refuse cached latents of another autoencoder or text encoder than those of the model that is trained on them.

    Raises:
        ValueError: When autoencoder, scale or text encoder differ; both values are named.
    """
    dataset, module = data.dataset("train"), getattr(data.trainer, "lightning_module", None)
    if not isinstance(dataset, CachedLatents) or module is None:
        return
    settings = {"scale": module.autoencoder.scale, "autoencoder": module.autoencoder.fingerprint()}
    if data.captions and module.net.conditioning == "text":
        settings["text"] = module.text_encoder.fingerprint()
    dataset.check(settings)
