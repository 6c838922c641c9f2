"""The base LightningDataModule of real videos, and the one for any folder of videos."""

import logging
from typing import Any, ClassVar, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray

from latte_pl.data.datamodule import VideoDataModule, check_autoencoder
from latte_pl.data.folder import Indexing, VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.stream import ClipSampling
from latte_pl.data.transforms import CROP
from latte_pl.types import Split

_log = logging.getLogger(__name__)


class VideoFiles(VideoDataModule):
    """Base of the datamodules of video files or frame folders, read from the files or from cached latents.

    A datamodule for another folder layout is a subclass that sets ``dataset_class``. Settings of its own that are also
    arguments of ``dataset_class`` go into ``self.options``; they are then compared with those of a latent cache.

    Args:
        root: The folder of the data set. It need not exist if ``latents`` is given.
        size: Height and width of the clips in pixels; one number for a square. Pictures are cropped around the centre
            to this aspect ratio and then resized.
        split: "train" keeps the test (or held-out) videos for validation. "all" trains on every video, so that the
            validation videos are training videos too.
        flip: Flip half of the training clips horizontally.
        sampling: "videos" visits every video once per epoch. "clips" makes all clips of the data set equally likely, so
            that longer videos are drawn more often. "classes" makes all classes equally likely.
        cache_dir: Folder of the index file; None stores it in a hidden folder below ``root``.
        latents: Folder of a latent cache made by `latte encode`. Training then reads neither videos nor runs the
            autoencoder's encoder.
        index: "exact" decodes every video once, before its first use. "fast" trusts the containers and takes a
            fraction of the time, see `VideoFolder`.
        official_clips: Choose the frames of the training and validation clips, and resize them, as the authors'
            training code does; for UCF101, FaceForensics, SkyTimelapse and TaichiHD. Evaluations are not affected.
        kwargs: Arguments of `VideoDataModule`.
    """

    dataset_class: ClassVar[type[VideoFolder]]
    """The data set that reads the files."""

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 256,
        split: Literal["train", "all"] = "train",
        flip: bool = True,
        sampling: ClipSampling = "videos",
        cache_dir: str | None = None,
        latents: str | None = None,
        index: Indexing = "exact",
        official_clips: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.split, self.flip, self.sampling = root, split, flip, sampling
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.cache_dir, self.latents, self.index = cache_dir, latents, index
        self.official_clips = official_clips
        if official_clips and latents is not None:
            raise ValueError("data.official_clips needs the videos; leave out data.latents, or set it to false")
        self.options: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that a latent cache must match, in addition to those of the autoencoder."""
        return {"size": list(self.size), "crop": CROP, "data": type(self).__name__, **self.options}

    def open(self, split: Split, num_frames: int, interval: int, official_clips: bool = False) -> VideoFolder:
        """Open the files of a split for clips of ``num_frames`` frames at an interval."""
        return self.dataset_class(
            self.root,
            size=self.size,
            num_frames=num_frames,
            interval=interval,
            split=split,
            flip=self.flip,
            cache_dir=self.cache_dir,
            captions=self.captions,
            index=self.index,
            official_clips=official_clips,
            **self.options,
        )

    def build(self, split: Split) -> VideoFolder | CachedLatents:
        """Open a split: the latent cache if there is one, else the files."""
        wanted: Split = "all" if self.split == "all" else split
        intervals = {"train": self.interval, "val": self.val_interval, "all": max(self.interval, self.val_interval)}
        interval = intervals[wanted]
        if self.latents is None:
            return self.open(wanted, self.num_frames, interval, self.official_clips)
        settings = self.settings
        return CachedLatents(self.latents, wanted, self.num_frames, interval, self.flip, settings, self.captions)

    def dataset(self, split: Split) -> VideoFolder | CachedLatents:
        """Return a split, which is opened only once; with ``split="all"`` both splits are the same data set."""
        found = super().dataset("train" if self.split == "all" else split)
        assert isinstance(found, VideoFolder | CachedLatents)
        return found

    def videos(self, split: Split) -> VideoFolder:
        """Return a split as pixels, also where training reads cached latents; never as official clips.

        Raises:
            FileNotFoundError: The video files do not exist.
        """
        found = self.dataset(split)
        if isinstance(found, VideoFolder) and not self.official_clips:
            return found
        return self.open("all" if self.split == "all" else split, self.num_frames, self.val_interval)

    def prepare_data(self) -> None:
        """Open both splits on one process per node, so that the other processes find the files indexed.

        Prediction draws samples and needs no videos.
        """
        if self.trainer is not None and self.trainer.predicting:
            return
        self.dataset("train")
        self.dataset("val")
        if self.split == "all":
            rank_zero_only(_log.warning)(f"data.split is all: the validation videos of {self.root} are training videos")

    def setup(self, stage: str) -> None:
        """Check that cached latents match the model's autoencoder and text encoder.

        Raises:
            ValueError: The autoencoder, the scale or the text encoder differs; the message states both values.
        """
        if stage != "predict":  # prediction needs no videos
            check_autoencoder(self)

    def train_weights(self) -> NDArray[np.float64] | None:
        """Return the probability of each training video; None visits every video once per epoch."""
        return self.dataset("train").weights(self.sampling)


class Folder(VideoFiles):
    """Any folder of videos: ``<video>.mp4`` or ``<class>/<video>.mp4``, also below ``train`` and ``test``.

    Args:
        root: The folder.
        holdout: Share of the videos that is held out for validation if the folder has no split for it.
        kwargs: Arguments of `VideoFiles`.
    """

    dataset_class = VideoFolder

    def __init__(self, root: str, holdout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"holdout": holdout}
