"""Features of clips in files on disk: written atomically, verified when read, resumable."""

import hashlib
import json
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_pl.files import replaced, write_text
from latte_pl.metrics.frechet import Moments
from latte_pl.metrics.record import differing


class FeatureStore:
    """A folder of shards that together contain the features of the clips 0 to ``num_clips`` - 1.

    Shards are written atomically and have a checksum. A killed process leaves no incomplete shard. A damaged shard is
    deleted with a warning, and its clips count as missing. Several processes may write to the folder at once.

    Args:
        folder: The folder, created if it is missing.
        about: What the features depend on, as JSON types; stored in ``protocol.json``.
        num_clips: Number of clips of a complete store.

    Raises:
        ValueError: The folder contains features with another ``about``.
    """

    def __init__(self, folder: Path | str, about: dict[str, Any], num_clips: int) -> None:
        self.folder = Path(folder)
        self.num_clips = num_clips
        self._rows: dict[int, Tensor] = {}
        self._read: set[str] = set()
        _open_folder(self.folder, about)

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the indices of the clips that are missing.

        Args:
            rank: This process. Only indices that are ``rank`` modulo ``world_size`` are returned, so that no two
                processes get the same clip even if they call at different times.
            world_size: Number of processes.
        """
        self._load()
        return [n for n in range(rank, self.num_clips, world_size) if n not in self._rows]

    def add(self, indices: Sequence[int], features: Tensor) -> None:
        """Store features as one shard.

        Args:
            indices: Indices of B clips.
            features: Their features (B, k, D).

        Raises:
            OSError: The shard cannot be written.
            ValueError: The indices do not match the features or the store, or the features are not finite.
        """
        numbers = [int(n) for n in indices]
        if features.ndim != 3 or len(numbers) != len(features):
            raise ValueError(
                f"{len(numbers)} clips need features ({len(numbers)}, k, D), found {tuple(features.shape)}"
            )
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"clip indices must be distinct, found {numbers}")
        if not numbers:
            return
        if min(numbers) < 0 or max(numbers) >= self.num_clips:
            raise ValueError(f"clip indices must be from 0 to {self.num_clips - 1}, found {numbers}")
        if not torch.isfinite(features).all():
            raise ValueError("the features contain NaN or infinity; check the clips and the extractor")
        tensors = {"indices": torch.tensor(numbers), "features": features.detach().cpu().float().contiguous()}
        digest = _digest(*tensors.values())
        with replaced(self.folder / f"shard-{min(numbers):08d}-{digest[:16]}.safetensors") as temporary:
            save_file(tensors, temporary, {"sha256": digest})

    def features(self) -> np.ndarray:
        """Return the features (num_clips, k, D) float32 in the order of the clip indices.

        Raises:
            ValueError: Clips are missing, or shards have different shapes.
        """
        if missing := self.pending():
            raise ValueError(f"{self.folder} lacks {len(missing)} of {self.num_clips} clips, the first is {missing[0]}")
        rows = [self._rows[n] for n in range(self.num_clips)]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{self.folder} contains features of different shapes; delete it and start again")
        return torch.stack(rows).numpy()

    def _load(self) -> None:
        """Read the shards that were written since the last call."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name in self._read or (tensors := _read(path, "indices", "features")) is None:
                continue
            self._read.add(path.name)
            for n, row in zip(tensors["indices"].tolist(), tensors["features"]):
                self._rows.setdefault(n, row)  # if several shards contain a clip, use the first by name


