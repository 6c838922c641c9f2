"""Evaluation under a protocol: resumable, independent of batches and devices, and of Lightning."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latte_pl.metrics.extractors import Extractor, clip_features
from latte_pl.metrics.frechet import (
    Score,
    frechet_from_features,
    inception_score,
    jackknife,
    kernel_distance,
    label_of,
)
from latte_pl.metrics.protocol import METRICS, Protocol
from latte_pl.metrics.store import FeatureStore
from latte_pl.streams import numpy_stream


class Clips(Interface):
    """What reals are read from: the part of a ``VideoDataset`` that evaluation needs."""

    def __len__(self) -> int:
        """Return the number of videos."""

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return a clip (F, 3, H, W) uint8."""


class Evaluation:
    """One model under one protocol, in a folder that holds what is done so far.

    Features are stored by sample number and the value is computed on all of them in order, so neither batches nor
    processes nor interruptions change it::

        evaluation = Evaluation(protocol, extractor, "runs/x/test", real_folder="runs/reals")
        evaluation.add_real(dataset)
        while todo := evaluation.pending()[:batch_size]:
            evaluation.add(todo, sample(todo))
        scores = evaluation.result()

    Args:
        protocol: what to measure.
        extractor: the network that the protocol names.
        folder: of the samples' features.
        real_folder: of the reals' features, which models may share; ``folder / "real"`` if None.

    Raises:
        ValueError: the extractor is not the protocol's, or a folder belongs to another protocol.
    """

    def __init__(
        self, protocol: Protocol, extractor: Extractor, folder: Path | str, real_folder: Path | str | None = None
    ) -> None:
        check_extractor(protocol, extractor)
        self.protocol = protocol
        self.extractor = extractor
        folder = Path(folder)
        about = {k: v for k, v in protocol.to_dict().items() if k != "name"} | {"hash": protocol.hash}
        self.generated = FeatureStore(folder / "generated", about, protocol.num_generated)
        self.real = FeatureStore(real_folder or folder / "real", protocol.real_part(), protocol.num_real)

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the sample numbers that are still missing, of this rank's share."""
        return self.generated.pending(rank, world_size)

    def add(self, indices: Sequence[int], video: Tensor) -> None:
        """Extract and store the features of samples (B, F, 3, H, W) uint8 with these numbers.

        Raises:
            ValueError: the clips are not what the protocol says.
        """
        check_clips(self.protocol, video)
        self.generated.add(indices, clip_features(self.extractor, video))

    def add_real(
        self,
        dataset: Clips,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
        progress: bool = True,
    ) -> None:
        """Read this rank's share of the real clips that are still missing, and store their features.

        Args:
            dataset: the protocol's data set and split, at its resolution.
            rank, world_size: of this process.
            device: where features are computed.
            batch_size: clips a shard; after a kill at most as many are computed again.
            progress: show a bar.

        Raises:
            ValueError: the clips are not what the protocol says.
        """
        add_reals(self.real, self.protocol, self.extractor, dataset, rank, world_size, device, batch_size, progress)

    def result(self) -> dict[str, Score]:
        """Return the scores by metric.

        Raises:
            ValueError: clips are missing.
        """
        real = self.real.features() if self.protocol.num_real else None
        return scores(self.protocol, real, self.generated.features())


def add_reals(
    store: FeatureStore,
    protocol: Protocol,
    extractor: Extractor,
    dataset: Clips,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: bool = True,
) -> None:
    """Store the features of the real clips that are still missing: ``Evaluation.add_real`` without samples.

    Args:
        store: of the reals, begun with the protocol's ``real_part``.
        protocol: which clips, and what they must be.
        extractor: the network that the protocol names.
        dataset, rank, world_size, device, batch_size, progress: as in ``Evaluation.add_real``.

    Raises:
        ValueError: the clips are not what the protocol says.
    """
    todo = store.pending(rank, world_size)
    with tqdm(total=len(todo), desc="real clips", unit="clip", disable=not progress or not todo) as bar:
        for first in range(0, len(todo), batch_size):
            numbers = todo[first : first + batch_size]
            video = torch.stack([real_clip(dataset, protocol, n) for n in numbers])  # (B, F, 3, H, W)
            check_clips(protocol, video)
            store.add(numbers, clip_features(extractor, video.to(device)))
            bar.update(len(numbers))


