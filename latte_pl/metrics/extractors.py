"""Feature extractors of published metrics: I3D, C3D and Inception-v3."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from latte_pl.metrics.downloads import file_sha256, find_weights

I3D_URL = "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


class Extractor(Protocol):
    """A frozen network whose features are compared.

    To be available in protocols, the class takes the path of its weights as only required argument (None for its
    default) and is listed in ``latte_pl.evaluation.extractors.EXTRACTORS``. An extractor that is an ``nn.Module`` is
    moved to the device of the clips.
    """

    name: str
    """Name in protocols and in ``METRICS``."""
    sha256: str
    """SHA-256 of the weights file. It is part of the protocol."""
    num_features: int
    """Number of features D."""

    def __call__(self, video: Tensor) -> Tensor:
        """Compute features (B, D), or (B, F, D) of single frames, of clips (B, F, 3, H, W) uint8."""


@torch.no_grad()
def clip_features(extractor: Extractor, video: Tensor) -> Tensor:
    """Compute the features of clips.

    Each clip is processed alone and without autocast. Kernels depend on the batch size, so this makes the features of a
    clip bit-identical for every way of batching.

    Args:
        extractor: The feature extractor.
        video: Clips (B, F, 3, H, W) uint8.

    Returns:
        Features (B, k, D) float32 with k rows a clip: 1, or F if the extractor works on single frames.

    Raises:
        ValueError: The clips have another shape or type, or the extractor returns another number of features than it
            states.
    """
    if video.ndim != 5 or video.shape[2] != 3 or video.dtype != torch.uint8:
        raise ValueError(f"clips must be uint8 of shape (B, F, 3, H, W), found {video.dtype} {tuple(video.shape)}")
    if isinstance(extractor, nn.Module):
        extractor.to(video.device)
    rows = []
    with torch.autocast(video.device.type, enabled=False):
        for clip in video:
            features = extractor(clip[None])  # (1, D) or (1, F, D)
            rows.append(features.reshape(1, -1, features.shape[-1]).float())  # (1, k, D)
    if not rows:
        return torch.empty(0, 1, extractor.num_features, device=video.device)
    result = torch.cat(rows)  # (B, k, D)
    if result.shape[-1] != extractor.num_features:
        raise ValueError(f"{extractor.name} returned {result.shape[-1]} features, it states {extractor.num_features}")
    return result


class I3D(nn.Module):
    """I3D trained on Kinetics-400, the TorchScript file of StyleGAN-V that the paper's FVD uses; 400 features.

    Args:
        path: Path of ``i3d_torchscript.pt``; None looks in the cache folder and downloads it there once.
        sha256: Expected checksum of the file.

    Raises:
        FileNotFoundError: There is no file, and it cannot be downloaded.
        ValueError: The file has another checksum.
    """

    name = "i3d"
    num_features = 400
    min_frames = 10

    def __init__(self, path: Path | str | None = None, sha256: str = I3D_SHA256) -> None:
        super().__init__()
        file = find_weights("i3d_torchscript.pt", I3D_URL, sha256, path)
        self.sha256 = sha256
        self.script = torch.jit.load(str(file), map_location="cpu").eval()

    def forward(self, video: Tensor) -> Tensor:
        """Compute features (B, 400) of clips (B, F, 3, H, W) uint8; the script rescales and resizes the pixels."""
        if video.shape[1] < self.min_frames:
            raise ValueError(f"I3D needs clips of at least {self.min_frames} frames, found {video.shape[1]}")
        pixels = video.transpose(1, 2).contiguous()  # (B, 3, F, H, W)
        return self.script(pixels, rescale=True, resize=True, return_features=True)  # (B, 400)


class C3D(nn.Module):
    """C3D fine-tuned on UCF101 (TGAN-v2), a TorchScript file whose class probabilities the inception score uses.

    There is no official download and no official checksum, so the checksum of the user's file enters the protocol.

    Args:
        path: Path of the TorchScript file, which is called with clips (B, 3, F, H, W) uint8.
        num_features: Number of classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No path is given.
    """

    name = "c3d"

    def __init__(self, path: Path | str | None = None, num_features: int = 101) -> None:
        super().__init__()
        if path is None:
            raise ValueError("c3d has no weights to download; set the path of its TorchScript file (c3d_ucf101.pt)")
        file = find_weights("c3d_ucf101.pt", None, None, path)
        self.num_features = num_features
        self.sha256 = file_sha256(file)
        self.script = torch.jit.load(str(file), map_location="cpu").eval()

    def forward(self, video: Tensor) -> Tensor:
        """Compute class probabilities (B, 101) of clips (B, F, 3, H, W) uint8."""
        return self.script(video.transpose(1, 2).contiguous())  # (B, 101)


class Inception(nn.Module):
    """Inception-v3 of clean-fid with its resizing (Pillow's bicubic filter, in float), frame by frame; 2048 features.

    Args:
        path: Path of ``inception-2015-12-05.pt``; None looks in the cache folder and downloads it there once.

    Raises:
        FileNotFoundError: There is no file, and it cannot be downloaded.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, path: Path | str | None = None) -> None:
        super().__init__()
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        file = find_weights("inception-2015-12-05.pt", INCEPTION_URL, None, path)
        self.sha256 = file_sha256(file)
        self.resize = build_resizer("clean")
        self.net = InceptionV3W(str(file.parent), download=False).eval()

    def forward(self, video: Tensor) -> Tensor:
        """Compute features (B, F, 2048) of clips (B, F, 3, H, W) uint8."""
        frames = video.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # (B F, H, W, 3)
        pixels = torch.stack([torch.from_numpy(self.resize(x)) for x in frames])  # (B F, 299, 299, 3) in [0, 255]
        features = self.net(pixels.permute(0, 3, 1, 2).to(video.device))  # (B F, 2048)
        return features.unflatten(0, video.shape[:2])  # (B, F, 2048)


class InceptionLegacy(nn.Module):
    """Inception-v3 of NVIDIA's TorchScript with the resizing inside of it, as ``fid50k_full`` uses it; frame by frame.

    The script resizes bilinearly without antialiasing (the "legacy" resizing of clean-fid).

    Args:
        path: Path of ``inception-2015-12-05.pt``; None looks in the cache folder and downloads it there once.
        num_features: Number of features.

    Raises:
        FileNotFoundError: There is no file, and it cannot be downloaded.
    """

    name = "inception_legacy"

    def __init__(self, path: Path | str | None = None, num_features: int = 2048) -> None:
        super().__init__()
        file = find_weights("inception-2015-12-05.pt", INCEPTION_URL, None, path)
        self.num_features = num_features
        self.sha256 = file_sha256(file)
        self.script = torch.jit.load(str(file), map_location="cpu").eval()

    def forward(self, video: Tensor) -> Tensor:
        """Compute features (B, F, 2048) of clips (B, F, 3, H, W) uint8."""
        features = self.script(video.flatten(0, 1), return_features=True)  # (B F, 2048)
        return features.unflatten(0, video.shape[:2])  # (B, F, 2048)
