"""Writes the latent cache that `CachedLatents` reads; any number of processes may work on one cache."""

import fcntl
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from latte_pl.data.drawn import DrawnVideos
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedVideo, Manifest, ShardWriter, checksum, refuse_others, shard_name
from latte_pl.data.transforms import mirror

SHARD_FRAMES = 4096  # frames after which a shard is full: what a kill costs, and 64 MB a view at 4 x 32 x 32 latents
CHUNK = 128  # frames read and encoded at a time
_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """The part of a codec that a cache needs."""

    scale: float
    factor: int
    channels: int

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, unscaled (B, F, C, h, w), of uint8 pixels (B, F, 3, H, W)."""

    def fingerprint(self) -> str:
        """Return a name that changes with the weights."""


class CaptionEncoder(Protocol):
    """The part of a text encoder that a cache needs."""

    length: int

    def tokens(self, caption: str) -> Tensor:
        """Return the embeddings (n, E) of a caption's tokens, n at most ``length``."""

    def fingerprint(self) -> str:
        """Return a name that changes with the weights."""


def encode(
    dataset: VideoFolder | DrawnVideos,
    encoder: Encoder,
    folder: Path,
    settings: dict[str, Any],
    mirrored: bool,
    device: torch.device,
    shard_frames: int = SHARD_FRAMES,
    text: CaptionEncoder | None = None,
) -> Manifest:
    """Encode every frame of a data set into a cache, or go on with one.

    Shards that are there are compared with their checksums and encoded again if they differ. A process takes a shard
    through a lock that the kernel gives back when the process dies, so no file has two writers, and none stays locked.

    Args:
        dataset: Every split of the data set, opened for clips of one frame.
        encoder: The codec, on ``device``.
        folder: The cache.
        settings: What the latents depend on besides codec and views.
        mirrored: Encode the mirrored view too.
        device: Where the frames are encoded.
        shard_frames: Frames after which a shard is full.
        text: The encoder of the captions, where they are encoded too.

    Returns:
        The manifest; without checksums when other processes are still at work.

    Raises:
        ValueError: When the folder holds a cache of other settings or files; both values are named.
    """
    told = {"text": text.fingerprint(), "text_length": text.length} if text else {"text": None}
    plan = _plan(dataset, encoder, settings | {"mirrored": mirrored} | told, shard_frames)
    if text:
        plan.captions = [dataset.caption(index) for index in range(len(dataset))]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        manifest = Manifest.read(folder)
        refuse_others(folder, manifest.settings, plan.settings)
        if manifest.fingerprint != plan.fingerprint:
            raise ValueError(
                f"the latents in {folder} are of files with fingerprint {manifest.fingerprint[:12]}, {dataset.root} "
                f"now has {plan.fingerprint[:12]}; delete that folder or encode into another"
            )
        plan = manifest
    except FileNotFoundError:
        plan.write(folder)
    members: dict[int, list[int]] = {}
    for number, video in enumerate(plan.videos):
        members.setdefault(video.shard, []).append(number)
    total = sum(video.num_frames for video in plan.videos)
    with (folder / ".lock").open("ab") as locks, tqdm(desc="encoding", total=total, unit="frame") as bar:
        for shard, numbers in members.items():
            path = folder / shard_name(shard)
            if not _take(locks.fileno(), shard):  # another process is at it
                bar.total = (bar.total or 0) - sum(plan.videos[n].num_frames for n in numbers)
                continue
            whole = checksum(path) if path.exists() else None
            if whole is None:
                if path.exists():
                    _log.warning("%s is damaged and is encoded again", path)
                _write(path, plan, numbers, dataset, encoder, text, device, bar)
            else:
                bar.update(sum(plan.videos[n].num_frames for n in numbers))
            fcntl.lockf(locks.fileno(), fcntl.LOCK_UN, 1, shard)
    if all((folder / shard_name(shard)).exists() for shard in members):
        plan.checksums = [_stated(folder / shard_name(shard)) for shard in members]
        plan.write(folder)
    return plan


def _plan(
    dataset: VideoFolder | DrawnVideos, encoder: Encoder, settings: dict[str, Any], shard_frames: int
) -> Manifest:
    """Lay out a cache: which video goes into which shard, and which belongs to which split."""
    videos: list[CachedVideo] = []
    shard = filled = 0
    for index in range(len(dataset)):
        if filled >= shard_frames:
            shard, filled = shard + 1, 0
        length = dataset.length(index)
        videos.append(CachedVideo(dataset.path(index), dataset.label(index), length, shard))
        filled += length
    splits = {"all": list(range(len(dataset)))}
    for split in ("train", "val", "test"):
        try:
            splits[split] = dataset.members(split)
        except FileNotFoundError:  # the data set has no such split
            continue
    height, width = dataset.size
    if height % encoder.factor or width % encoder.factor:
        raise ValueError(f"data.size {[height, width]} is not a multiple of {encoder.factor}, the codec's cell")
    return Manifest(
        settings={"scale": encoder.scale, "codec": encoder.fingerprint()} | settings,
        fingerprint=dataset.fingerprint(),
        class_names=dataset.class_names,
        shape=(2 * encoder.channels, height // encoder.factor, width // encoder.factor),
        videos=videos,
        splits=splits,
        quarantine=dataset.quarantine,
        checksums=[],
    )


def _take(locks: int, shard: int) -> bool:
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)  # byte n of the lock file stands for shard n
    except OSError:
        return False
    return True


def _write(
    path: Path,
    plan: Manifest,
    numbers: list[int],
    dataset: VideoFolder | DrawnVideos,
    encoder: Encoder,
    text: CaptionEncoder | None,
    device: torch.device,
    bar: tqdm,
) -> None:
    views = 2 if plan.settings["mirrored"] else 1
    tokens = {n: _half(text.tokens(plan.captions[n]), plan.videos[n].path) for n in numbers} if text else {}
    shapes: dict[str, tuple[int, ...]] = {}
    for number in numbers:
        shapes[str(number)] = (plan.videos[number].num_frames, views, *plan.shape)
        shapes |= {f"{number}.text": tuple(tokens[number].shape)} if text else {}
    writer = ShardWriter(path, shapes)
    for number in numbers:
        length = plan.videos[number].num_frames
        for start in range(0, length, CHUNK):
            frames = dataset.frames(number, start, min(CHUNK, length - start)).to(device)
            both = torch.stack([frames, mirror(frames)][:views])
            moments = torch.cat(encoder.moments(both), dim=2).transpose(0, 1)  # (F, V, 2C, h, w)
            writer.write(_half(moments, plan.videos[number].path).numpy())
            bar.update(len(frames))
        if text:
            writer.write(tokens[number].numpy())
    writer.close()


def _half(values: Tensor, path: str) -> Tensor:
    """Return what is stored of a video, in half precision on the CPU."""
    half = values.half().cpu()
    if not half.isfinite().all():
        raise ValueError(f"latents of {path} leave the range of float16 and cannot be cached")
    return half


def _stated(path: Path) -> str:
    with safe_open(path, "np") as file:
        return file.metadata()["sha256"]


def size_on_disk(folder: Path) -> int:
    """Return the bytes of a cache."""
    return sum(os.path.getsize(path) for path in folder.glob("shard-*.safetensors"))
