"""The stream of training clips: for a seed, clip number n is the same for any number of workers and devices."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latte_pl.streams import numpy_stream
from latte_pl.types import Text

Sampling = Literal["videos", "clips", "classes"]


@runtime_checkable
class VideoDataset(Protocol):
    """Random access to labelled videos; all randomness of a read comes from the generator that it is handed."""

    class_names: list[str]
    """Names of the classes, empty when the videos carry no labels."""
    key: str
    """The field of `VideoBatch` that `read` fills: "video" or "moments"."""

    def __len__(self) -> int:
        """Return the number of videos."""

    def label(self, index: int) -> int:
        """Return the class of a video, 0 when unlabelled."""

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip of one video; without a generator the evaluation view (fixed start, no flip)."""


def captions(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
    """Return the captions of a clip and its images as a field of `VideoBatch`.

    Args:
        dataset: Videos with ``caption(index)``, or with ``text(index)`` where the embeddings are cached.
        indices: The clip's video, then each image's.
    """
    if hasattr(dataset, "text"):
        rows = [dataset.text(index) for index in indices]
        text = Text(*(torch.stack(part) for part in zip(*rows)))  # (1 + N, L, E) and (1 + N, L)
        return {"text": text if len(indices) > 1 else Text(text.embeddings[0], text.mask[0])}
    found = [dataset.caption(index) for index in indices]
    return {"caption": found if len(found) > 1 else found[0]}


def sampling_weights(
    kind: Sampling, lengths: Sequence[int], labels: Sequence[int], labelled: bool, needed: int
) -> NDArray[np.float64] | None:
    """Return the probability of each video in training.

    Args:
        kind: "videos": all alike (None: visit each once per epoch), as the paper does; "clips": in proportion to the
            number of windows, so that every clip of the data set is equally likely; "classes": every class alike.
        lengths: Frames of each video.
        labels: Its class.
        labelled: Whether the data set has classes.
        needed: Frames that a clip stretches over.

    Raises:
        ValueError: When the kind is unknown, or classes are asked of an unlabelled data set.
    """
    if kind == "videos":
        return None
    if kind == "clips":
        mass = np.array(lengths, dtype=np.float64) - needed + 1
    elif kind == "classes":
        if not labelled:
            raise ValueError("the videos have no classes to balance; set data.sampling to videos or clips")
        counts = Counter(labels)
        mass = np.array([1 / counts[label] for label in labels])
    else:
        raise ValueError(f'sampling is "videos", "clips" or "classes", not "{kind}"')
    return mass / mass.sum()


class ClipStream(Dataset[dict[str, Any]]):
    """Maps clip numbers to clips: epoch after epoch of permutations, or draws by weight; unbounded.

    Args:
        dataset: The videos.
        num_frames: Frames F of a clip.
        interval: Distance between the frames of a clip, in frames of the video.
        seed: Names the stream.
        num_images: Extra single frames N of other videos, appended for joint training.
        weights: Probability of each video (any positive scale); None visits every video once per epoch.
        captions: Whether clips come with their captions.
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
        if len(dataset) == 0:
            raise ValueError("the dataset holds no videos; check the folder and the split")
        self.dataset, self.num_frames, self.interval = dataset, num_frames, interval
        self.seed, self.num_images, self.captions = seed, num_images, captions
        self._cumulative = None if weights is None else np.cumsum(weights) / np.sum(weights)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def index(self, clip: int) -> int:
        """Return which video clip number ``clip`` comes from."""
        if self._cumulative is not None:
            draw = numpy_stream(self.seed, "video", clip).random()
            return int(np.searchsorted(self._cumulative, draw, side="right"))
        epoch, place = divmod(clip, len(self.dataset))
        if epoch != self._epoch:
            self._order = numpy_stream(self.seed, "order", epoch).permutation(len(self.dataset))
            self._epoch = epoch
        return int(self._order[place])

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """Return one item of a `VideoBatch`."""
        rng = numpy_stream(self.seed, "clip", clip)
        index = self.index(clip)
        frames = [self.dataset.read(index, self.num_frames, self.interval, rng)]
        videos = [index]
        for _ in range(self.num_images):
            # another video than the clip's own, unless there is only one
            other = int(index + 1 + rng.integers(max(len(self.dataset) - 1, 1))) % len(self.dataset)
            frames.append(self.dataset.read(other, 1, 1, rng))
            videos.append(other)
        labels = [self.dataset.label(video) for video in videos]
        label = torch.tensor(labels) if self.num_images else torch.tensor(labels[0])
        item = {self.dataset.key: torch.cat(frames), "label": label, "clip": clip}
        return item | captions(self.dataset, videos) if self.captions else item


class FixedClips(Dataset[dict[str, Any]]):
    """The evaluation view: ``num_clips`` clips spread evenly over the videos, without any random draw."""

    def __init__(
        self, dataset: VideoDataset, num_frames: int, interval: int, num_clips: int, captions: bool = False
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the dataset holds no videos; check the folder and the split")
        self.dataset, self.num_frames, self.interval = dataset, num_frames, interval
        self.num_clips, self.captions = min(num_clips, len(dataset)), captions

    def __getitem__(self, clip: int) -> dict[str, Any]:
        """Return one item of a `VideoBatch`; numbers past the end are padding, to be given no weight."""
        index = (clip % self.num_clips) * len(self.dataset) // self.num_clips
        video = self.dataset.read(index, self.num_frames, self.interval, None)
        item = {self.dataset.key: video, "label": torch.tensor(self.dataset.label(index)), "clip": clip}
        return item | captions(self.dataset, [index]) if self.captions else item


class GlobalBatches(Sampler[list[int]]):
    """This rank's share of global batches of consecutive clip numbers.

    Optimizer step k consumes the clips [k G, (k + 1) G), whatever the number of ranks and of accumulated
    micro-batches, so that neither changes the result. With ``num_clips`` the last batch is padded with numbers
    past the end: every rank sees equally many batches, as collectives need.

    Args:
        global_batch: Clips G of one optimizer step.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        accumulate: Micro-batches of one optimizer step.
        first_step: Optimizer steps already taken.
        num_clips: Length of the split; None for the endless stream of training.

    Raises:
        ValueError: When the global batch cannot be shared out evenly.
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
                f"global_batch_size {global_batch} does not divide over {world_size} devices x {accumulate} "
                f"accumulated batches; choose a multiple of {parts}"
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
    """`GlobalBatches` of a split of known length; endless training has no ``len``, on purpose."""

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        assert self.num_clips is not None
        return -(-self.num_clips // self.global_batch) * self.accumulate