def real_clip(dataset: Clips, protocol: Protocol, number: int) -> Tensor:
    """Return real clip ``number`` (F, 3, H, W) uint8: videos in an order drawn from ``real_seed``, each once a round.

    Raises:
        ValueError: the data set is empty.
    """
    if not len(dataset):
        raise ValueError(f"{protocol.dataset} has no videos in split {protocol.split}")
    round_, place = divmod(number, len(dataset))
    order = numpy_stream(protocol.real_seed, "real order", round_).permutation(len(dataset))
    rng = numpy_stream(protocol.real_seed, "real view", number) if protocol.view == "random" else None
    return dataset.read(int(order[place]), protocol.num_frames, protocol.interval, rng)


def evaluate_folders(
    real: Iterable[Tensor],
    fake: Iterable[Tensor],
    protocol: Protocol,
    extractor: Extractor,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Score]:
    """Score finished videos: two streams of uint8 clips (F, 3, H, W) or batches (B, F, 3, H, W), one pass each.

    Args:
        real, fake: clips; held one item at a time.
        protocol: such as "files-fvd-16f"; its ``num_real`` and ``num_generated`` must be what the streams hold.
        extractor: the network that the protocol names.
        device: where features are computed.
        progress: show bars.

    Returns:
        Scores by metric.

    Raises:
        ValueError: clips are not what the protocol says, or too few or too many of them.
    """
    check_extractor(protocol, extractor)
    sides = []
    for name, stream, expected in (("real", real, protocol.num_real), ("fake", fake, protocol.num_generated)):
        rows = []
        with tqdm(total=expected, desc=f"{name} clips", unit="clip", disable=not progress) as bar:
            for video in _batches(stream):
                check_clips(protocol, video)
                rows.append(clip_features(extractor, video.to(device)).cpu())
                bar.update(len(video))
        count = sum(len(x) for x in rows)
        if count != expected:
            raise ValueError(f"there are {count} {name} clips, protocol {protocol.name} wants {expected}")
        sides.append(torch.cat(rows).numpy())
    return scores(protocol, *sides)


def scores(protocol: Protocol, real: np.ndarray | None, generated: np.ndarray) -> dict[str, Score]:
    """Return the protocol's scores of features (N, k, D), k rows a clip; clips stay whole in the K-fold interval.

    Raises:
        ValueError: a distance lacks its reals.
    """
    result = {}
    for metric in protocol.metrics:
        kind, _, ddof = METRICS[metric]
        sides = [generated.astype(np.float64)]
        if kind != "inception_score":
            if real is None:
                raise ValueError(f"{metric} needs real clips; protocol {protocol.name} has num_real 0")
            sides.insert(0, real.astype(np.float64))
        statistic = _statistic(kind, ddof)
        rows = [x.shape[0] * x.shape[1] for x in sides]
        enough = protocol.folds and min(len(x) for x in sides) >= 2 * protocol.folds
        interval = jackknife(statistic, *sides, folds=protocol.folds) if enough else None
        result[metric] = Score(statistic(*sides), label_of(rows[0], rows[-1], sides[0].shape[-1]), interval)
    return result


def check_extractor(protocol: Protocol, extractor: Extractor) -> None:
    """Refuse an extractor that is not the protocol's."""
    if (extractor.name, extractor.sha256) != (protocol.extractor, protocol.extractor_sha256):
        raise ValueError(
            f"protocol {protocol.name} wants {protocol.extractor} (sha256 {protocol.extractor_sha256[:12]}), "
            f"the extractor is {extractor.name} (sha256 {extractor.sha256[:12]})"
        )


def check_clips(protocol: Protocol, video: Tensor) -> None:
    """Refuse clips that are not the protocol's."""
    wanted = (protocol.num_frames, 3, protocol.height, protocol.width)
    if video.ndim != 5 or tuple(video.shape[1:]) != wanted or video.dtype != torch.uint8:
        raise ValueError(
            f"protocol {protocol.name} wants uint8 clips (B, {', '.join(map(str, wanted))}), "
            f"not {video.dtype} {tuple(video.shape)}"
        )


def _batches(stream: Iterable[Tensor]) -> Iterator[Tensor]:
    for item in stream:
        yield item[None] if item.ndim == 4 else item


def _statistic(kind: str, ddof: int) -> Callable[..., float]:
    """Return a function of features (N, k, D) of each side."""

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, x.shape[-1])  # (N k, D)

    if kind == "frechet":
        return lambda real, fake: frechet_from_features(flat(real), flat(fake), ddof)
    if kind == "kernel":
        return lambda real, fake: kernel_distance(flat(real), flat(fake))
    return lambda fake: inception_score(flat(fake))