class MomentStore:
    """A folder of sums over the features of all frames of the videos 0 to ``num_videos`` - 1.

    It is used where the features of the frames are too many to store. Every process writes a file of its own, with its
    sums and the videos that they contain. It replaces this file atomically after each call of ``add``, and nothing is
    computed again after an interruption but the videos of the current call. A damaged file is deleted with a warning,
    and its videos count as missing. If two files contain the same video, the one with fewer videos is not used, and its
    other videos count as missing.

    Args:
        folder: The folder, created if it is missing.
        about: What the features depend on, as JSON types; stored in ``protocol.json``.
        num_videos: Number of videos of a complete store.

    Raises:
        ValueError: The folder contains features with another ``about``.
    """

    def __init__(self, folder: Path | str, about: dict[str, Any], num_videos: int) -> None:
        self.folder = Path(folder)
        self.num_videos = num_videos
        _open_folder(self.folder, about)
        self._own = self.folder / f"moments-{secrets.token_hex(8)}.safetensors"
        self._sums: dict[str, Tensor] = {}

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the indices of the videos that are missing; see ``FeatureStore.pending``."""
        done = {n for sums in self._load() for n in sums["indices"].tolist()}
        return [n for n in range(rank, self.num_videos, world_size) if n not in done]

    def add(self, index: int, features: Tensor) -> None:
        """Add the features (N, D) of all frames of a video.

        Raises:
            OSError: The file cannot be written.
            ValueError: The features have another shape, or are not finite.
        """
        if features.ndim != 2 or not torch.isfinite(features).all():
            raise ValueError(f"features must have shape (N, D) and be finite, found {tuple(features.shape)}")
        rows = features.detach().cpu().double()
        new = {"indices": torch.tensor([index]), "num_rows": torch.tensor(len(rows))}
        new |= {"total": rows.sum(dim=0), "outer": rows.T @ rows}
        if self._sums:
            new["indices"] = torch.cat([self._sums["indices"], new["indices"]])
            new |= {name: self._sums[name] + new[name] for name in ("num_rows", "total", "outer")}
        self._sums = new
        with replaced(self._own) as temporary:
            save_file(new, temporary, {"sha256": _digest(*(new[name] for name in sorted(new)))})

    def moments(self) -> Moments:
        """Return the sums over all videos.

        Raises:
            ValueError: Videos are missing.
        """
        if missing := self.pending():
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {self.num_videos} videos, the first is {missing[0]}"
            )
        parts = self._load()
        total, outer = (sum(part[name] for part in parts).numpy() for name in ("total", "outer"))  # type: ignore[union-attr]
        return Moments(int(sum(part["num_rows"] for part in parts)), total, outer)

    def _load(self) -> list[dict[str, Tensor]]:
        """Read the files that have no video in common."""
        parts: list[dict[str, Tensor]] = []
        done: set[int] = set()
        read = [
            _read(path, "indices", "num_rows", "outer", "total") for path in self.folder.glob("moments-*.safetensors")
        ]
        for part in sorted((p for p in read if p), key=lambda p: (-len(p["indices"]), p["indices"].tolist())):
            if done.isdisjoint(indices := part["indices"].tolist()):
                parts.append(part)
                done.update(indices)
        return parts


def _open_folder(folder: Path, about: dict[str, Any]) -> None:
    """Compare ``about`` with the folder's ``protocol.json``, or write it into a new folder.

    Raises:
        ValueError: They differ, or the folder contains features of unknown origin.
    """
    about = json.loads(json.dumps(about))  # tuples become lists, as in the file
    label = folder / "protocol.json"
    if label.is_file():
        try:
            found = json.loads(label.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{label} is damaged; delete the folder {folder}") from error
        if found != about:
            raise ValueError(
                f"{folder} contains features of another protocol ({differing(found, about)}); "
                "use another folder or delete this one"
            )
        return
    if folder.is_dir() and any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} contains features but no protocol.json, so their origin is unknown; delete it")
    write_text(label, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _read(path: Path, *names: str) -> dict[str, Tensor] | None:
    """Read tensors, and delete the file if it is damaged; None if there are none."""
    try:
        with safe_open(path, "pt") as file:
            # cloned, because the tensors are views of the file, which may be deleted
            tensors = {name: file.get_tensor(name).clone() for name in names}
            stated = (file.metadata() or {}).get("sha256")
        if stated != _digest(*tensors.values()):
            raise SafetensorError("wrong checksum")
    except FileNotFoundError:
        return None  # another process deleted it
    except (SafetensorError, OSError) as error:
        warnings.warn(f"deleting damaged shard {path} ({error}); its clips are missing again", stacklevel=4)
        path.unlink(missing_ok=True)
        return None
    return tensors


def _digest(*tensors: Tensor) -> str:
    """Return a hash of tensors: of shape and type of the last one, and of the values of all."""
    digest = hashlib.sha256(repr((tuple(tensors[-1].shape), str(tensors[-1].dtype))).encode())
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
