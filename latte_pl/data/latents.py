"""Latent caches: the autoencoder's posterior of every frame in memory-mapped shards, and clips read from them.

A cache is a folder with a manifest and shards. A shard is a safetensors file with one float16 tensor per video, named
by the index of the video: (F, V, 2C, h, w), the unscaled mean and log-variance of every frame in V views. View 0 is the
frame, view 1 the horizontally flipped frame. Training can therefore use any interval, and draws start, flip and
posterior sample as it does from pixels. Caches with captions also contain a tensor named INDEX.text for each video:
(n, E), the embeddings of the n tokens of its caption.
"""

import hashlib
import json
import logging
import os
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latte_pl.data.remote import RemoteShards, is_remote
from latte_pl.data.stream import ClipSampling, sampling_weights
from latte_pl.data.transforms import draw_view, span
from latte_pl.files import write_text
from latte_pl.types import Split, Text

MANIFEST = "manifest.json"
FORMAT = 2
BLOCK = 1 << 22  # bytes hashed at a time
_log = logging.getLogger(__name__)


class CachedVideo(NamedTuple):
    """An encoded video: its path relative to the root of the data set, its class, number of frames and shard."""

    path: str
    label: int
    num_frames: int
    shard: int


@dataclass
class Manifest:
    """The content of a cache.

    Attributes:
        settings: The settings that the latents depend on, by name: autoencoder, scale, size, crop, flipped (whether the
            flipped view is stored), data and the options of the data set; text (the text encoder, None without
            captions) and text_length.
        fingerprint: Hash of the encoded files.
        class_names: Names of the classes, empty if the videos have no labels.
        shape: Channels (2C), height and width of the moments of a frame.
        videos: All videos; the index of a video is the name of its tensor.
        splits: Indices of the videos of each split, in the order of the data set.
        skipped: Path and reason of each video that cannot be used.
        checksums: SHA-256 of the data of each shard; empty until all shards are written.
        captions: Caption of each video; empty without captions.
        format: Version of this format.
    """

    settings: dict[str, Any]
    fingerprint: str
    class_names: list[str]
    shape: tuple[int, int, int]
    videos: list[CachedVideo]
    splits: dict[str, list[int]]
    skipped: list[tuple[str, str]]
    checksums: list[str]
    captions: list[str] = field(default_factory=list)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a cache.

        Raises:
            FileNotFoundError: The folder contains no cache.
            ValueError: The manifest is damaged or has an unknown format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} contains no latent cache ({MANIFEST}); make one with `latte encode`")
        return cls.parse(path.read_text(encoding="utf-8"), folder)

    @classmethod
    def parse(cls, text: str, folder: Path | str) -> "Manifest":
        """Parse the text of a manifest.

        Args:
            text: The text.
            folder: The cache, for error messages.

        Raises:
            ValueError: The manifest is damaged or has an unknown format.
        """
        try:
            stored = json.loads(text)
            if stored["format"] == 1:
                stored = _from_format_1(stored)
            if stored["format"] != FORMAT:
                raise ValueError(f"it has format {stored['format']}, this version reads formats 1 to {FORMAT}")
            stored["videos"] = [CachedVideo(*video) for video in stored["videos"]]
            return cls(**stored | {"shape": tuple(stored["shape"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}/{MANIFEST} cannot be used ({error}); delete {folder} and run `latte encode` again"
            ) from error

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        write_text(folder / MANIFEST, json.dumps(asdict(self)))


def _from_format_1(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of format 1 with the names of format 2."""
    names = {"codec": "autoencoder", "mirrored": "flipped"}
    settings = {names.get(name, name): value for name, value in stored["settings"].items()}
    stored = stored | {"settings": settings, "skipped": stored["quarantine"], "format": 2}
    del stored["quarantine"]
    return stored


def check_settings(folder: Path | str, stored: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare the settings of a cache with those of this run.

    Args:
        folder: The cache.
        stored: The settings of the cache.
        settings: The settings of this run; others are not compared.

    Raises:
        ValueError: A setting differs; the message states both values.
    """
    for name, value in settings.items():
        if stored.get(name) != value:
            raise ValueError(
                f"the latents in {folder} were encoded with {name}={stored.get(name)}, but this run has {value}; "
                "change the setting, or encode into another folder"
            )


class CachedLatents:
    """Clips of posterior moments from a cache.

    It is a `VideoDataset` that returns, for the same random generator, the moments of the clip that the videos would
    return.

    Args:
        folder: The cache, made by `latte encode`, or its URL, see `latte_pl.data.remote`. The videos are not needed.
        split: "train", "val", "test" or "all".
        num_frames: Number of frames F of the clips that will be read; shorter videos are skipped.
        interval: Distance between two frames of a clip, in frames of the video.
        flip: Flip half of the training clips horizontally.
        settings: Settings that the cache must match.
        captions: Whether captions will be read.

    Raises:
        FileNotFoundError: The folder contains no cache, or the cache does not contain the split.
        ValueError: The cache is unfinished, damaged or made with other settings, or all videos are too short.
    """

    key: str = "moments"

    def __init__(
        self,
        folder: str | Path,
        split: Split = "all",
        num_frames: int = 16,
        interval: int = 3,
        flip: bool = False,
        settings: dict[str, Any] | None = None,
        captions: bool = False,
    ) -> None:
        self.folder: Path | str
        self._shards: LocalShards | RemoteShards
        if is_remote(folder):
            self.folder = str(folder)
            self._shards = remote = RemoteShards(self.folder)
            try:
                manifest = Manifest.parse(remote.text(MANIFEST), self.folder)
            except OSError as error:
                raise FileNotFoundError(f"{self.folder} contains no latent cache that can be read ({error})") from error
        else:
            self.folder = Path(folder).expanduser()
            self._shards = LocalShards(self.folder)
            manifest = Manifest.read(self.folder)
        check_settings(self.folder, manifest.settings, (settings or {}) | ({"flipped": True} if flip else {}))
        if split not in manifest.splits:
            raise FileNotFoundError(f'the latents in {self.folder} have no "{split}" split')
        if not manifest.checksums:
            raise ValueError(f"the latents in {self.folder} are unfinished; run `latte encode` again to resume")
        if captions and not manifest.captions:
            raise ValueError(
                f"the latents in {self.folder} contain no captions; encode into another folder with data.captions=true"
            )
        self._captions = manifest.captions
        self.num_frames, self.interval, self.flip = num_frames, interval, flip
        self.class_names, self._settings = manifest.class_names, manifest.settings
        self._needed = span(num_frames, interval)
        members = manifest.splits[split]
        self._indices = [index for index in members if manifest.videos[index].num_frames >= self._needed]
        self._videos = [manifest.videos[index] for index in self._indices]
        if not self._videos:
            raise ValueError(f"no video of the {split} split in {self.folder} has {self._needed} frames")
        self._checksums = manifest.checksums
        self._checked: set[int] = set()
        if not is_remote(folder):  # a request for each shard; remote ones are checked when they are used
            for shard in sorted({video.shard for video in self._videos}):
                self._check_shard(shard)
        self._report(len(members) - len(self._videos), len(manifest.skipped))

    def _check_shard(self, shard: int) -> str:
        """Return the name of a shard, after its size and the checksum in its header are checked once.

        `latte encode` checks the data as well.
        """
        name = shard_name(shard)
        if shard not in self._checked:
            try:
                found = self._shards.header(name).get("__metadata__", {}).get("sha256")
            except (OSError, ValueError, SafetensorError) as error:
                raise ValueError(
                    f"{self.folder}/{name} is missing or damaged ({error}); run `latte encode` again"
                ) from error
            if found != self._checksums[shard]:
                raise ValueError(
                    f"{self.folder}/{name} has checksum {found}, not {self._checksums[shard]}; run `latte encode` again"
                )
            self._checked.add(shard)
        return name

    def _report(self, num_short: int, num_skipped: int) -> None:
        from lightning.pytorch.utilities.rank_zero import rank_zero_only

        if num_short or num_skipped:
            rank_zero_only(_log.warning)(
                f"{self.folder}: skipped {num_short} videos that are shorter than the {self._needed} frames of a clip; "
                f"{num_skipped} videos of the data set could not be encoded (listed in {MANIFEST})"
            )

    def check(self, settings: dict[str, Any]) -> None:
        """Raise if the cache was made with other settings; see `check_settings`."""
        check_settings(self.folder, self._settings, settings)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self._videos)

    def label(self, index: int) -> int:
        """Return the class of a video; 0 if the videos have no labels."""
        return self._videos[index].label

    def caption(self, index: int) -> str:
        """Return the caption of a video."""
        return self._captions[self._indices[index]]

    def text(self, index: int) -> Text:
        """Return the embeddings (L, E) float16 and the mask (L,) of a video's caption."""
        tokens = self._shards.tokens(self._check_shard(self._videos[index].shard), f"{self._indices[index]}.text")
        embeddings, mask = Text.padded([tokens], self._settings["text_length"])
        return Text(embeddings[0], mask[0])

    def path(self, index: int) -> str:
        """Return the path of a video relative to the root of its data set."""
        return self._videos[index].path

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._videos[index].num_frames

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return the moments of a clip (F, 2C, h, w) float16; ``rng`` draws its start and its flip as for videos."""
        view = draw_view(self.length(index), num_frames, interval, self.flip, rng)
        stop = view.start + span(num_frames, interval)
        name = self._check_shard(self._videos[index].shard)
        frames = self._shards.frames(name, str(self._indices[index]), view.start, stop, int(view.flipped))
        return torch.from_numpy(frames[::interval].copy())

    def weights(self, kind: ClipSampling) -> NDArray[np.float64] | None:
        """Return the probability of each video in training; see `sampling_weights`."""
        lengths, labels = [video.num_frames for video in self._videos], [video.label for video in self._videos]
        return sampling_weights(kind, lengths, labels, bool(self.class_names), self._needed)


class LocalShards:
    """Tensors of safetensors files in a folder, mapped to memory.

    Args:
        folder: The cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def header(self, name: str) -> dict[str, Any]:
        """Return the metadata of a shard, of which the size is checked."""
        with safe_open(self.folder / name, "np") as file:
            return {"__metadata__": file.metadata() or {}}

    def frames(self, name: str, key: str, start: int, stop: int, view: int) -> NDArray[np.float16]:
        """Return the moments of consecutive frames of a video (F, 2C, h, w)."""
        with safe_open(self.folder / name, "np") as file:  # mapped to memory, not read
            return file.get_slice(key)[start:stop, view]

    def tokens(self, name: str, key: str) -> Tensor:
        """Return the embeddings of a caption (n, E)."""
        with safe_open(self.folder / name, "pt") as file:
            return file.get_tensor(key)


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:05d}.safetensors"


class ShardWriter:
    """Write a safetensors file of float16 tensors piece by piece, with its checksum in the header.

    Until `close` is called, the data is in a file beside ``path`` whose name ends in ``.part``.

    Args:
        path: The file.
        shapes: Name and shape of each tensor, in the order in which their values will be written.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64}}
        self._remaining = 0
        for name, shape in shapes.items():
            start, self._remaining = self._remaining, self._remaining + 2 * int(np.prod(shape))
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, self._remaining]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._checksum_position = 8 + text.index(b"0" * 64)
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self._part.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, values: NDArray[np.float16]) -> None:
        """Append values to the current tensor, and continue with the next when it is full."""
        data = np.ascontiguousarray(values, dtype="<f2").tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._remaining -= len(data)

    def close(self) -> None:
        """Write the checksum, flush the file to the disk and rename it to its final name."""
        assert self._remaining == 0, "values are missing"
        self._file.seek(self._checksum_position)
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)


def checksum(path: Path) -> str | None:
    """Return the checksum in the header of a shard; None if the data does not match it."""
    try:
        with safe_open(path, "np") as file:
            expected = (file.metadata() or {}).get("sha256")
        with path.open("rb") as file:
            file.seek(8 + struct.unpack("<Q", file.read(8))[0])
            digest = hashlib.sha256()
            while block := file.read(BLOCK):
                digest.update(block)
    except (OSError, SafetensorError):
        return None
    return expected if digest.hexdigest() == expected else None
