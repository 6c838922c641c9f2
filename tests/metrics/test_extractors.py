import hashlib
import io
import urllib.error

import numpy as np
import pytest
import torch
from torch import nn

from latte_pl.metrics import I3D, ShapesR3D, build_extractor, clip_features
from latte_pl.metrics import extractors as module
from latte_pl.metrics.extractors import C3D, I3D_SHA256, find_weights


class ScriptedI3D(nn.Module):
    """Same signature as StyleGAN-V's file; returns what it was called with."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        batch, channels, frames, height, width = x.shape
        features = torch.zeros(batch, 400)
        features[:, :3] = torch.tensor([float(rescale), float(resize), float(return_features)])
        features[:, 3:7] = torch.tensor([float(channels), float(frames), float(height), float(width)])
        features[:, 7:10] = x.float().amax(dim=[2, 3, 4])
        features[:, 10:20] = x.float()[:, 0, :10].mean(dim=[2, 3])
        return features


class ScriptedC3D(nn.Module):
    def forward(self, x: torch.Tensor):
        return x.float().mean(dim=[2, 3, 4]).softmax(dim=1)


@pytest.fixture
def i3d_file(tmp_path):
    path = tmp_path / "i3d.pt"
    torch.jit.script(ScriptedI3D()).save(str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_i3d_is_called_as_stylegan_v_calls_it(i3d_file):
    net = I3D(*i3d_file)
    video = torch.zeros(2, 12, 3, 4, 6, dtype=torch.uint8)
    video[:, :, 0], video[:, :, 1], video[:, :, 2] = 255, 128, 7
    video[:, :, 0] -= torch.arange(12, dtype=torch.uint8)[None, :, None, None]
    features = net(video)
    assert features.shape == (2, 400)
    assert features[0, :7].tolist() == [1, 1, 1, 3, 12, 4, 6]  # the flags; channels before frames
    assert features[0, 7:10].tolist() == [255, 128, 7]  # pixels 0 to 255
    assert features[0, 10:20].tolist() == [255 - n for n in range(10)]  # frames in order
    assert net.sha256 == i3d_file[1]


def test_i3d_refuses_short_clips_and_other_files(i3d_file):
    with pytest.raises(ValueError, match="10 frames or more, not 8"):
        I3D(*i3d_file)(torch.zeros(1, 8, 3, 4, 6, dtype=torch.uint8))
    with pytest.raises(ValueError, match=f"expected {I3D_SHA256}"):
        I3D(i3d_file[0])


def test_c3d_returns_probabilities(tmp_path):
    path = tmp_path / "c3d.pt"
    torch.jit.script(ScriptedC3D()).save(str(path))
    net = C3D(path, num_features=3)
    rows = net(torch.randint(0, 256, (2, 16, 3, 4, 6), dtype=torch.uint8))
    assert rows.shape == (2, 3)
    assert rows.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert net.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="give the path"):
        build_extractor("c3d")


def test_inception_resizes_as_clean_fid_and_keeps_frames(tmp_path, monkeypatch):
    import cleanfid.inception_torchscript as inception
    from cleanfid.resize import build_resizer

    class Mean(nn.Module):  # stands in for the network behind clean-fid's wrapper
        def __init__(self, path, download, resize_inside=False):
            super().__init__()
            assert not download

        def forward(self, x):
            assert x.shape[1:] == (3, 299, 299)
            return x.flatten(1)[:, :2048]

    monkeypatch.setattr(inception, "InceptionV3W", Mean)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"weights")
    net = build_extractor("inception", tmp_path / "inception-2015-12-05.pt")
    video = torch.randint(0, 256, (2, 3, 3, 20, 30), dtype=torch.uint8)
    features = net(video)
    assert features.shape == (2, 3, 2048)
    expected = build_resizer("clean")(video[1, 2].permute(1, 2, 0).numpy())[..., 0].flatten()[:2048]
    np.testing.assert_allclose(features[1, 2].numpy(), expected, rtol=1e-6)


def test_download_happens_once_whole_and_checked(tmp_path, monkeypatch):
    data, calls = b"weights" * 1000, []

    def urlopen(url, timeout):
        calls.append(url)
        return io.BytesIO(data)

    monkeypatch.setenv("LATTE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        assert find_weights("w.pt", "https://host/w.pt", digest).read_bytes() == data
    assert calls == ["https://host/w.pt"]
    with pytest.raises(ValueError, match=r"the download of other\.pt"):
        find_weights("other.pt", "https://host/other.pt", "0" * 64)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["w.pt"]  # nothing half-written, nothing wrong


def test_offline_error_names_file_place_and_checksum(tmp_path, monkeypatch):
    def urlopen(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("LATTE_CACHE", str(tmp_path))
    monkeypatch.setattr(module.urllib.request, "urlopen", urlopen)
    with pytest.raises(FileNotFoundError) as error:
        I3D()
    for part in (str(tmp_path / "i3d_torchscript.pt"), "dropbox.com", "no network", I3D_SHA256):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


def test_clip_features_refuse_other_clips():
    for video in (torch.zeros(1, 4, 3, 8, 8), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8 clips"):
            clip_features(ShapesR3D(), video)


def test_batches_never_change_a_clips_features_by_a_bit():
    video = torch.randint(0, 256, (5, 6, 3, 32, 48), dtype=torch.uint8)
    whole = clip_features(ShapesR3D(), video)
    assert torch.equal(whole, torch.cat([clip_features(ShapesR3D(), clip[None]) for clip in video]))
    assert whole.shape == (5, 1, ShapesR3D.num_features)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        I3D(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match="train_extractor"):
        ShapesR3D(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="choose one of"):
        build_extractor("vgg")
