"""The order of training and validation clips, independent of the number of workers and devices."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latte_pl.rng import numpy_generator
from latte_pl.types import Text

ClipSampling = Literal["videos", "clips", "classes"]


@runtime_checkable
class VideoDataset(Protocol):
    """Random access to videos: what a data set must implement to be trained on.

    All randomness of `read` must come from the generator that it is given; `draw_view` makes the usual draws. Data sets
    of pixels need three more members for some commands:

    - ``caption(index) -> str``, the caption of a video: for text conditioning.
    - ``resize: str``, how pictures are fitted to their size, such as "centre-crop" or "none", and ``fingerprint() ->
      str``, a hash of the files and settings that `read` depends on: for evaluation, which stores both with the
      metrics.
    - The members of `latte_pl.data.encoding.EncodableVideos`: for `latte encode`.

    Videos in files are best read by a subclass of `VideoFolder`, which has all of them.
    """

    class_names: list[str]
    """Names of the classes, empty if the videos have no labels."""
    key: str
    """The field of `VideoBatch` that `read` returns: "video" for pixels or "moments" for cached latents."""

    def __len__(self) -> int:
        """Return the number of videos."""

    def label(self, index: int) -> int:
        """Return the class of a video; 0 if the videos have no labels."""

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip of a video.

        Args:
            index: Index of the video.
            num_frames: Number of frames F of the clip.
            interval: Distance between two frames of the clip, in frames of the video.
            rng: Source of all random choices; None returns the evaluation view, which is always the same.

        Returns:
            (F, 3, H, W) uint8 pixels, or moments (F, 2C, h, w).
        """


