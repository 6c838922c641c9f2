"""Features of numbered clips in shards on disk: written once, checked when read, resumed after a kill."""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latte_pl.metrics.record import differing, write_atomically


class FeatureStore:
    """A folder of shards that together hold the features of clips 0 to ``num_clips`` - 1.

    Every shard is written under a temporary name and then renamed, and carries a checksum: a killed writer leaves
    nothing that counts, and a damaged shard is dropped with a warning, so that its clips are computed again. Several
    processes may write to one folder at once.

    Args:
        folder: made if missing.
        about: what the features depend on; a folder that was begun with other values is refused.
        num_clips: how many clips make the store complete.

    Raises:
        ValueError: the folder holds features of something else; the difference is named.
    """

    def __init__(self, folder: Path | str, about: dict[str, Any], num_clips: int) -> None:
        self.folder = Path(folder)
        self.num_clips = num_clips
        self._rows: dict[int, Tensor] = {}
        self._read: set[str] = set()
        about = json.loads(json.dumps(about))  # as it comes back from the file
        label = self.folder / "protocol.json"
        if label.is_file():
            try:
                found = json.loads(label.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise ValueError(f"{label} is damaged; delete the folder {self.folder}") from error
            if found != about:
                raise ValueError(
                    f"{self.folder} holds features of another protocol ({differing(found, about)}); "
                    "use another folder or delete this one"
                )
        else:
            if self.folder.is_dir() and any(self.folder.glob("shard-*")):
                raise ValueError(f"{self.folder} has shards but no protocol.json, so nobody knows of what; delete it")
            write_atomically(label, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the numbers of the clips that are still missing.

        Args:
            rank, world_size: only numbers that are ``rank`` modulo ``world_size``, so that processes which look at
                different moments still never take the same clip.
        """
        self._load()
        return [n for n in range(rank, self.num_clips, world_size) if n not in self._rows]

    def add(self, indices: Sequence[int], features: Tensor) -> None:
        """Store the features (B, k, D) of clips with these numbers as one shard.

        Raises:
            ValueError: the numbers don't fit the features or the store.
        """
        numbers = [int(n) for n in indices]
        if len(numbers) != len(features) or features.ndim != 3 or len(set(numbers)) != len(numbers):
            raise ValueError(f"{len(numbers)} clip numbers for features {tuple(features.shape)}; one each, none twice")
        if not numbers:
            return
        if min(numbers) < 0 or max(numbers) >= self.num_clips:
            raise ValueError(f"clips {min(numbers)} to {max(numbers)} are outside of 0 to {self.num_clips - 1}")
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinity; look for it in the clips or the extractor")
        tensors = {"indices": torch.tensor(numbers), "features": features.detach().cpu().float().contiguous()}
        digest = _digest(tensors["indices"], tensors["features"])
        name = f"shard-{min(numbers):08d}-{digest[:16]}.safetensors"
        temporary = self.folder / f".{name}.{os.getpid()}"
        save_file(tensors, temporary, {"sha256": digest})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / name)

    def features(self) -> np.ndarray:
        """Return the features (num_clips, k, D) float32 in the order of the clips' numbers.

        Raises:
            ValueError: clips are missing, or shards don't fit together.
        """
        if missing := self.pending():
            raise ValueError(f"{self.folder} lacks {len(missing)} of {self.num_clips} clips, the first is {missing[0]}")
        rows = [self._rows[n] for n in range(self.num_clips)]
        if len({row.shape for row in rows}) > 1:
            raise ValueError(f"{self.folder} mixes features of different shapes; delete it and start again")
        return torch.stack(rows).numpy()

    def _load(self) -> None:
        """Read the shards that have come since the last time."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name in self._read:
                continue
            try:
                with safe_open(path, "pt") as file:
                    # cloned: the tensors are views of the file, which may change or go away
                    indices, features = file.get_tensor("indices").clone(), file.get_tensor("features").clone()
                    stated = (file.metadata() or {}).get("sha256")
                if stated != _digest(indices, features):
                    raise SafetensorError("wrong checksum")
            except FileNotFoundError:
                continue  # another process has dropped it
            except (SafetensorError, OSError) as error:
                warnings.warn(f"dropping damaged shard {path} ({error}); its clips are computed again", stacklevel=3)
                path.unlink(missing_ok=True)
                continue
            self._read.add(path.name)
            for n, row in zip(indices.tolist(), features):
                self._rows.setdefault(n, row)  # the first shard by name counts, whoever reads


def _digest(indices: Tensor, features: Tensor) -> str:
    digest = hashlib.sha256(repr((tuple(features.shape), str(features.dtype))).encode())
    digest.update(indices.numpy().tobytes())
    digest.update(features.numpy().tobytes())
    return digest.hexdigest()
