"""Encode a data set into the latent cache that `CachedLatents` reads; several processes may share the work."""

import fcntl
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from latte_pl.data.latents import CachedVideo, Manifest, check_settings
from latte_pl.data.shards import ShardWriter, checksum, crc32, shard_name
from latte_pl.types import Split

SHARD_FRAMES = 4096  # frames of a full shard: the work that is lost when a process is killed; 64 MB per view at 4x32x32
CHUNK = 128  # frames that are read and encoded at once
_log = logging.getLogger(__name__)


class EncodableVideos(Protocol):
    """What a data set must implement to be encoded. It contains the videos of all splits."""

    class_names: list[str]
    """Names of the classes, empty if the videos have no labels."""
    size: tuple[int, int]
    """Height and width of the frames in pixels."""
    skipped: list[tuple[str, str]]
    """Path and reason of each video that cannot be used."""

    def __len__(self) -> int:
        """Return the number of videos."""

    def label(self, index: int) -> int:
        """Return the class of a video; 0 if the videos have no labels."""

    def caption(self, index: int) -> str:
        """Return the caption of a video; only called if captions are encoded."""

    def path(self, index: int) -> str:
        """Return the path of a video, or another name for it."""

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""

    def frames(self, index: int, start: int, num_frames: int) -> Tensor:
        """Return consecutive frames (F, 3, H, W) uint8 of a video, not flipped."""

    def members(self, split: Split) -> Sequence[int]:
        """Return the indices of the videos of a split.

        Raises:
            FileNotFoundError: There is no such split.
        """

    def fingerprint(self) -> str:
        """Return a hash of what the videos show, in their order."""


