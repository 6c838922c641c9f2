"""A latent cache at a URL is read as the folder is, from a bounded copy."""

import multiprocessing
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fake_videos import write_xvid

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents, Manifest
from latte_pl.data.remote import FOLDER, GIGABYTES, RemoteShards
from latte_pl.data.shards import shard_name

SIZE = (16, 24)
VIDEO = 12 * 2 * (6 * 16 * 24 * 2 + 4)  # bytes of a video with its checksums


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of five videos of 12 frames in three shards."""
    place = tmp_path_factory.mktemp("remote")
    for number in range(5):
        write_xvid(place / f"videos/{number}.avi", 12)
    encode(VideoFolder(place / "videos", SIZE, 1, 1), PixelAutoencoder(), place / "cache", {}, True,
           torch.device("cpu"), shard_frames=24)  # fmt: skip
    return place / "cache"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def url(folder: Path, request: pytest.FixtureRequest) -> str:
    """The cache in the memory of this process."""
    files = fsspec.filesystem("memory")
    name = f"memory://{request.node.name.partition('[')[0]}"
    files.put(str(folder), name, recursive=True)
    return name


def clip(cache: CachedLatents, index: int) -> torch.Tensor:
    return cache.read(index, 4, 2, np.random.default_rng(index))


def sizes(copies: Path) -> list[int]:
    return [path.stat().st_size for path in copies.rglob("*") if path.is_file()]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_clips_equal_those_of_the_folder(scheme: str, url: str, folder: Path, copies: Path) -> None:
    local = CachedLatents(folder, "all", 4, 2, flip=True)
    remote = CachedLatents(url if scheme == "memory" else f"file://{folder}", "all", 4, 2, flip=True)
    assert sizes(copies) == []
    for _ in range(2):  # the second time from the copy
        for index in range(5):
            assert torch.equal(clip(remote, index), clip(local, index))
    assert sizes(copies) == [VIDEO] * 5


def test_copy_is_used_without_another_request(url: str, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CachedLatents(url, "all", 4, 2)
    before = [clip(cache, index) for index in range(5)]
    monkeypatch.setattr(RemoteShards, "_bytes", lambda *args: pytest.fail("a request"))
    assert all(torch.equal(clip(cache, index), clip_before) for index, clip_before in enumerate(before))


def test_copy_is_bounded_and_keeps_what_was_used_last(
    url: str, folder: Path, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GIGABYTES, str(2.5 * VIDEO / 1e9))
    cache, local = CachedLatents(url, "all", 4, 2), CachedLatents(folder, "all", 4, 2)
    for index in (0, 1, 0, 2, 3, 4, 0):
        assert torch.equal(clip(cache, index), clip(local, index))
        assert sum(sizes(copies)) <= 2.5 * VIDEO
    names = {path.name.partition("-")[2] for path in copies.rglob("*") if path.is_file()}
    assert names == {"4", "0"}


def test_copy_too_small_for_a_video_is_no_error(url: str, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIGABYTES, "0")
    assert clip(CachedLatents(url, "all", 4, 2), 3).shape == (4, 6, 16, 24)


def _read(url: str, queue: multiprocessing.SimpleQueue) -> None:
    cache = CachedLatents(url, "all", 4, 2)
    queue.put(sum(float(clip(cache, index).sum()) for index in range(5)))


def test_processes_share_the_copy(folder: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIGABYTES, str(2.5 * VIDEO / 1e9))
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    processes = [fork.Process(target=_read, args=(f"file://{folder}", queue)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len({queue.get() for _ in processes}) == 1


def test_damaged_copy_is_refused(url: str, copies: Path) -> None:
    cache = CachedLatents(url, "all", 4, 2)
    clip(cache, 2)
    (path,) = (path for path in copies.rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[: VIDEO - 96] = bytes(byte ^ 1 for byte in data[: VIDEO - 96])  # all but the checksums
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"2.avi does not match its checksum; delete {copies}.*, its copy"):
        clip(CachedLatents(url, "all", 4, 2), 2)


def test_incomplete_or_other_caches_are_refused(folder: Path, tmp_path: Path, copies: Path) -> None:
    with pytest.raises(FileNotFoundError, match="memory://nothing contains no latent cache"):
        CachedLatents("memory://nothing")
    with pytest.raises(ValueError, match="nosuch://cache cannot be opened"):
        CachedLatents("nosuch://cache")
    place = tmp_path / "damaged"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    shard = place / shard_name(1)
    shard.write_bytes(shard.read_bytes()[:-100])
    cache = CachedLatents(f"file://{place}", "all", 4, 2)
    clip(cache, 0)
    with pytest.raises(OSError, match="the cache is incomplete"):
        clip(cache, 3)
    (place / shard_name(2)).write_bytes((place / shard_name(0)).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors has checksum .*, not "):
        clip(cache, 4)
    manifest = Manifest.read(folder)
    manifest.checksums = []
    manifest.write(place)
    with pytest.raises(ValueError, match="are unfinished"):
        CachedLatents(f"file://{place}")


def test_size_that_is_no_number_is_refused(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIGABYTES, "many")
    with pytest.raises(ValueError, match=f"{GIGABYTES} is 'many'; it must be a number"):
        RemoteShards("memory://cache")
