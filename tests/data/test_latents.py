import json
import logging
import multiprocessing
import shutil
import struct
import time
import zlib
from pathlib import Path

import fake_videos
import numpy as np
import pytest
import torch
from fake_videos import write_frames, write_video, write_xvid
from safetensors.torch import load_file

from latte_pl.autoencoders import KLAutoencoder, PixelAutoencoder
from latte_pl.data.encoding import encode
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents, CachedVideo, Manifest
from latte_pl.data.shards import CHECKSUMS, ShardWriter, checksum, shard_name
from latte_pl.data.stream import ClipStream
from latte_pl.data.transforms import draw_view

CPU = torch.device("cpu")
SIZE = (16, 24)
SETTINGS = {"size": list(SIZE), "crop": "centre", "data": "Folder", "holdout": 0.1}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with a test split, in files and frames; one video is shorter than a clip."""
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
def autoencoder() -> KLAutoencoder:
    return KLAutoencoder()


@pytest.fixture(scope="module")
def cache(videos: Path, autoencoder: KLAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    manifest = encode(opened(videos), autoencoder, folder, SETTINGS, True, CPU, shard_frames=30)
    assert len(manifest.checksums) == 3, "several shards"
    return folder


@pytest.mark.parametrize("split", ["train", "val", "all"])
@pytest.mark.parametrize("num_images", [0, 2])
def test_cached_clips_equal_those_of_the_videos(
    split: str, num_images: int, videos: Path, cache: Path, autoencoder: KLAutoencoder
) -> None:
    pixels = ClipStream(opened(videos, split, 4, 3), 4, 3, 7, num_images)
    latents = ClipStream(CachedLatents(cache, split, 4, 3, flip=True, settings=SETTINGS), 4, 3, 7, num_images)
    for number in range(12):
        one, other = pixels[number], latents[number]
        assert one.keys() ^ other.keys() == {"video", "moments"}
        assert torch.equal(one["label"], other["label"])
        assert one["clip"] == other["clip"]
        expected = torch.cat(autoencoder.moments(one["video"][None]), dim=2)[0]
        assert other["moments"].dtype == torch.float16
        torch.testing.assert_close(other["moments"].float(), expected, rtol=2**-10, atol=1e-4)


def test_evaluation_clips_equal_those_of_the_videos(videos: Path, cache: Path, autoencoder: KLAutoencoder) -> None:
    pixels, latents = opened(videos, "train", 4, 3), CachedLatents(cache, "train", 4, 3, flip=True)
    for index in range(len(pixels)):
        expected = torch.cat(autoencoder.moments(pixels.read(index, 4, 3, None)[None]), dim=2)[0]
        torch.testing.assert_close(latents.read(index, 4, 3, None).float(), expected, rtol=2**-10, atol=1e-4)


def test_flipped_frames_are_encoded_instead_of_flipping_latents(
    videos: Path, cache: Path, autoencoder: KLAutoencoder
) -> None:
    pixels, latents = opened(videos, "train", 4, 3), CachedLatents(cache, "train", 4, 3, flip=True)
    views = [(seed, draw_view(pixels.length(0), 4, 3, True, np.random.default_rng(seed))) for seed in range(9)]
    seed, view = next((seed, view) for seed, view in views if view.flipped)
    window = pixels.frames(0, view.start, 4, 3)
    plain, flipped = (torch.cat(autoencoder.moments(clip[None]), dim=2)[0] for clip in (window, window.flip(-1)))
    assert (plain.flip(-1) - flipped).abs().max() > 1e-2, "the two differ for this autoencoder"
    clip = latents.read(0, 4, 3, np.random.default_rng(seed)).float()
    torch.testing.assert_close(clip, flipped, rtol=2**-10, atol=1e-4)


def test_lengths_labels_classes_and_weights_equal_those_of_the_videos(videos: Path, cache: Path) -> None:
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


def test_short_videos_are_skipped_and_counted(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(CachedLatents(cache, "train", 4, 1)) == 4
    assert not caplog.records
    assert len(CachedLatents(cache, "train", 4, 3)) == 3
    assert "skipped 1 videos that are shorter than the 10 frames of a clip" in caplog.text
    with pytest.raises(ValueError, match=r"no video of the val split in .* has 46 frames"):
        CachedLatents(cache, "val", 16, 3)


def test_shards_are_plain_safetensors_in_half_precision(cache: Path, autoencoder: KLAutoencoder) -> None:
    manifest = Manifest.read(cache)
    tensors = {name: t for path in cache.glob("shard-*") for name, t in load_file(path).items()}
    assert sorted(int(name) for name in tensors if not name.endswith(".crc32")) == list(range(5))
    for number, video in enumerate(manifest.videos):
        assert tensors[str(number)].shape == (video.num_frames, 2, 2 * autoencoder.channels, 2, 3)
        assert tensors[str(number)].dtype == torch.float16
        frames = tensors[str(number)].flatten(0, 1).numpy()
        assert tensors[f"{number}.crc32"].tolist() == [zlib.crc32(frame.tobytes()) for frame in frames]


def test_cache_without_flipped_frames_is_half_as_large(
    videos: Path, cache: Path, autoencoder: KLAutoencoder, tmp_path: Path
) -> None:
    encode(opened(videos), autoencoder, tmp_path, SETTINGS, False, CPU, shard_frames=30)
    half, whole = (sum(p.stat().st_size for p in folder.glob("shard-*")) for folder in (tmp_path, cache))
    assert half == pytest.approx(whole / 2, rel=0.05)
    plain, both = (CachedLatents(folder, "all", 4, 3).read(1, 4, 3, None) for folder in (tmp_path, cache))
    assert torch.equal(plain, both)
    with pytest.raises(ValueError, match="were encoded with flipped=False, but this run has True"):
        CachedLatents(tmp_path, "all", 4, 3, flip=True)


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("size", [32, 32], r"size=\[16, 24\], but this run has \[32, 32\]"),
        ("crop", "random", "crop=centre, but this run has random"),
        ("data", "UCF101", "data=Folder, but this run has UCF101"),
        ("holdout", 0.5, r"holdout=0\.1, but this run has 0\.5"),
    ],
)
def test_other_settings_raise_with_both_values(name: str, value: object, seen: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=f"the latents in {cache} were encoded with {seen}"):
        CachedLatents(cache, settings=SETTINGS | {name: value})


def test_another_autoencoder_or_scale_raises_with_both_values(
    videos: Path, cache: Path, autoencoder: KLAutoencoder
) -> None:
    other = PixelAutoencoder()
    with pytest.raises(
        ValueError, match=f"autoencoder={autoencoder.fingerprint()}, but this run has {other.fingerprint()}"
    ):
        CachedLatents(cache, "all", 4, 3).check({"autoencoder": other.fingerprint()})
    rescaled = KLAutoencoder()
    rescaled.scale = 2.0
    with pytest.raises(ValueError, match=rf"scale={autoencoder.scale}, but this run has 2\.0"):
        encode(opened(videos), rescaled, cache, SETTINGS, True, CPU, shard_frames=30)


def test_changed_files_raise(videos: Path, autoencoder: KLAutoencoder, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    write_xvid(root / "a.avi", 12)
    encode(opened(root), autoencoder, tmp_path / "latents", SETTINGS, True, CPU)
    write_xvid(root / "a.avi", 14, seed=3)
    with pytest.raises(ValueError, match=r"were encoded from videos with fingerprint .* the videos now have"):
        encode(opened(root), autoencoder, tmp_path / "latents", SETTINGS, True, CPU)


class Counting(PixelAutoencoder):
    """Count the frames that are encoded, and fail after a number of them."""

    def __init__(self, fails_after: int = 10**9) -> None:
        super().__init__()
        self.count, self.fails_after = 0, fails_after

    def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.count += len(frames)
        if self.count > self.fails_after:
            raise KeyboardInterrupt
        return super()._encode(frames)


def test_interrupted_cache_resumes_and_is_not_read_before_it_is_complete(videos: Path, tmp_path: Path) -> None:
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
    assert third.count == 0, "a complete cache is only verified"


def test_shard_with_a_changed_byte_is_encoded_again(
    videos: Path, autoencoder: KLAutoencoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = encode(opened(videos), autoencoder, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    path = tmp_path / shard_name(1)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert checksum(path) is None
    assert encode(opened(videos), autoencoder, tmp_path, SETTINGS, True, CPU, shard_frames=30) == manifest
    assert f"{path} is damaged and is encoded again" in caplog.text
    assert checksum(path) == manifest.checksums[1]


def test_changed_byte_of_a_frame_is_found_when_the_frame_is_read(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "latents")
    latents = CachedLatents(tmp_path / "latents", "all", 4, 3)
    key = [video.path for video in Manifest.read(cache).videos].index(latents.path(0))
    path = tmp_path / "latents" / shard_name(Manifest.read(cache).videos[key].shard)
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    about = json.loads(data[8 : 8 + size])[str(key)]
    frame = draw_view(latents.length(0), 4, 3, False, None).start + 3  # the second one of the clip
    data[8 + size + about["data_offsets"][0] + frame * 2 * int(np.prod(about["shape"][1:]))] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"\.safetensors is damaged: \S+ does not match its checksum; run `latte enc"):
        latents.read(0, 4, 3, None)
    assert latents.read(0, 1, 1, np.random.default_rng(0)).shape[0] == 1  # another frame
    assert latents.read(1, 4, 3, None).shape[0] == 4


def test_shards_without_checksums_of_frames_are_read(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "latents")
    for path in (tmp_path / "latents").glob("shard-*"):
        data = path.read_bytes().replace(f'"{CHECKSUMS}":"crc32"'.encode(), b'"before":"crc32"')
        path.write_bytes(data)
    new, old = (CachedLatents(folder, "all", 4, 3) for folder in (cache, tmp_path / "latents"))
    for index in range(len(new)):
        assert torch.equal(new.read(index, 4, 3, None), old.read(index, 4, 3, None))


@pytest.mark.parametrize("keep", [0, 5, 0.5])
def test_truncated_or_missing_shard_raises(
    keep: float, videos: Path, autoencoder: KLAutoencoder, tmp_path: Path
) -> None:
    encode(opened(videos), autoencoder, tmp_path, SETTINGS, True, CPU, shard_frames=30)
    path = tmp_path / shard_name(2)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is missing or damaged"):
        CachedLatents(tmp_path, "all", 4, 3)
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00002\.safetensors is missing or damaged"):
        CachedLatents(tmp_path, "all", 4, 3)


def test_shard_of_another_cache_raises(videos: Path, autoencoder: KLAutoencoder, cache: Path, tmp_path: Path) -> None:
    encode(opened(videos), autoencoder, tmp_path, SETTINGS, False, CPU, shard_frames=30)
    (tmp_path / shard_name(0)).write_bytes((cache / shard_name(0)).read_bytes())
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors has checksum \w+, not \w+"):
        CachedLatents(tmp_path, "all", 4, 3)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("{", "cannot be used"),
        ("{}", "cannot be used"),
        ('{"format": 99}', "it has format 99, this version reads formats 1 to 2"),
    ],
)
def test_damaged_manifest_raises(text: str, seen: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains no latent cache .* make one with `latte encode`"):
        CachedLatents(tmp_path, "all", 4, 3)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=seen):
        CachedLatents(tmp_path, "all", 4, 3)


def test_split_that_was_not_encoded_raises(tmp_path: Path, autoencoder: KLAutoencoder) -> None:
    write_xvid(tmp_path / "videos/a.avi", 12)
    encode(opened(tmp_path / "videos"), autoencoder, tmp_path / "latents", SETTINGS, True, CPU)
    with pytest.raises(FileNotFoundError, match='no "test" split'):
        CachedLatents(tmp_path / "latents", "test", 4, 1)


def test_latents_beyond_half_precision_raise(tmp_path: Path) -> None:
    class Huge(PixelAutoencoder):
        def _encode(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return 1e6 * frames, frames

    write_xvid(tmp_path / "videos/a.avi", 12)
    with pytest.raises(ValueError, match=r"a\.avi exceed the range of float16"):
        encode(opened(tmp_path / "videos"), Huge(), tmp_path / "latents", SETTINGS, True, CPU)


def test_shard_is_renamed_when_it_is_complete(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s.safetensors", {"0": (2, 3)})
    writer.write(np.ones((1, 3), np.float16))
    assert not (tmp_path / "s.safetensors").exists()
    with pytest.raises(AssertionError, match="values are missing"):
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
    autoencoder = Slow()
    encode(VideoFolder(videos, SIZE, 1, 1), autoencoder, folder, {}, True, CPU, shard_frames=12)
    counts.put(autoencoder.count)


def test_killed_process_leaves_no_lock_and_two_others_share_the_rest(tmp_path: Path) -> None:
    write_xvid(tmp_path / "videos/00.avi", 12)
    for number in range(1, 20):
        (tmp_path / f"videos/{number:02}.avi").symlink_to(tmp_path / "videos/00.avi")
    VideoFolder(tmp_path / "videos", SIZE, 1, 1)  # index the files once
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
    assert min(shares) > 0, "both encoded a part"
    manifest = Manifest.read(folder)
    assert [checksum(folder / shard_name(n)) for n in range(20)] == manifest.checksums
    assert not list(folder.glob("*.part"))


def test_manifest_of_format_1_is_read(cache: Path, tmp_path: Path) -> None:
    stored = {
        "settings": {
            "scale": 0.5,
            "codec": "shapes_kl_f8-0123456789ab",
            "size": [16, 24],
            "crop": "centre",
            "data": "Folder",
            "holdout": 0.1,
            "mirrored": True,
            "text": None,
        },
        "fingerprint": "f00d",
        "class_names": ["run"],
        "shape": [8, 2, 3],
        "videos": [["run/a.avi", 0, 36, 0]],
        "splits": {"all": [0], "train": [0]},
        "quarantine": [["run/b.avi", "zero bytes"]],
        "checksums": ["beef"],
        "captions": [],
        "format": 1,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(stored))
    manifest = Manifest.read(tmp_path)
    assert manifest.settings["autoencoder"] == "shapes_kl_f8-0123456789ab"
    assert manifest.settings["flipped"] is True
    assert manifest.settings.keys() == Manifest.read(cache).settings.keys()
    assert manifest.skipped == [["run/b.avi", "zero bytes"]]
    assert manifest.videos == [CachedVideo("run/a.avi", 0, 36, 0)]
    assert manifest.format == 2
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_cache_of_format_1_is_used_without_encoding(
    videos: Path, cache: Path, autoencoder: KLAutoencoder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cache, tmp_path / "latents"))
    stored = json.loads((folder / "manifest.json").read_text())
    settings = stored["settings"]
    settings["codec"], settings["mirrored"] = settings.pop("autoencoder"), settings.pop("flipped")
    stored["quarantine"], stored["format"] = stored.pop("skipped"), 1
    (folder / "manifest.json").write_text(json.dumps(stored))
    new, old = (CachedLatents(path, "all", 4, 3, flip=True, settings=SETTINGS) for path in (cache, folder))
    assert torch.equal(new.read(0, 4, 3, None), old.read(0, 4, 3, None))
    written = [path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*"))]
    encode(opened(videos), autoencoder, folder, SETTINGS, True, CPU, shard_frames=30)
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("shard-*"))] == written
    assert Manifest.read(folder) == Manifest.read(cache)
    assert json.loads((folder / "manifest.json").read_text())["format"] == 2


def test_manifest_names_every_video(cache: Path) -> None:
    stored = json.loads((cache / "manifest.json").read_text())
    assert [video[0] for video in stored["videos"]] == [
        "train/jump/c",
        "train/jump/d.avi",
        "train/run/a.avi",
        "train/run/b.mp4",
        "test/run/e.avi",
    ]
    assert stored["splits"] == {"all": [0, 1, 2, 3, 4], "train": [0, 1, 2, 3], "val": [4], "test": [4]}


def test_skipped_videos_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fake_videos.faceforensics(tmp_path / "videos", splits=False)
    (root / "bad.mp4").write_text("no video")
    encode(opened(root), PixelAutoencoder(), tmp_path / "latents", {}, True, CPU)
    assert Manifest.read(tmp_path / "latents").skipped[0][0] == "bad.mp4"
    with caplog.at_level(logging.WARNING):
        assert len(CachedLatents(tmp_path / "latents", "all", 4, 3)) == 3
    assert "1 videos of the data set could not be encoded" in caplog.text
