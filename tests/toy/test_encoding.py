"""Both splits of the moving shapes as one data set for latent caches."""

from pathlib import Path

import pytest
import torch

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.data.encoding import encode
from latte_pl.data.latents import CachedLatents
from latte_pl.toy import MovingShapes, Shapes
from latte_pl.toy.encoding import EncodableShapes


@pytest.fixture(scope="module")
def splits() -> dict[str, MovingShapes]:
    return {"train": MovingShapes("train", (16, 24), 5), "val": MovingShapes("val", (16, 24), 3)}


def test_videos_of_both_splits_follow_each_other(splits: dict[str, MovingShapes]) -> None:
    both = EncodableShapes(splits["train"], splits["val"])
    assert len(both) == 8
    assert [both.path(index) for index in (4, 5)] == ["train/4", "val/0"]
    assert [*both.members("train")] == [0, 1, 2, 3, 4]
    assert [*both.members("val")] == [5, 6, 7]
    assert both.caption(6) == splits["val"].caption(1)
    assert torch.equal(both.frames(6, 3, 4), splits["val"].read(1, 16)[3:7])
    with pytest.raises(FileNotFoundError, match="no 'test' split"):
        both.members("test")


def test_cached_clips_equal_the_drawn_ones(splits: dict[str, MovingShapes], tmp_path: Path) -> None:
    autoencoder = PixelAutoencoder()
    encode(EncodableShapes(splits["train"], splits["val"]), autoencoder, tmp_path, {}, False, torch.device("cpu"))
    for split, videos in splits.items():
        cached = CachedLatents(tmp_path, split, 4, 3)
        assert len(cached) == len(videos)
        for index in range(len(videos)):
            mean, _ = autoencoder.moments(videos.read(index, 4, 3)[None])
            torch.testing.assert_close(cached.read(index, 4, 3, None)[:, :3].float(), mean[0], rtol=2**-10, atol=1e-4)
            assert cached.label(index) == videos.label(index)


def test_cache_settings_have_the_fingerprint_of_the_drawings() -> None:
    settings = Shapes(size=(16, 24), num_videos=5).settings
    assert settings["size"] == [16, 24]
    assert settings["data"] == "Shapes"
    assert settings != Shapes(size=(16, 24), num_videos=5, held_out=1).settings
