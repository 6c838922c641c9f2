"""Latents encoded once: the codec's posterior of every frame in memory-mapped shards, and clips read from them.

A cache is a folder with a manifest and shards. A shard is a safetensors file with one fp16 tensor a video, named by its
number: (F, V, 2C, h, w), unscaled mean and log-variance of every frame in V views, as it is and mirrored. So start,
interval, mirroring and the posterior's sample are drawn while training, as they are from pixels. With captions there is
another one, named NUMBER.text: (n, E), the embeddings of the caption's n tokens.
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
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latte_pl.data.stream import Sampling, sampling_weights
from latte_pl.data.transforms import draw_view, span
from latte_pl.types import Text

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = 1 << 22  # bytes hashed at a time
_log = logging.getLogger(__name__)


class CachedVideo(NamedTuple):
    """One encoded video: its path below the root that it came from, class, frames and shard."""

    path: str
    label: int
    num_frames: int
    shard: int


@dataclass
class Manifest:
    """What a cache holds.

    Attributes:
        settings: What the latents depend on, by name: codec, scale, size, crop, mirrored, data and its options;
            text encoder and its length, None without captions.
        fingerprint: Hash of the files that were encoded.
        class_names: Names of the classes, empty when unlabelled.
        shape: Channels (2C), height and width of a frame's moments.
        videos: Every video; its number names its tensor.
        splits: Numbers of the videos of each split, in the order of the data set.
        quarantine: Path and reason of every video that cannot be used.
        checksums: SHA-256 of the data of each shard; empty until all are written.
        captions: Caption of each video; empty without captions.
        format: Version of this layout.
    """

    settings: dict[str, Any]
    fingerprint: str
    class_names: list[str]
    shape: tuple[int, int, int]
    videos: list[CachedVideo]
    splits: dict[str, list[int]]
    quarantine: list[tuple[str, str]]
    checksums: list[str]
    captions: list[str] = field(default_factory=list)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a cache.

        Raises:
            FileNotFoundError: When the folder is no cache.
            ValueError: When its manifest is damaged or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} holds no latents ({MANIFEST}); make them with `latte encode`")
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']}, this version reads {FORMAT}")
            stored["videos"] = [CachedVideo(*video) for video in stored["videos"]]
            return cls(**stored | {"shape": tuple(stored["shape"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be used ({error}); delete {folder} and run `latte encode`") from error

    def write(self, folder: Path) -> None:
        """Write the manifest, replacing the old one at once."""
        part = folder / f"{MANIFEST}.{os.getpid()}.part"
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(part, folder / MANIFEST)


def refuse_others(folder: Path, made: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare what a cache was made with and the settings of this run, as far as these say.

    Raises:
        ValueError: When one differs; both values are named.
    """
    for name, ours in settings.items():
        if made.get(name) != ours:
            raise ValueError(
                f"the latents in {folder} were encoded with {name} = {made.get(name)}, this run has {ours}; change "
                "one, or encode into another folder"
            )


