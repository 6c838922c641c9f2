"""Read clips of videos as an evaluation protocol says."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latte_pl.metrics.lossy import jpeg_round_trip, mp4_round_trip
from latte_pl.metrics.protocol import MP4, EvaluationProtocol
from latte_pl.rng import numpy_generator

CHUNK = 64  # frames that are read at once where all frames of a video are compared


class Clips(Protocol):
    """A dataset of videos: the part of ``VideoDataset`` that an evaluation needs.

    Some steps of protocols need more members, all of which ``VideoFolder`` has:

    - ``length(index) -> int``, the number of frames of a video, and ``frames(index, start, num_frames, interval) ->
      Tensor``, a clip (F, 3, H, W) uint8: for ``min_video_frames``, ``fps``, ``flip`` and ``real_frames: all``.
    - ``fps(index) -> float``, the frames a second of a video: for ``fps``.
    - ``pictures(index, start, num_frames, interval)``, the frames as F arrays (h, w, 3) uint8, neither cropped nor
      resized: for ``resample: lanczos``.
    """

    def __len__(self) -> int:
        """Return the number of videos."""

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip (F, 3, H, W) uint8 of video ``index``; without ``rng`` from the start of the video."""


class RealClips:
    """The real clips of a protocol: a choice of videos without repetition, and one clip of each.

    Args:
        dataset: The protocol's dataset and split, at the protocol's resolution.
        protocol: The evaluation protocol.

    Attributes:
        videos: Index of the video of each clip.

    Raises:
        ValueError: There are fewer videos than the protocol compares.
    """

    def __init__(self, dataset: Clips, protocol: EvaluationProtocol) -> None:
        self.dataset, self.protocol = dataset, protocol
        found = usable_videos(dataset, protocol.to_dict())
        if len(found) < protocol.num_real or not found:
            limit = f" with {protocol.min_video_frames} frames or more" if protocol.min_video_frames else ""
            raise ValueError(
                f"protocol {protocol.name} compares {protocol.num_real} real videos, but {protocol.dataset} has "
                f"{len(found)} videos{limit} in split {protocol.split}; every video is used once, so lower num_real"
            )
        order = numpy_generator(protocol.real_seed, "real order", 0).permutation(len(found))
        self.videos = [found[place] for place in order[: protocol.num_real]]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.videos)

    def __getitem__(self, index: int) -> Tensor:
        """Return clip ``index`` (F, 3, H, W) uint8."""
        protocol = self.protocol
        rng = numpy_generator(protocol.real_seed, "real view", index) if protocol.view == "random" else None
        return self._lossy(_read(self.dataset, protocol, self.videos[index], protocol.interval, rng))

    def clip(self, video: int, start: int) -> Tensor:
        """Return the clip (F, 3, H, W) uint8 of a video that starts at a frame, as the protocol reads it."""
        positions = _positions(self.dataset, self.protocol, video, self.protocol.interval)
        return self._lossy(_frames(self.dataset, self.protocol, video, [start + n for n in positions]))

    def all_frames(self, index: int) -> Iterator[Tensor]:
        """Yield all frames of the video of clip ``index``, in parts (n, 3, H, W) uint8."""
        video = self.videos[index]
        length = _length(self.dataset, video)
        for start in range(0, length, CHUNK):
            yield self._lossy(_frames(self.dataset, self.protocol, video, range(start, min(start + CHUNK, length))))

    def _lossy(self, frames: Tensor) -> Tensor:
        return jpeg_round_trip(frames, self.protocol.jpeg_quality) if self.protocol.jpeg_quality else frames

    def labels(self) -> list[int] | None:
        """Return the class of each clip; None if the dataset has no classes."""
        label = getattr(self.dataset, "label", None)
        return [label(video) for video in self.videos] if label else None


def real_clip(dataset: Clips, protocol: EvaluationProtocol, index: int) -> Tensor:
    """Return one clip (F, 3, H, W) uint8 of ``RealClips``."""
    return RealClips(dataset, protocol)[index]


def finished_clips(dataset: Clips, protocol: EvaluationProtocol, videos: Sequence[int]) -> Iterator[Tensor]:
    """Yield a clip (F, 3, H, W) uint8 from the start of each finished, generated video.

    The steps of the protocol that follow are not applied; see `through_files`.

    Args:
        dataset: The generated videos.
        protocol: The evaluation protocol.
        videos: Indices of the videos.
    """
    for video in videos:
        yield _read(dataset, protocol, video, protocol.generated_interval, None)


