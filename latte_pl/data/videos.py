"""LightningDataModules of real videos: any folder, and the four data sets of the paper (arXiv 2401.03048)."""

import logging
from typing import Any, ClassVar, Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray

from latte_pl.data.datamodule import Split, VideoDataModule, check_codec
from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import Split as AnySplit
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.stream import Sampling
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.transforms import CROP
from latte_pl.data.ucf101 import UCF101Videos

_log = logging.getLogger(__name__)


class VideoFiles(VideoDataModule):
    """A data set of video files or frame folders, read from the files or from latents that were encoded before.

    Args:
        root: The folder of the data set; with ``latents`` it need not exist.
        size: Height and width in pixels, one number for a square; pictures are cropped to its aspect ratio around the
            centre, then scaled.
        split: What is trained on. "train" leaves the test (or held-out) videos to validation; "all" trains on every
            video, so that the validation loss is one of training videos.
        flip: Mirror half of the training clips.
        sampling: "videos" visits every video once an epoch; "clips" makes every clip of the data set equally likely,
            so long videos come more often; "classes" makes every class equally likely.
        cache_dir: Where to keep the index of the files; None for a hidden folder in ``root``.
        latents: Folder of a cache made by `latte encode`, to train without videos and codec passes.
        kwargs: The arguments of `VideoDataModule`.
    """

    videos: ClassVar[type[VideoFolder]]
    """The data set as files."""

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 256,
        split: Literal["train", "all"] = "train",
        flip: bool = True,
        sampling: Sampling = "videos",
        cache_dir: str | None = None,
        latents: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.split, self.flip, self.sampling = root, split, flip, sampling
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.cache_dir, self.latents = cache_dir, latents
        self.options: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What a latent cache has to agree with, besides the codec."""
        return {"size": list(self.size), "crop": CROP, "data": type(self).__name__, **self.options}

    def open(self, split: AnySplit, num_frames: int, interval: int) -> VideoFolder:
        """Open the files of a split for clips of this many frames."""
        return self.videos(
            self.root,
            size=self.size,
            num_frames=num_frames,
            interval=interval,
            split=split,
            flip=self.flip,
            cache_dir=self.cache_dir,
            captions=self.captions,
            **self.options,
        )

    def build(self, split: Split) -> VideoFolder | CachedLatents:
        """Open one split, from the cache if there is one."""
        wanted: AnySplit = "all" if self.split == "all" else split
        intervals = {"train": self.interval, "val": self.val_interval, "all": max(self.interval, self.val_interval)}
        interval = intervals[wanted]
        if self.latents is None:
            return self.open(wanted, self.num_frames, interval)
        settings = self.settings
        return CachedLatents(self.latents, wanted, self.num_frames, interval, self.flip, settings, self.captions)

    def dataset(self, split: Split) -> VideoFolder | CachedLatents:
        """Return one split, opened at most once; training on everything, both are one."""
        found = super().dataset("train" if self.split == "all" else split)
        assert isinstance(found, VideoFolder | CachedLatents)
        return found

    def prepare_data(self) -> None:
        """Open both splits on one process per node first, so that no other one has to index the files."""
        self.dataset("train")
        self.dataset("val")
        if self.split == "all":
            _warn(f"data.split is all: the validation videos of {self.root} are training videos")

    def setup(self, stage: str) -> None:
        """Refuse latents of another codec or text encoder than the model's.

        Raises:
            ValueError: When codec, scale or text encoder differ; both values are named.
        """
        check_codec(self)

    def train_weights(self) -> NDArray[np.float64] | None:
        """Return the probability of each training video."""
        return self.dataset("train").weights(self.sampling)


class Folder(VideoFiles):
    """Any folder of real videos: ``<video>.mp4`` or ``<class>/<video>.mp4``, also below ``train`` and ``test``.

    Args:
        root: The folder.
        holdout: Share of the videos held out for validation when the folder has no split for it.
        kwargs: The arguments of `VideoFiles`.
    """

    videos = VideoFolder

    def __init__(self, root: str, holdout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"holdout": holdout}


class UCF101(VideoFiles):
    """UCF101 as it is distributed, 101 classes of human action.

    Labels follow the official ``classInd.txt``. The official code of Latte sorts the folders by character code
    instead, which swaps HammerThrow with Hammering and JumpRope with JumpingJack: mind the order with its weights.

    Args:
        root: The folder that holds ``UCF-101`` and ``ucfTrainTestlist``.
        fold: Which of the three official splits; ``split: all`` needs none.
        kwargs: The arguments of `VideoFiles`.
    """

    videos = UCF101Videos

    def __init__(self, root: str, fold: Literal[1, 2, 3] = 1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"fold": fold}


class FaceForensics(VideoFiles):
    """FaceForensics as preprocessed videos or frame folders, flat or in ``train`` and ``test``; unlabelled.

    Args:
        root: The folder.
        holdout: Share of the videos held out for validation when the folder has no split for it.
        kwargs: The arguments of `VideoFiles`.
    """

    videos = FaceForensicsVideos

    def __init__(self, root: str, holdout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"holdout": holdout}


class SkyTimelapse(VideoFiles):
    """SkyTimelapse as it is distributed, nested folders of JPEG frames; unlabelled and, as in the paper, not mirrored.

    Args:
        root: The folder that holds ``sky_train`` and ``sky_test``.
        flip: Mirror half of the training clips.
        kwargs: The arguments of `VideoFiles`.
    """

    videos = SkyTimelapseVideos

    def __init__(self, root: str, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(root, flip=flip, **kwargs)


class TaichiHD(VideoFiles):
    """Taichi-HD as frame folders or videos in ``train`` and ``test``; unlabelled."""

    videos = TaichiVideos


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