class Encoder(Protocol):
    """The members of an autoencoder that encoding uses."""

    scale: float
    factor: int
    channels: int

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unscaled mean and log-variance (B, F, C, h, w) of uint8 pixels (B, F, 3, H, W)."""

    def fingerprint(self) -> str:
        """Return a name that changes with the weights."""


class CaptionEncoder(Protocol):
    """The members of a text encoder that encoding uses."""

    length: int

    def tokens(self, caption: str) -> Tensor:
        """Return the embeddings (n, E) of the tokens of a caption, with n at most ``length``."""

    def fingerprint(self) -> str:
        """Return a name that changes with the weights."""


def encode(
    dataset: EncodableVideos,
    encoder: Encoder,
    folder: Path,
    settings: dict[str, Any],
    flipped: bool,
    device: torch.device,
    shard_frames: int = SHARD_FRAMES,
    text: CaptionEncoder | None = None,
    share: tuple[int, int] = (0, 1),
) -> Manifest:
    """Encode every frame of a data set into a cache, or resume an unfinished cache.

    Each process first works on its own share of the shards: it compares those that exist with their checksums, encodes
    damaged ones again, and encodes missing ones. Then it helps with what others have not begun. Each process locks the
    shard that it writes. The kernel releases the lock when the process dies, so a shard never has two writers and no
    lock is left behind.

    Args:
        dataset: The videos of all splits, including those that are too short for a clip.
        encoder: The autoencoder, on ``device``.
        folder: The cache.
        settings: Settings that the latents depend on, in addition to those of the encoders.
        flipped: Also encode the horizontally flipped frames.
        device: Device on which frames are encoded.
        shard_frames: Number of frames of a full shard.
        text: Text encoder of the captions; None encodes no captions.
        share: Index n and number N of this process: its own shards are n, n + N, ...

    Returns:
        The manifest. It has no checksums if other processes are still encoding.

    Raises:
        ValueError: The folder contains a cache with other settings or of other videos; the message states both values.
    """
    about_text = {"text": text.fingerprint(), "text_length": text.length} if text else {"text": None}
    plan = _plan(dataset, encoder, settings | {"flipped": flipped} | about_text, shard_frames)
    if text:
        plan.captions = [dataset.caption(index) for index in range(len(dataset))]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        manifest = Manifest.read(folder)
        check_settings(folder, manifest.settings, plan.settings)
        if manifest.fingerprint != plan.fingerprint:
            raise ValueError(
                f"the latents in {folder} were encoded from videos with fingerprint {manifest.fingerprint[:12]}, but "
                f"the videos now have {plan.fingerprint[:12]}; delete that folder, or encode into another"
            )
        plan = manifest
    except FileNotFoundError:
        plan.write(folder)
    members: dict[int, list[int]] = {}
    for index, video in enumerate(plan.videos):
        members.setdefault(video.shard, []).append(index)
    own = {shard for shard in members if shard % share[1] == share[0]}
    total = sum(video.num_frames for video in plan.videos)
    with (folder / ".lock").open("ab") as locks, tqdm(desc="encoding", total=total, unit="frame") as bar:
        for shard in sorted(members, key=lambda shard: (shard not in own, shard)):
            path, indices = folder / shard_name(shard), members[shard]
            count = sum(plan.videos[n].num_frames for n in indices)
            if not _lock(locks.fileno(), shard):  # another process writes it
                bar.total = (bar.total or 0) - count
                continue
            if path.exists() and (shard not in own or checksum(path) is not None):
                bar.total = (bar.total or 0) - count  # not part of the rate
            else:
                if path.exists():
                    _log.warning("%s is damaged and is encoded again", path)
                _write(path, plan, indices, dataset, encoder, text, device, bar)
            fcntl.lockf(locks.fileno(), fcntl.LOCK_UN, 1, shard)
    if all((folder / shard_name(shard)).exists() for shard in members):
        plan.checksums = [_stored_checksum(folder / shard_name(shard)) for shard in members]
        plan.write(folder)
    return plan


def _plan(dataset: EncodableVideos, encoder: Encoder, settings: dict[str, Any], shard_frames: int) -> Manifest:
    """Assign every video to a shard and to its splits."""
    videos: list[CachedVideo] = []
    shard = filled = 0
    for index in range(len(dataset)):
        if filled >= shard_frames:
            shard, filled = shard + 1, 0
        length = dataset.length(index)
        videos.append(CachedVideo(dataset.path(index), dataset.label(index), length, shard))
        filled += length
    splits = {"all": list(range(len(dataset)))}
    names: tuple[Split, ...] = ("train", "val", "test")
    for split in names:
        try:
            splits[split] = list(dataset.members(split))
        except FileNotFoundError:  # the data set has no such split
            continue
    height, width = dataset.size
    if height % encoder.factor or width % encoder.factor:
        raise ValueError(
            f"data.size is {[height, width]}; both must be multiples of {encoder.factor}, the autoencoder's "
            "downsampling factor"
        )
    return Manifest(
        settings={"scale": encoder.scale, "autoencoder": encoder.fingerprint()} | settings,
        fingerprint=dataset.fingerprint(),
        class_names=dataset.class_names,
        shape=(2 * encoder.channels, height // encoder.factor, width // encoder.factor),
        videos=videos,
        splits=splits,
        skipped=dataset.skipped,
        checksums=[],
    )


def _lock(locks: int, shard: int) -> bool:
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)  # shard n locks byte n of the file
    except OSError:
        return False
    return True


def _write(
    path: Path,
    plan: Manifest,
    indices: list[int],
    dataset: EncodableVideos,
    encoder: Encoder,
    text: CaptionEncoder | None,
    device: torch.device,
    bar: tqdm,
) -> None:
    views = 2 if plan.settings["flipped"] else 1
    tokens = {n: _half(text.tokens(plan.captions[n]), plan.videos[n].path) for n in indices} if text else {}
    shapes: dict[str, tuple[int, ...]] = {}
    for index in indices:
        shapes[str(index)] = (plan.videos[index].num_frames, views, *plan.shape)
        shapes |= {f"{index}.text": tuple(tokens[index].shape)} if text else {}
        shapes[f"{index}.crc32"] = (views * plan.videos[index].num_frames + (text is not None),)
    writer = ShardWriter(path, shapes)
    for index in indices:
        length, sums = plan.videos[index].num_frames, []
        for start in range(0, length, CHUNK):
            frames = dataset.frames(index, start, min(CHUNK, length - start)).to(device)
            both = torch.stack([frames, frames.flip(-1)][:views])
            moments = torch.cat(encoder.moments(both), dim=2).transpose(0, 1)  # (F, V, 2C, h, w)
            half = _half(moments, plan.videos[index].path).numpy()
            writer.write(half)
            sums += crc32(half.reshape(-1, *plan.shape))
            bar.update(len(frames))
        if text:
            writer.write(tokens[index].numpy())
            sums += crc32(tokens[index].numpy()[None])
        writer.write(np.array(sums, "<u4"))
    writer.close()


def _half(values: Tensor, path: str) -> Tensor:
    """Convert values to float16 on the CPU."""
    half = values.half().cpu()
    if not half.isfinite().all():
        raise ValueError(f"the latents of {path} exceed the range of float16 and cannot be cached")
    return half


def _stored_checksum(path: Path) -> str:
    with safe_open(path, "np") as file:
        return file.metadata()["sha256"]


def size_on_disk(folder: Path) -> int:
    """Return the size of a cache in bytes."""
    return sum(os.path.getsize(path) for path in folder.glob("shard-*.safetensors"))


def written_frames(folder: Path, manifest: Manifest) -> int:
    """Return about how many frames of a cache are written, by the size of its files."""
    parts = [*folder.glob("shard-*.safetensors"), *folder.glob("shard-*.safetensors.part")]
    sizes = [_size(path) for path in parts]
    views = 2 if manifest.settings["flipped"] else 1
    frames = sum(sizes) // (2 * views * math.prod(manifest.shape))  # float16
    return min(frames, sum(video.num_frames for video in manifest.videos))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # renamed since
        return 0