class CachedLatents:
    """Clips of posterior moments (a ``VideoDataset``): for the same draws the clips that the videos would give.

    Args:
        folder: The cache, as `latte encode` writes it; the videos need not be there.
        split: "train", "val", "test" or "all".
        num_frames: Frames F of the clips that will be read; shorter videos are left out.
        interval: Distance between the frames of a clip, in frames of the video.
        flip: Mirror half of the training clips.
        settings: What the latents have to agree with.
        captions: Whether captions will be read.

    Raises:
        FileNotFoundError: When the folder holds no cache, or the cache no such split.
        ValueError: When it is unfinished, damaged or made with other settings, or no video is long enough.
    """

    key: str = "moments"

    def __init__(
        self,
        folder: str | Path,
        split: str = "all",
        num_frames: int = 16,
        interval: int = 3,
        flip: bool = False,
        settings: dict[str, Any] | None = None,
        captions: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser()
        manifest = Manifest.read(self.folder)
        refuse_others(self.folder, manifest.settings, (settings or {}) | ({"mirrored": True} if flip else {}))
        if split not in manifest.splits:
            raise FileNotFoundError(f'the latents in {self.folder} have no "{split}" split')
        if not manifest.checksums:
            raise ValueError(f"the latents in {self.folder} are unfinished; run `latte encode` again, it goes on there")
        if captions and not manifest.captions:
            raise ValueError(
                f"the latents in {self.folder} hold no captions; encode into another folder with data.captions true"
            )
        self._captions = manifest.captions
        self.num_frames, self.interval, self.flip = num_frames, interval, flip
        self.class_names, self._settings = manifest.class_names, manifest.settings
        self._needed = span(num_frames, interval)
        members = manifest.splits[split]
        self._numbers = [number for number in members if manifest.videos[number].num_frames >= self._needed]
        self._videos = [manifest.videos[number] for number in self._numbers]
        if not self._videos:
            raise ValueError(f"no video of the {split} split in {self.folder} has {self._needed} frames")
        for shard in sorted({video.shard for video in self._videos}):
            self._inspect(shard, manifest.checksums[shard])
        self._report(len(members) - len(self._videos), len(manifest.quarantine))

    def _inspect(self, shard: int, checksum: str) -> None:
        """Check that a shard is whole and the one that the manifest means; `latte encode` compares every byte."""
        path = self.folder / shard_name(shard)
        try:
            with safe_open(path, "np") as file:
                found = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is missing or damaged ({error}); `latte encode` makes it again") from error
        if found != checksum:
            raise ValueError(f"{path} has checksum {found}, not {checksum}; run `latte encode` again")

    @rank_zero_only
    def _report(self, num_short: int, num_unusable: int) -> None:
        if num_short or num_unusable:
            _log.warning(
                "%s: %d encoded videos are shorter than the %d frames of a clip, %d of the data set could not be "
                "encoded (listed in %s)",
                *(self.folder, num_short, self._needed, num_unusable, MANIFEST),
            )

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse settings that the latents were not made with; see `refuse_others`."""
        refuse_others(self.folder, self._settings, settings)

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self._videos)

    def label(self, index: int) -> int:
        """Return the class of a video, 0 when unlabelled."""
        return self._videos[index].label

    def caption(self, index: int) -> str:
        """Return the caption of a video."""
        return self._captions[self._numbers[index]]

    def text(self, index: int) -> Text:
        """Return the embeddings (L, E) float16 and the mask (L,) of a video's caption."""
        with safe_open(self.folder / shard_name(self._videos[index].shard), "pt") as file:
            tokens = file.get_tensor(f"{self._numbers[index]}.text")
        embeddings, mask = Text.padded([tokens], self._settings["text_length"])
        return Text(embeddings[0], mask[0])

    def path(self, index: int) -> str:
        """Return the path of a video below the root of its data set."""
        return self._videos[index].path

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._videos[index].num_frames

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> Tensor:
        """Return the moments of a clip (F, 2C, h, w) float16; start and view are drawn as `VideoFolder` does."""
        view = draw_view(self.length(index), num_frames, interval, self.flip, rng)
        stop = view.start + span(num_frames, interval)
        with safe_open(self.folder / shard_name(self._videos[index].shard), "np") as file:  # maps, does not read
            frames = file.get_slice(str(self._numbers[index]))[view.start : stop, int(view.mirrored)]
        return torch.from_numpy(frames[::interval].copy())

    def weights(self, kind: Sampling) -> NDArray[np.float64] | None:
        """Return the probability of each video in training; see `sampling_weights`."""
        lengths, labels = [video.num_frames for video in self._videos], [video.label for video in self._videos]
        return sampling_weights(kind, lengths, labels, bool(self.class_names), self._needed)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


class ShardWriter:
    """Writes a safetensors file of fp16 tensors piece by piece, its checksum in the header; a whole file or none.

    Args:
        path: The file; until `close` the bytes are in a neighbour ending in ``.part``.
        shapes: Shape of each tensor by name, in the order in which their bytes will come.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self._path, self._part = path, path.with_name(f"{path.name}.part")
        header: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64}}
        self._left = 0
        for name, shape in shapes.items():
            start, self._left = self._left, self._left + 2 * int(np.prod(shape))
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, self._left]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._place = 8 + text.index(b"0" * 64)
        self._digest = hashlib.sha256()
        self._file: BinaryIO = self._part.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, values: NDArray[np.float16]) -> None:
        """Append values of the tensor whose turn it is."""
        data = np.ascontiguousarray(values, dtype="<f2").tobytes()
        self._digest.update(data)
        self._file.write(data)
        self._left -= len(data)

    def close(self) -> None:
        """Write the checksum, flush to the disk and give the file its name."""
        assert self._left == 0, "every tensor has its bytes"
        self._file.seek(self._place)
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)


def checksum(path: Path) -> str | None:
    """Return the checksum in the header of a shard, None when the shard's data are not those that it was made of."""
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
