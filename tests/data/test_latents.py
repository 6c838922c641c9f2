import json
import logging
import multiprocessing
import time
from pathlib import Path

import fake_videos
import numpy as np
import pytest
import torch
from fake_videos import write_frames, write_video, write_xvid
from safetensors.torch import load_file

from latte_pl.codecs import KLCodec, PixelCodec
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents, Manifest, ShardWriter, checksum, shard_name
from latte_pl.data.stream import ClipStream
from latte_pl.data.transforms import draw_view, mirror

CPU = torch.device("cpu")
SIZE = (16, 24)
SETTINGS = {"size": list(SIZE), "crop": "centre", "data": "Folder", "holdout": 0.1}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with a test split; files and frames; one video shorter than a clip."""
    root = tmp_path_factory.mktemp("videos")
    write_xvid(root / "train/run/a.avi", 36, seed=1)
    write_video(root / "train/run/b.mp4", 24, codec="libx264", b_frames=2, seed=2)
    write_frames(root / "train/jump/c", 30, "{}.png", seed=3)
    write_xvid(root / "train/jump/d.avi", 7, seed=4)
    write_xvid(root / "test/run/e.avi", 12, seed=5)
    return root


def opened(videos: Path, split: str = "all", num_frames: int = 1, interval: int = 1, flip: bool = True) -> VideoFolder:
    return VideoFolder(videos, SIZE, num_frames, interval, split=split, flip=flip)


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    return KLCodec()


@pytest.fixture(scope="module")
def cache(videos: Path, codec: KLCodec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    manifest = encode(opened(videos), codec, folder, SETTINGS, True, CPU, shard_frames=30)
    assert len(manifest.checksums) == 3, "several shards"
    return folder


@pytest.mark.parametrize("split", ["train", "val", "all"])
@pytest.mark.parametrize("num_images", [0, 2])
def test_batches_are_those_of_the_videos(
    split: str, num_images: int, videos: Path, cache: Path, codec: KLCodec
) -> None:
    pixels = ClipStream(opened(videos, split, 4, 3), 4, 3, 7, num_images)
    latents = ClipStream(CachedLatents(cache, split, 4, 3, flip=True, settings=SETTINGS), 4, 3, 7, num_images)
    for number in range(12):
        one, other = pixels[number], latents[number]
        assert one.keys() ^ other.keys() == {"video", "moments"}
        assert torch.equal(one["label"], other["label"])
        assert one["clip"] == other["clip"]
        expected = torch.cat(codec.moments(one["video"][None]), dim=2)[0]
        assert other["moments"].dtype == torch.float16
        torch.testing.assert_close(other["moments"].float(), expected, rtol=2**-10, atol=1e-4)


def test_evaluation_clips_are_those_of_the_videos(videos: Path, cache: Path, codec: KLCodec) -> None:
    pixels, latents = opened(videos, "train", 4, 3), CachedLatents(cache, "train", 4, 3, flip=True)
    for index in range(len(pixels)):
        expected = torch.cat(codec.moments(pixels.read(index, 4, 3, None)[None]), dim=2)[0]
        torch.testing.assert_close(latents.read(index, 4, 3, None).float(), expected, rtol=2**-10, atol=1e-4)


def test_the_mirrored_view_is_encoded_not_the_mirrored_latent(videos: Path, cache: Path, codec: KLCodec) -> None:
    pixels, latents = opened(videos, "train", 4, 3), CachedLatents(cache, "train", 4, 3, flip=True)
    views = [(seed, draw_view(pixels.length(0), 4, 3, True, np.random.default_rng(seed))) for seed in range(9)]
    seed, view = next((seed, view) for seed, view in views if view.mirrored)
    window = pixels.frames(0, view.start, 4, 3)
    plain, mirrored = (torch.cat(codec.moments(clip[None]), dim=2)[0] for clip in (window, mirror(window)))
    assert (plain.flip(-1) - mirrored).abs().max() > 1e-2, "this codec tells them apart"
    clip = latents.read(0, 4, 3, np.random.default_rng(seed)).float()
    torch.testing.assert_close(clip, mirrored, rtol=2**-10, atol=1e-4)


def test_lengths_labels_classes_and_weights_are_those_of_the_videos(videos: Path, cache: Path) -> None:
    for split in ("train", "val", "all"):
        pixels, latents = opened(videos, split, 4, 3), CachedLatents(cache, split, 4, 3)
        assert latents.class_names == pixels.class_names == ["jump", "run"]
        for name in ("path", "length", "label"):
            assert [getattr(latents, name)(i) for i in range(len(latents))] == [
                getattr(pixels, name)(i) for i in range(len(pixels))
            ]
        for kind in ("clips", "classes"):
            assert latents.weights(kind) == pytest.approx(pixels.weights(kind))
        assert latents.weights("videos") is None


def test_short_videos_are_left_out_and_counted(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(CachedLatents(cache, "train", 4, 1)) == 4
    assert not caplog.records
    assert len(CachedLatents(cache, "train", 4, 3)) == 3
    assert "1 encoded videos are shorter than the 10 frames of a clip" in caplog.text
    with pytest.raises(ValueError, match=r"no video of the val split in .* has 46 frames"):
        CachedLatents(cache, "val", 16, 3)


def test_shards_are_plain_safetensors_in_half_precision(cache: Path, codec: KLCodec) -> None:
    manifest = Manifest.read(cache)
    tensors = {name: t for path in cache.glob("shard-*") for name, t in load_file(path).items()}
    assert sorted(map(int, tensors)) == list(range(5))
    for number, video in enumerate(manifest.videos):
        assert tensors[str(number)].shape == (video.num_frames, 2, 2 * codec.channels, 2, 3)
        assert tensors[str(number)].dtype == torch.float16


def test_a_cache_of_one_view_is_half_as_large(videos: Path, cache: Path, codec: KLCodec, tmp_path: Path) -> None:
    encode(opened(videos), codec, tmp_path, SETTINGS, False, CPU, shard_frames=30)
    half, whole = (sum(p.stat().st_size for p in folder.glob("shard-*")) for folder in (tmp_path, cache))
    assert half == pytest.approx(whole / 2, rel=0.05)
    plain, both = (CachedLatents(folder, "all", 4, 3).read(1, 4, 3, None) for folder in (tmp_path, cache))
    assert torch.equal(plain, both)
    with pytest.raises(ValueError, match="were encoded with mirrored = False, this run has True"):
        CachedLatents(tmp_path, "all", 4, 3, flip=True)


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("size", [32, 32], r"size = \[16, 24\], this run has \[32, 32\]"),
        ("crop", "random", "crop = centre, this run has random"),
        ("data", "UCF101", "data = Folder, this run has UCF101"),
        ("holdout", 0.5, r"holdout = 0\.1, this run has 0\.5"),
    ],
)
def test_other_settings_are_refused_with_both_values(name: str, value: object, seen: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=f"the latents in {cache} were encoded with {seen}"):
        CachedLatents(cache, settings=SETTINGS | {name: value})


def test_another_codec_or_scale_is_refused_with_both_values(videos: Path, cache: Path, codec: KLCodec) -> None:
    other = PixelCodec()
    with pytest.raises(ValueError, match=f"codec = {codec.fingerprint()}, this run has {other.fingerprint()}"):
        CachedLatents(cache, "all", 4, 3).check({"codec": other.fingerprint()})
    rescaled = KLCodec()
    rescaled.scale = 2.0
    with pytest.raises(ValueError, match=rf"scale = {codec.scale}, this run has 2\.0"):
        encode(opened(videos), rescaled, cache, SETTINGS, True, CPU, shard_frames=30)


def test_changed_files_are_refused(videos: Path, codec: KLCodec, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write_xvid(root / "a.avi", 12)
    encode(opened(root), codec, tmp_path / "latents", SETTINGS, True, CPU)
    write_xvid(root / "a.avi", 14, seed=3)
    with pytest.raises(ValueError, match=r"are of files with fingerprint .* now has"):
        encode(opened(root), codec, tmp_path / "latents", SETTINGS, True, CPU)


class Counting(PixelCodec):
    """Counts the pictures that it encodes, and can break down."""

    def __init__(self, fails_after: int = 10**9) -> None:
        super().__init__()
        self.count, self.fails_after = 0, fails_after

    def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.count += len(frames)
        if self.count > self.fails_after:
            raise KeyboardInterrupt
        return super()._encode(frames)


def test_an_interrupted_cache_goes_on_and_is_refused_until_whole(videos: Path, tmp_path: Path) -> None:
    dataset = opened(videos)
    total = 2 * sum(dataset.length(i) for i in range(len(dataset)))
    first = Counting(fails_after=120)
    with pytest.raises(KeyboardInterrupt):
        encode(dataset, first, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    with pytest.raises(ValueError, match="unfinished; run `latte encode` again"):
        CachedLatents(tmp_path, "all", 4, 3)
    done = sum(2 * v.num_frames for v in Manifest.read(tmp_path).videos if (tmp_path / shard_name(v.shard)).exists())
    assert 0 < done < total
    second = Counting()
    manifest = encode(dataset, second, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    assert second.count == total - done
    assert [checksum(tmp_path / shard_name(n)) for n in range(len(manifest.checksums))] == manifest.checksums
    assert len(CachedLatents(tmp_path, "all", 4, 3)) > 0
    third = Counting()
    encode(dataset, third, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    assert third.count == 0, "a finished cache is only verified"


def test_a_changed_byte_is_found_and_made_good(
    videos: Path, codec: KLCodec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = encode(opened(videos), codec, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    path = tmp_path / shard_name(1)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert checksum(path) is None
    assert encode(opened(videos), codec, tmp_path, SETTINGS, True, CPU, shard_frames=30) == manifest
    assert f"{path} is damaged and is encoded again" in caplog.text
    assert checksum(path) == manifest.checksums[1]


@pytest.mark.parametrize("keep", [0, 5, 0.5])
def test_a_cut_or_missing_shard_is_refused_by_name(keep: float, videos: Path, codec: KLCodec, tmp_path: Path) -> None:
    encode(opened(videos), codec, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    path = tmp_path / shard_name(2)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is missing or damaged"):
        CachedLatents(tmp_path, "all", 4, 3)
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is missing or damaged"):
        CachedLatents(tmp_path, "all", 4, 3)


def test_a_shard_of_another_cache_is_refused(videos: Path, codec: KLCodec, cache: Path, tmp_path: Path) -> None:
    encode(opened(videos), codec, tmp_path, SETTINGS, False, CPU, shard_frames=30)
    (tmp_path / shard_name(0)).write_bytes((cache / shard_name(0)).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors has checksum \w+, not \w+"):
        CachedLatents(tmp_path, "all", 4, 3)


@pytest.mark.parametrize(
    ("text", "seen"),
    [("{", "cannot be used"), ("{}", "cannot be used"), ('{"format": 99}', "format 99, this version reads 1")],
)
def test_a_damaged_manifest_is_named(text: str, seen: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no latents .* make them with `latte encode`"):
        CachedLatents(tmp_path, "all", 4, 3)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=seen):
        CachedLatents(tmp_path, "all", 4, 3)


def test_a_split_that_was_not_there_is_refused(tmp_path: Path, codec: KLCodec) -> None:
    write_xvid(tmp_path / "videos/a.avi", 12)
    encode(opened(tmp_path / "videos"), codec, tmp_path / "latents", SETTINGS, True, CPU)
    with pytest.raises(FileNotFoundError, match='no "test" split'):
        CachedLatents(tmp_path / "latents", "test", 4, 1)


def test_latents_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    class Huge(PixelCodec):
        def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return 1e6 * frames, frames

    write_xvid(tmp_path / "videos/a.avi", 12)
    with pytest.raises(ValueError, match=r"a\.avi leave the range of float16"):
        encode(opened(tmp_path / "videos"), Huge(), tmp_path / "latents", SETTINGS, True, CPU)


def test_a_shard_takes_its_name_only_when_whole(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s.safetensors", {"0": (2, 3)})
    writer.write(np.ones((1, 3), np.float16))
    assert not (tmp_path / "s.safetensors").exists()
    with pytest.raises(AssertionError, match="every tensor has its bytes"):
        writer.close()
    writer.write(np.ones((1, 3), np.float16))
    writer.close()
    assert checksum(tmp_path / "s.safetensors") is not None


class Slow(Counting):
    def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.03)
        return super()._encode(frames)


def encode_slowly(videos: Path, folder: Path, counts: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)
    codec = Slow()
    encode(VideoFolder(videos, SIZE, 1, 1), codec, folder, {}, True, CPU, shard_frames=12)
    counts.put(codec.count)


def test_a_killed_process_leaves_nothing_locked_and_two_share_what_is_left(tmp_path: Path) -> None:
    write_xvid(tmp_path / "videos/00.avi", 12)
    for number in range(1, 20):
        (tmp_path / f"videos/{number:02}.avi").symlink_to(tmp_path / "videos/00.avi")
    VideoFolder(tmp_path / "videos", SIZE, 1, 1)  # indexed once
    folder = tmp_path / "latents"
    fork = multiprocessing.get_context("fork")
    counts = fork.SimpleQueue()

    def start() -> multiprocessing.Process:
        process = fork.Process(target=encode_slowly, args=(tmp_path / "videos", folder, counts))
        process.start()
        return process

    killed = start()
    deadline = time.monotonic() + 60
    while not (folder / shard_name(2)).exists() and killed.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.join()
    done = len(list(folder.glob("shard-*.safetensors")))
    assert 3 <= done < 18
    for process in [start(), start()]:
        process.join(60)
        assert process.exitcode == 0
    shares = counts.get(), counts.get()
    assert sum(shares) == 2 * 12 * (20 - done), "no frame is encoded twice"
    assert min(shares) > 0, "both had a share"
    manifest = Manifest.read(folder)
    assert [checksum(folder / shard_name(n)) for n in range(20)] == manifest.checksums
    assert not list(folder.glob("*.part"))


def test_manifest_is_json_that_names_every_video(cache: Path) -> None:
    stored = json.loads((cache / "manifest.json").read_text())
    assert [video[0] for video in stored["videos"]] == [
        "train/jump/c",
        "train/jump/d.avi",
        "train/run/a.avi",
        "train/run/b.mp4",
        "test/run/e.avi",
    ]
    assert stored["splits"] == {"all": [0, 1, 2, 3, 4], "train": [0, 1, 2, 3], "val": [4], "test": [4]}


def test_unusable_videos_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fake_videos.faceforensics(tmp_path / "videos", splits=False)
    (root / "bad.mp4").write_text("no video")
    encode(opened(root), PixelCodec(), tmp_path / "latents", {}, True, CPU)
    assert Manifest.read(tmp_path / "latents").quarantine[0][0] == "bad.mp4"
    with caplog.at_level(logging.WARNING):
        assert len(CachedLatents(tmp_path / "latents", "all", 4, 3)) == 3
    assert "1 of the data set could not be encoded" in caplog.text
