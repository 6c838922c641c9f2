import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from latte_pl.evaluation.extractors import EXTRACTORS, build_extractor
from latte_pl.metrics import C3D, I3D, METRICS, InceptionLegacy, clip_features
from latte_pl.metrics.extractors import I3D_SHA256
from latte_pl.toy.extractor import ShapesR3D


class ScriptedI3D(nn.Module):
    """A script with the signature of StyleGAN-V's file, which returns its arguments as features."""

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


def test_i3d_is_called_as_in_stylegan_v(i3d_file):
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


def test_short_clips_and_wrong_files_of_i3d_raise(i3d_file):
    with pytest.raises(ValueError, match="at least 10 frames, found 8"):
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
    with pytest.raises(ValueError, match="set the path"):
        build_extractor("c3d")


class ScriptedInception(nn.Module):
    def forward(self, img: torch.Tensor, return_features: bool = False):
        assert img.dtype == torch.uint8
        assert return_features
        return img.float().mean(dim=[2, 3])


def test_legacy_inception_leaves_the_resizing_to_the_script(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(ScriptedInception()).save(str(path))
    net = InceptionLegacy(path, num_features=3)
    video = torch.randint(0, 256, (2, 5, 3, 4, 6), dtype=torch.uint8)
    assert torch.allclose(clip_features(net, video), video.float().mean(dim=(3, 4)))
    assert net.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_inception_resizes_single_frames_as_clean_fid(tmp_path, monkeypatch):
    import cleanfid.inception_torchscript as inception
    from cleanfid.resize import build_resizer

    class FirstPixels(nn.Module):  # in place of the network, which needs its weights
        def __init__(self, path, download, resize_inside=False):
            super().__init__()
            assert not download

        def forward(self, x):
            assert x.shape[1:] == (3, 299, 299)
            return x.flatten(1)[:, :2048]

    monkeypatch.setattr(inception, "InceptionV3W", FirstPixels)
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"weights")
    net = build_extractor("inception", tmp_path / "inception-2015-12-05.pt")
    video = torch.randint(0, 256, (2, 3, 3, 20, 30), dtype=torch.uint8)
    features = net(video)
    assert features.shape == (2, 3, 2048)
    expected = build_resizer("clean")(video[1, 2].permute(1, 2, 0).numpy())[..., 0].flatten()[:2048]
    np.testing.assert_allclose(features[1, 2].numpy(), expected, rtol=1e-6)


def test_wrong_clips_raise():
    for video in (torch.zeros(1, 4, 3, 8, 8), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="must be uint8"):
            clip_features(ShapesR3D(), video)


def test_batch_size_does_not_change_features_by_a_bit():
    video = torch.randint(0, 256, (5, 6, 3, 32, 48), dtype=torch.uint8)
    whole = clip_features(ShapesR3D(), video)
    assert torch.equal(whole, torch.cat([clip_features(ShapesR3D(), clip[None]) for clip in video]))
    assert whole.shape == (5, 1, ShapesR3D.num_features)


def test_autocast_does_not_change_features():
    video = torch.randint(0, 256, (2, 4, 3, 16, 24), dtype=torch.uint8)
    net = ShapesR3D()
    plain = clip_features(net, video)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clip_features(net, video), plain)


def test_every_metric_has_an_extractor():
    assert {metric.extractor for metric in METRICS.values()} == set(EXTRACTORS)
    assert {name: extractor.name for name, extractor in EXTRACTORS.items()} == {name: name for name in EXTRACTORS}


def test_errors_name_missing_files_and_unknown_extractors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pt; it must be i3d_torchscript\.pt"):
        I3D(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        ShapesR3D(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="unknown extractor 'vgg'; choose one of i3d, c3d"):
        build_extractor("vgg")