def captions(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
    """Return the captions of a clip and its images as a field of `VideoBatch`.

    Args:
        dataset: Videos with ``caption(index)``, or with ``text(index)`` if their token embeddings are cached.
        indices: Index of the clip's video, followed by those of the images.
    """
    if hasattr(dataset, "text"):
        rows = [dataset.text(index) for index in indices]
        text = Text(*(torch.stack(part) for part in zip(*rows)))  # (1 + N, L, E) and (1 + N, L)
        return {"text": text if len(indices) > 1 else Text(text.embeddings[0], text.mask[0])}
    found = [dataset.caption(index) for index in indices]
    return {"caption": found if len(found) > 1 else found[0]}


def sampling_weights(
    kind: ClipSampling, lengths: Sequence[int], labels: Sequence[int], labelled: bool, needed: int
) -> NDArray[np.float64] | None:
    """Return the probability of each video in training.

    Args:
        kind: "videos" makes all videos equally likely and returns None, which visits each video once per epoch, as in
            the paper. "clips" makes all clips of the data set equally likely, so that longer videos are drawn more
            often. "classes" makes all classes equally likely.
        lengths: Number of frames of each video.
        labels: Class of each video.
        labelled: Whether the data set has classes.
        needed: Number of video frames from the first to the last frame of a clip.

    Raises:
        ValueError: ``kind`` is unknown, or it is "classes" and the data set has none.
    """
    if kind == "videos":
        return None
    if kind == "clips":
        mass = np.array(lengths, dtype=np.float64) - needed + 1
    elif kind == "classes":
        if not labelled:
            raise ValueError('data.sampling is "classes", but the videos have no classes; use "videos" or "clips"')
        counts = Counter(labels)
        mass = np.array([1 / counts[label] for label in labels])
    else:
        raise ValueError(f'data.sampling is "{kind}"; it must be "videos", "clips" or "classes"')
    return mass / mass.sum()


class ClipStream(Dataset[dict[str, Any]]):
    """The endless sequence of training clips: item n is the n-th clip since the start of training.

    Args:
        dataset: The videos.
        num_frames: Number of frames F of a clip.
        interval: Distance between two frames of a clip, in frames of the video.
        seed: Seed of the order of the videos and of the random view of each clip.
        num_images: Number N of single frames of other videos, appended to each clip for joint training.
        weights: Probability of each video, up to a factor; None visits every video once per epoch, in random order.
        captions: Add the captions.

    Raises:
        ValueError: The data set is empty.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        num_frames: int,
        interval: int,
        seed: int,
        num_images: int = 0,
        weights: np.ndarray | None = None,
        captions: bool = False,
    ) -> None:
        _refuse_empty(dataset)
        self.dataset, self.num_frames, self.interval = dataset, num_frames, interval
        self.seed, self.num_images, self.captions = seed, num_images, captions
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def index(self, clip: int) -> int:
        """Return the index of the video that a clip is taken from."""
        if self._cumulative is not None:
            draw = numpy_generator(self.seed, "video", clip).random()
            return int(np.searchsorted(self._cumulative, draw, side="right"))
        epoch, place = divmod(clip, len(self.dataset))
        if epoch != self._epoch:
            self._order = numpy_generator(self.seed, "order", epoch).permutation(len(self.dataset))
            self._epoch = epoch
        return int(self._order[place])

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """Return an item of a `VideoBatch`."""
        rng = numpy_generator(self.seed, "clip", clip)
        index = self.index(clip)
        frames = [self.dataset.read(index, self.num_frames, self.interval, rng)]
        videos = [index]
        for _ in range(self.num_images):
            # never the clip's own video, unless it is the only one
            other = int(index + 1 + rng.integers(max(len(self.dataset) - 1, 1))) % len(self.dataset)
            frames.append(self.dataset.read(other, 1, 1, rng))
            videos.append(other)
        labels = [self.dataset.label(video) for video in videos]
        label = torch.tensor(labels) if self.num_images else torch.tensor(labels[0])
        item = {self.dataset.key: torch.cat(frames), "label": label, "clip": clip}
        return item | captions(self.dataset, videos) if self.captions else item


class FixedClips(Dataset[dict[str, Any]]):
    """The validation clips: evaluation views of videos that are spread evenly over the data set.

    Indices from ``num_clips`` on are padding, so that all batches have the same size. They repeat the first clips, have
    ``padding`` True, and must not count in a mean.

    Args:
        dataset: The videos.
        num_frames: Number of frames F of a clip.
        interval: Distance between two frames of a clip, in frames of the video.
        num_clips: Number of clips; all videos if the data set has fewer.
        captions: Add the captions.

    Raises:
        ValueError: The data set is empty.
    """

    def __init__(
        self, dataset: VideoDataset, num_frames: int, interval: int, num_clips: int, captions: bool = False
    ) -> None:
        _refuse_empty(dataset)
        self.dataset, self.num_frames, self.interval = dataset, num_frames, interval
        self.num_clips, self.captions = min(num_clips, len(dataset)), captions

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """Return an item of a `VideoBatch`."""
        index = (clip % self.num_clips) * len(self.dataset) // self.num_clips
        item = {
            self.dataset.key: self.dataset.read(index, self.num_frames, self.interval, None),
            "label": torch.tensor(self.dataset.label(index)),
            "clip": clip,
            "padding": torch.tensor(clip >= self.num_clips),
        }
        return item | captions(self.dataset, [index]) if self.captions else item


def _refuse_empty(dataset: VideoDataset) -> None:
    if len(dataset) == 0:
        raise ValueError("the data set has no videos; check its folder and its split")


class GlobalBatches(Sampler[list[int]]):
    """The share of one process in global batches of consecutive clip indices.

    Optimizer step k uses the clips k G to (k + 1) G - 1, whatever the number of processes and of accumulated batches,
    so that neither changes which clips a step trains on. With ``num_clips``, the last batch is filled with indices of
    ``num_clips`` and above, so that every process has the same number of batches, as collective operations require.

    Args:
        global_batch: Number of clips G of one optimizer step.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        accumulate: Number of accumulated batches of one optimizer step.
        first_step: Number of optimizer steps already taken.
        num_clips: Number of clips of the split; None for the endless stream of training.

    Raises:
        ValueError: The global batch cannot be divided evenly.
    """

    def __init__(
        self,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        first_step: int = 0,
        num_clips: int | None = None,
    ) -> None:
        parts = world_size * accumulate
        if global_batch < 1 or global_batch % parts:
            raise ValueError(
                f"data.global_batch_size {global_batch} cannot be divided by {world_size} devices x {accumulate} "
                f"accumulated batches; use a multiple of {parts}"
            )
        self.global_batch, self.rank, self.world_size = global_batch, rank, world_size
        self.accumulate, self.first_step, self.num_clips = accumulate, first_step, num_clips

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.global_batch // (self.world_size * self.accumulate)
        step = self.first_step
        while self.num_clips is None or step * self.global_batch < self.num_clips:
            for part in range(self.accumulate):
                start = step * self.global_batch + (part * self.world_size + self.rank) * micro
                yield list(range(start, start + micro))
            step += 1


class BoundedBatches(GlobalBatches):
    """`GlobalBatches` of a split of known length; the endless batches of training have no ``len``."""

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        assert self.num_clips is not None
        return -(-self.num_clips // self.global_batch) * self.accumulate
