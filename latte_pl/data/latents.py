"""Latent caches: the autoencoder's posterior of every frame in memory-mapped shards, and clips read from them.

A cache is a folder with a manifest and shards, see `latte_pl.data.shards`. It holds every frame, with `flip` also its
mirror image. Training can therefore use any interval, and draws start, flip and posterior sample as from pixels.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from latte_pl.data.remote import RemoteShards, is_remote
from latte_pl.data.shards import Checked, LocalShards, shard_name
from latte_pl.data.stream import ClipSampling, sampling_weights
from latte_pl.data.transforms import draw_view, span
from latte_pl.files import write_text
from latte_pl.types import Split, Text

MANIFEST = "manifest.json"
FORMAT = 2
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
        name = self._check_shard(self._videos[index].shard)
        tokens = self._intact(name, index, self._shards.tokens(name, str(self._indices[index])))
        embeddings, mask = Text.padded([torch.from_numpy(tokens[0])], self._settings["text_length"])
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
        steps = slice(view.start, stop, interval)
        clip = self._shards.frames(name, str(self._indices[index]), steps, int(view.flipped))
        return torch.from_numpy(self._intact(name, index, clip))

    def _intact(self, name: str, index: int, found: Checked) -> NDArray[np.float16]:
        """Return values of a video.

        Raises:
            ValueError: They do not match their checksums.
        """
        if not found.is_intact():
            raise ValueError(
                f"{self.folder}/{name} is damaged: {self.path(index)} does not match its checksum; {self._shards.cure}"
            )
        return found.values

    def weights(self, kind: ClipSampling) -> NDArray[np.float64] | None:
        """Return the probability of each video in training; see `sampling_weights`."""
        lengths, labels = [video.num_frames for video in self._videos], [video.label for video in self._videos]
        return sampling_weights(kind, lengths, labels, bool(self.class_names), self._needed)
