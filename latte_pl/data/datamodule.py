"""LightningDataModules: a data set's two splits as streams of clips."""

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from latte_pl.data import captions
from latte_pl.data.drawn import DrawnVideos
from latte_pl.data.latents import CachedLatents
from latte_pl.data.motion import classify_motion
from latte_pl.data.shapes import MOTIONS, MovingShapes, is_held_out
from latte_pl.data.stream import BoundedBatches, ClipStream, FixedClips, GlobalBatches, VideoDataset
from latte_pl.streams import run_seed

Split = Literal["train", "val"]


class VideoDataModule(LightningDataModule):
    """Streams clips of a data set.

    Args:
        num_frames: Frames F of a clip.
        interval: Distance between the frames of a clip, in frames of the video.
        global_batch_size: Clips of one optimizer step, over all devices and accumulated batches.
        num_images: Single frames of other videos appended to each clip for joint training.
        val_clips: Clips of the validation split that the held-out loss uses; at most all.
        val_interval: Interval of the held-out clips and of the reals of a distance; that of training if None.
        num_workers: Loader processes per device; 0 reads in the training process.
        captions: Give clips with their captions, for ``conditioning="text"``.
    """

    size: tuple[int, int]
    """Height and width of the clips in pixels."""
    fps: float = 8.0
    """Frames a second at which samples are shown."""

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
        self.captions = captions
        self.val_interval = interval if val_interval is None else val_interval
        self._datasets: dict[str, VideoDataset] = {}

    @abstractmethod
    def build(self, split: Split) -> VideoDataset:
        """Open one split."""

    def dataset(self, split: Split) -> VideoDataset:
        """Return one split, opened at most once."""
        if split not in self._datasets:
            self._datasets[split] = self.build(split)
        return self._datasets[split]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, empty when unlabelled."""
        return self.dataset("train").class_names

    def train_weights(self) -> NDArray[np.float64] | None:
        """Return the probability of each training video; None visits every video once an epoch."""
        return None

    def prompts(self, count: int) -> list[str]:
        """Return captions to sample from, those of the validation videos in turn."""
        dataset: Any = self.dataset("val")
        return [dataset.caption(n % len(dataset)) for n in range(count)]

    def judge(self, videos: Tensor, labels: list[int], prompts: list[str]) -> str | None:
        """Say what can be measured on samples (B, F, 3, H, W) uint8 of labels or prompts; None when nothing can."""
        return None

    def train_dataloader(self) -> DataLoader:
        """Return the endless loader of this rank's training clips, continued after the trainer's last step."""
        assert self.trainer is not None
        stream = ClipStream(
            self.dataset("train"),
            self.num_frames,
            self.interval,
            run_seed(),
            self.num_images,
            self.train_weights(),
            self.captions,
        )
        batches = GlobalBatches(
            self.global_batch_size,
            self.trainer.global_rank,
            self.trainer.world_size,
            self.trainer.accumulate_grad_batches,
            first_step=self.trainer.global_step,
        )
        return self._loader(stream, batches)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of this rank's share of the fixed validation clips."""
        assert self.trainer is not None
        clips = FixedClips(self.dataset("val"), self.num_frames, self.val_interval, self.val_clips, self.captions)
        world = self.trainer.world_size
        batch = -(-min(self.global_batch_size, clips.num_clips) // world) * world
        return self._loader(clips, BoundedBatches(batch, self.trainer.global_rank, world, num_clips=clips.num_clips))

    def _loader(self, clips: Any, batches: GlobalBatches) -> DataLoader:
        return DataLoader(
            clips,
            batch_sampler=batches,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.num_workers > 0,
        )


class Shapes(VideoDataModule):
    """The embedded data: drawn videos of eight kinds of motion, which need no download.

    Args:
        size: Height and width in pixels, one number for a square.
        num_videos: Training videos; 50,000 if None.
        held_out: Colours that each motion is never trained with, 0 to 7, to sample them from captions.
        latents: Folder of a cache made by `latte encode`, to train without drawing and codec passes.
        kwargs: The arguments of `VideoDataModule`.
    """

    flip = False  # it would change the class

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        num_videos: int | None = None,
        latents: str | None = None,
        held_out: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.num_videos, self.latents, self.held_out = num_videos, latents, held_out

    def videos(self, split: Split) -> MovingShapes:
        """Return one split as videos."""
        count = self.num_videos if split == "train" else None
        return MovingShapes(split, size=self.size, num_videos=count, held_out=self.held_out)

    def open(self, split: str = "all", num_frames: int = 1, interval: int = 1) -> DrawnVideos:
        """Return both splits as one list of videos, to be encoded."""
        return DrawnVideos(self.videos("train"), self.videos("val"))

    @property
    def settings(self) -> dict[str, Any]:
        """What a latent cache has to agree with, besides the codec."""
        return self.open().settings()

    def build(self, split: Split) -> VideoDataset:
        """Open one split, from the cache if there is one."""
        if self.latents is None:
            return self.videos(split)
        interval = self.interval if split == "train" else self.val_interval
        return CachedLatents(self.latents, split, self.num_frames, interval, False, self.settings, self.captions)

    def setup(self, stage: str) -> None:
        """Refuse latents of another codec or text encoder than the model's.

        Raises:
            ValueError: When codec, scale or text encoder differ; both values are named.
        """
        check_codec(self)

    def prompts(self, count: int) -> list[str]:
        """Return captions of validation videos, a trained and a new combination in turn where some are held out."""
        dataset = self.videos("val")
        names = [dataset.attributes(n) for n in range(len(dataset))]
        new = [n for n, name in enumerate(names) if is_held_out(name["colour"], name["motion"], self.held_out)]
        groups = [group for group in (sorted(set(range(len(dataset))) - set(new)), new) if group]
        turns = [divmod(n, len(groups)) for n in range(count)]
        return [dataset.caption(groups[which][turn % len(groups[which])]) for turn, which in turns]

    def judge(self, videos: Tensor, labels: list[int], prompts: list[str]) -> str | None:
        """Say which share of samples moves as its label or prompt says, found by a tracker that learnt nothing."""
        if videos.shape[1] < 3:  # too few frames for a motion
            return None
        if prompts:
            return captions.judge(videos.cpu(), prompts, self.held_out)
        right = sum(classify_motion(video) == label for video, label in zip(videos.cpu(), labels))
        return f"{right} of {len(labels)} move as labelled ({right / len(labels):.0%}; chance {1 / len(MOTIONS):.1%})"


def check_codec(data: VideoDataModule) -> None:
    """Refuse cached latents of another codec or text encoder than those of the model that is trained on them.

    Raises:
        ValueError: When codec, scale or text encoder differ; both values are named.
    """
    dataset, module = data.dataset("train"), getattr(data.trainer, "lightning_module", None)
    if not isinstance(dataset, CachedLatents) or module is None:
        return
    settings = {"scale": module.codec.scale, "codec": module.codec.fingerprint()}
    if data.captions and module.net.conditioning == "text":
        settings["text"] = module.text_encoder.fingerprint()
    dataset.check(settings)
