"""From clips to scores under a protocol: resumable, and independent of batches and processes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from latte_pl.metrics.clips import Clips, RealClips, through_files
from latte_pl.metrics.extractors import Extractor, clip_features
from latte_pl.metrics.frechet import Moments
from latte_pl.metrics.protocol import EvaluationProtocol
from latte_pl.metrics.scoring import Labels, Score, scores
from latte_pl.metrics.store import FeatureStore, MomentStore


class Evaluation:
    """The evaluation of one model under one protocol, stored in a folder.

    The features of every clip are stored under the clip's index, and the scores are computed from all of them in this
    order. So batch size, number of processes and interruptions do not change the scores::

        evaluation = Evaluation(protocol, extractor, "runs/x/test", real_folder="runs/real_features")
        evaluation.add_real(dataset)
        while todo := evaluation.pending()[:batch_size]:
            evaluation.add(todo, sample(todo))
        scores = evaluation.result()

    Args:
        protocol: The evaluation protocol.
        extractor: The feature extractor that the protocol names.
        folder: Folder of the features of the generated clips.
        real_folder: Folder of the features of the real clips, which several models can share; ``folder / "real"`` if
            None.

    Raises:
        ValueError: The extractor is not the protocol's, or a folder contains features of another protocol.
    """

    def __init__(
        self,
        protocol: EvaluationProtocol,
        extractor: Extractor,
        folder: Path | str,
        real_folder: Path | str | None = None,
    ) -> None:
        check_extractor(protocol, extractor)
        self.protocol = protocol
        self.extractor = extractor
        folder = Path(folder)
        about = {k: v for k, v in protocol.to_dict().items() if k != "name"} | {"hash": protocol.hash}
        self.generated = FeatureStore(folder / "generated", about, protocol.num_generated)
        self.real = open_reals(real_folder or folder / "real", protocol)

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the indices of the generated clips that are missing; see ``FeatureStore.pending``."""
        return self.generated.pending(rank, world_size)

    def add(self, indices: Sequence[int], video: Tensor) -> None:
        """Extract and store the features of generated clips, after the lossy steps of the protocol.

        Args:
            indices: Indices of B samples.
            video: The samples (B, F, 3, H, W) uint8.

        Raises:
            ValueError: The clips do not match the protocol.
        """
        check_clips(self.protocol, video)
        self.generated.add(indices, clip_features(self.extractor, through_files(self.protocol, video)))

    def add_real(
        self,
        dataset: Clips,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        batch_size: int = 16,
        progress: bool = True,
    ) -> None:
        """Extract and store the features of this process's share of the missing real clips; see ``add_reals``."""
        add_reals(self.real, self.protocol, self.extractor, dataset, rank, world_size, device, batch_size, progress)

    def result(self, real_labels: Labels = None, generated_labels: Labels = None) -> dict[str, Score]:
        """Return the scores by metric.

        Args:
            real_labels: Class of each real clip, so that the folds of the intervals have the same classes.
            generated_labels: The same for the generated clips.

        Raises:
            ValueError: Clips are missing.
        """
        real = None
        if self.protocol.num_real:
            real = self.real.moments() if isinstance(self.real, MomentStore) else self.real.features()
        return scores(self.protocol, real, self.generated.features(), real_labels, generated_labels)


def open_reals(folder: Path | str, protocol: EvaluationProtocol) -> FeatureStore | MomentStore:
    """Open the store of the real clips' features that a protocol needs."""
    store = MomentStore if protocol.real_frames == "all" else FeatureStore
    return store(folder, protocol.real_part(), protocol.num_real)


def add_reals(
    store: FeatureStore | MomentStore,
    protocol: EvaluationProtocol,
    extractor: Extractor,
    dataset: Clips,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: bool = True,
) -> None:
    """Extract and store the features of this process's share of the missing real clips.

    Args:
        store: Store of the real clips' features, from ``open_reals``.
        protocol: The evaluation protocol.
        extractor: The feature extractor that the protocol names.
        dataset: The protocol's dataset and split, at the protocol's resolution.
        rank: This process.
        world_size: Number of processes.
        device: Device of the extractor.
        batch_size: Clips of a shard. If the process is killed, at most this many clips are computed again.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The clips do not match the protocol, or there are fewer videos than it compares.
    """
    todo = store.pending(rank, world_size)
    if not todo:
        return
    clips = RealClips(dataset, protocol)
    with tqdm(total=len(todo), desc="real clips", unit="clip", disable=not progress) as bar:
        if isinstance(store, MomentStore):
            for n in todo:
                parts = [_frame_features(extractor, part.to(device)) for part in clips.all_frames(n)]
                store.add(n, torch.cat(parts))
                bar.update()
            return
        for first in range(0, len(todo), batch_size):
            indices = todo[first : first + batch_size]
            video = torch.stack([clips[n] for n in indices])  # (B, F, 3, H, W)
            check_clips(protocol, video)
            store.add(indices, clip_features(extractor, video.to(device)))
            bar.update(len(indices))