def usable_videos(dataset: Clips, stated: dict[str, Any]) -> list[int]:
    """Return the indices of the videos that a protocol can use.

    Args:
        dataset: The videos, which are long enough for a clip at its interval.
        stated: The protocol, or the keys of a protocol file.
    """
    least, fps = stated.get("min_video_frames", 0), stated.get("fps", 0)
    found = list(range(len(dataset)))
    if least:
        found = [index for index in found if _length(dataset, index) >= least]
    if fps:
        count = stated["num_frames"]
        found = [i for i in found if _nearest(count, _rate(dataset, i) / fps)[-1] < _length(dataset, i)]
    return found


def through_files(protocol: EvaluationProtocol, video: Tensor) -> Tensor:
    """Apply the lossy steps of a protocol to generated clips (B, F, 3, H, W) uint8.

    Finished videos have been through their own files already, so only ``jpeg_quality`` changes them.
    """
    crf = MP4.fullmatch(protocol.generated_codec)
    if crf and protocol.weights != "files":
        video = torch.stack([mp4_round_trip(clip, int(crf[1])) for clip in video])
    return jpeg_round_trip(video, protocol.jpeg_quality) if protocol.jpeg_quality else video


def crop_and_resample(pictures: Sequence[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """Crop pictures around their centre and rescale them by PIL's LANCZOS filter, as the official evaluation does.

    Args:
        pictures: F pictures (h, w, 3) uint8.
        size: Height H and width W in pixels.

    Returns:
        (F, 3, H, W) uint8.
    """
    from PIL import Image

    frames = np.empty((len(pictures), *size, 3), np.uint8)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        scale = min(height / size[0], width / size[1])
        h, w = min(height, max(1, round(size[0] * scale))), min(width, max(1, round(size[1] * scale)))
        top, left = round((height - h) / 2), round((width - w) / 2)  # to the even number, as torchvision rounds
        image = Image.fromarray(np.ascontiguousarray(picture[top : top + h, left : left + w]))
        frames[number] = np.asarray(image.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()


def _read(
    dataset: Any, protocol: EvaluationProtocol, video: int, interval: int, rng: np.random.Generator | None
) -> Tensor:
    """Read one clip (F, 3, H, W) uint8; ``rng`` draws its start and, if the protocol flips, its flip."""
    if not hasattr(dataset, "frames"):  # no files: it reads clips as they are
        return dataset.read(video, protocol.num_frames, interval, rng)
    positions = _positions(dataset, protocol, video, interval)
    start, flipped = 0, False
    if rng is not None:  # the draws of training clips
        start = int(rng.integers(_length(dataset, video) - positions[-1]))
        flipped = protocol.flip and bool(rng.random() < 0.5)
    clip = _frames(dataset, protocol, video, [start + position for position in positions])
    return clip.flip(-1) if flipped else clip


def _frames(dataset: Any, protocol: EvaluationProtocol, video: int, positions: Sequence[int]) -> Tensor:
    """Return the frames of a video at ascending positions as (F, 3, H, W) uint8, cropped and resized."""
    steps = {after - before for before, after in pairwise(positions)}
    interval = max(steps.pop(), 1) if len(steps) == 1 else 1
    count = (positions[-1] - positions[0]) // interval + 1
    picked = [(position - positions[0]) // interval for position in positions]
    if protocol.resample == "lanczos" and protocol.resize != "none":
        pictures = dataset.pictures(video, positions[0], count, interval)
        return crop_and_resample([pictures[n] for n in picked], (protocol.height, protocol.width))
    clip = dataset.frames(video, positions[0], count, interval)
    return clip if picked == list(range(count)) else clip[picked]


def _positions(dataset: Any, protocol: EvaluationProtocol, video: int, interval: int) -> list[int]:
    """Return the frames of a clip that starts at frame 0."""
    if protocol.fps:
        return _nearest(protocol.num_frames, _rate(dataset, video) / protocol.fps)
    return list(range(0, protocol.num_frames * interval, interval))


def _nearest(num_frames: int, step: float) -> list[int]:
    """Return the frames nearest to the times 0, step, 2 step, ..., in frames of the video."""
    return [int(number * step + 0.5) for number in range(num_frames)]


def _length(dataset: Any, video: int) -> int:
    length = dataset.length
    return length(video) if callable(length) else length


def _rate(dataset: Any, video: int) -> float:
    """Return the frames a second of a video.

    Raises:
        ValueError: The file does not state it.
    """
    if rate := float(dataset.fps(video)):
        return rate
    raise ValueError(
        f"{dataset.path(video)} states no frame rate, so it cannot be read by time; leave out fps and set the intervals"
    )
