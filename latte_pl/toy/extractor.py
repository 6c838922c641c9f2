"""The bundled feature extractor: features for a video distance that needs no download."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "shapes_r3d.safetensors"
SIZE = 64  # height and width that clips are resized to


class Stage(nn.Module):
    """A (2+1)D convolution (arXiv 1711.11248): over space with stride 2, then over time, each with batch norm."""

    def __init__(self, in_channels: int, out_channels: int, temporal_stride: int = 1) -> None:
        super().__init__()
        self.space = nn.Conv3d(in_channels, out_channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.space_norm = nn.BatchNorm3d(out_channels)
        self.time = nn.Conv3d(out_channels, out_channels, (3, 1, 1), (temporal_stride, 1, 1), (1, 0, 0), bias=False)
        self.time_norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, F, H, W) to (B, C', F', H/2, W/2)."""
        x = nnf.relu(self.space_norm(self.space(x)))  # (B, C', F, H/2, W/2)
        return nnf.relu(self.time_norm(self.time(x)))  # (B, C', F', H/2, W/2)


class ShapesR3D(nn.Module):
    """A small (2+1)D network for the toy video distance.

    `latte_pl.toy.train_extractor` trains it on `MovingShapes`. The Fréchet distance of its features is the *toy video
    distance*. It is comparable between models under the same protocol only; it is not the FVD of papers. The features
    are the means of all stages over space and time, and the standard deviations of the first stage, so that early
    stages describe texture and colour and late stages describe motion. Each feature is divided by its standard
    deviation on training clips.

    Args:
        weights: A safetensors file; None loads the bundled weights, "" keeps random ones.

    Raises:
        FileNotFoundError: There is no such file.
    """

    name = "shapes_r3d"
    widths = (16, 16, 32, 48)
    num_features = widths[0] + sum(widths)

    def __init__(self, weights: Path | str | None = None) -> None:
        super().__init__()
        channels = (3, *self.widths)
        self.stages = nn.ModuleList(
            Stage(channels[i], channels[i + 1], 2 if i == len(self.widths) - 1 else 1) for i in range(len(self.widths))
        )
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))
        self.sha256 = ""
        if weights != "":
            path = WEIGHTS if weights is None else Path(weights)
            if not path.is_file():
                raise FileNotFoundError(
                    f"no extractor weights at {path}; train them with `python -m latte_pl.toy.train_extractor`"
                )
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            self.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
        self.eval().requires_grad_(False)

    def pooled(self, video: Tensor) -> Tensor:
        """Return features (B, D) of clips (B, F, 3, H, W) uint8 before standardisation."""
        frames = video.flatten(0, 1).float() / 127.5 - 1  # (B F, 3, H, W)
        if frames.shape[-2:] != (SIZE, SIZE):
            frames = nnf.interpolate(frames, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        x = frames.unflatten(0, video.shape[:2]).transpose(1, 2)  # (B, 3, F, SIZE, SIZE)
        pools = []
        for k, stage in enumerate(self.stages):
            x = stage(x)  # (B, C, F', h, w)
            pools.append(x.mean(dim=(2, 3, 4)))  # (B, C)
            if k == 0:  # 1e-6 keeps the gradient of the root finite where a channel is constant
                pools.append((x.var(dim=(2, 3, 4), correction=0) + 1e-6).sqrt())  # (B, C)
        return torch.cat(pools, dim=1)  # (B, D)

    def forward(self, video: Tensor) -> Tensor:
        """Return standardised features (B, D) of clips (B, F, 3, H, W) uint8."""
        return (self.pooled(video) - self.feature_mean) / self.feature_std  # (B, D)