def evaluate_clips(
    real: Iterable[Tensor],
    generated: Iterable[Tensor],
    protocol: EvaluationProtocol,
    extractor: Extractor,
    device: torch.device | str = "cpu",
    progress: bool = True,
    real_labels: Labels = None,
    generated_labels: Labels = None,
) -> dict[str, Score]:
    """Score finished clips in one pass, without storing features.

    Args:
        real: Real clips (F, 3, H, W) uint8, or batches (B, F, 3, H, W), after all steps of the protocol; only one item
            is held in memory. With ``real_frames: all``, parts (n, 3, H, W) of the videos.
        generated: The same for the generated clips, before the lossy steps of the protocol.
        protocol: A protocol such as "files-fvd-16f", completed with the number of clips of each side.
        extractor: The feature extractor that the protocol names.
        device: Device of the extractor.
        progress: Whether to show progress bars.
        real_labels: Class of each real clip, so that the folds of the intervals have the same classes.
        generated_labels: The same for the generated clips.

    Returns:
        Scores by metric.

    Raises:
        ValueError: The clips do not match the protocol, or their number does not.
    """
    check_extractor(protocol, extractor)
    reals: Any = None
    if protocol.real_frames == "all":
        reals = _all_frames(real, extractor, device, progress)
    else:
        rows = _features(real, "real", protocol, protocol.num_real, extractor, device, progress)
        reals = rows.numpy() if len(rows) else None
    lossy = (through_files(protocol, video) for video in _batches(generated))
    fakes = _features(lossy, "generated", protocol, protocol.num_generated, extractor, device, progress)
    return scores(protocol, reals, fakes.numpy(), real_labels, generated_labels)


def _features(
    clips: Iterable[Tensor],
    side: str,
    protocol: EvaluationProtocol,
    expected: int,
    extractor: Extractor,
    device: torch.device | str,
    progress: bool,
) -> Tensor:
    """Return the features (N, k, D) of the clips of one side."""
    rows = [torch.empty(0)]
    with tqdm(total=expected, desc=f"{side} clips", unit="clip", disable=not progress) as bar:
        for video in _batches(clips):
            check_clips(protocol, video)
            rows.append(clip_features(extractor, video.to(device)).cpu())
            bar.update(len(video))
    if (count := sum(len(x) for x in rows)) != expected:
        raise ValueError(f"there are {count} {side} clips, but protocol {protocol.name} needs {expected}")
    return torch.cat(rows[1:]) if count else rows[0]


def _all_frames(parts: Iterable[Tensor], extractor: Extractor, device: torch.device | str, progress: bool) -> Moments:
    """Return the sums over the features of all frames."""
    count, total, outer = 0, torch.zeros(1), torch.zeros(1)
    for part in tqdm(parts, desc="real frames", unit="part", disable=not progress):
        rows = _frame_features(extractor, part.to(device)).cpu().double()
        count, total, outer = count + len(rows), total + rows.sum(dim=0), outer + rows.T @ rows
    return Moments(count, total.numpy(), outer.numpy())


def _frame_features(extractor: Extractor, frames: Tensor) -> Tensor:
    """Return the features (n, D) of single frames (n, 3, H, W)."""
    return clip_features(extractor, frames[None])[0]


def check_extractor(protocol: EvaluationProtocol, extractor: Extractor) -> None:
    """Raise ValueError unless name and weights of the extractor are the protocol's."""
    if (extractor.name, extractor.sha256) != (protocol.extractor, protocol.extractor_sha256):
        raise ValueError(
            f"protocol {protocol.name} needs the extractor {protocol.extractor} (sha256 "
            f"{protocol.extractor_sha256[:12]}), found {extractor.name} (sha256 {extractor.sha256[:12]})"
        )


def check_clips(protocol: EvaluationProtocol, video: Tensor) -> None:
    """Raise ValueError unless shape and type of clips are the protocol's."""
    wanted = (protocol.num_frames, 3, protocol.height, protocol.width)
    if video.ndim != 5 or tuple(video.shape[1:]) != wanted or video.dtype != torch.uint8:
        raise ValueError(
            f"protocol {protocol.name} needs uint8 clips (B, {', '.join(map(str, wanted))}), "
            f"found {video.dtype} {tuple(video.shape)}"
        )


def _batches(clips: Iterable[Tensor]) -> Iterator[Tensor]:
    for item in clips:
        yield item[None] if item.ndim == 4 else item
