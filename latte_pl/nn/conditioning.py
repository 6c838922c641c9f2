"""The condition of the denoiser: embedders of timestep and class, and the adaptive layer norm they act through."""

import math

import torch
from torch import Tensor, nn

from latte_pl.types import Injection


class TimestepEmbedder(nn.Module):
    """Embed the diffusion time by 256 sinusoids and a two-layer perceptron (DiT, Peebles & Xie 2023)."""

    num_sinusoids = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map timesteps (B,), integer or float in [0, 1000], to (B, D)."""
        stored = next(self.mlp.parameters()).dtype
        dtype = torch.promote_types(stored, torch.float32)  # a half-precision angle of 1000 means nothing
        half = self.num_sinusoids // 2
        exponents = torch.arange(half, dtype=dtype, device=timesteps.device) * (-math.log(10000) / half)
        angles = timesteps.to(dtype)[:, None] * exponents.exp()  # (B, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(stored))  # (B, D)


class LabelEmbedder(nn.Module):
    """Table of class vectors; the last row is the null class of classifier-free guidance."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Map labels (...) int64 in [0, num_classes] to (..., D)."""
        return self.embedding_table(labels)


def per_frame(groups: Tensor, num_clip_frames: int) -> Tensor:
    """Spread one vector per group over the frames of the group: the clip has many, each extra image is one.

    Args:
        groups: (B, 1, D), one vector for everything, or (B, 1 + N, D), the clip's first.
        num_clip_frames: frames of the clip.

    Returns:
        (B, 1, 1, D) or (B, F + N, 1, D), to be broadcast over frames and space.
    """
    if groups.shape[1] > 1:
        clip, images = groups[:, :1], groups[:, 1:]
        groups = torch.cat([clip.expand(-1, num_clip_frames, -1), images], dim=1)
    return groups[:, :, None]


class Modulation(nn.Sequential):
    """Compute the vectors of adaptive layer norm from the condition, once a clip (adaLN-Zero of DiT).

    Args:
        dim: width D.
        num_vectors: vectors a use, such as shift, scale and gate.
    """

    def __init__(self, dim: int, num_vectors: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, num_vectors * dim))
        self.num_vectors = num_vectors

    def vectors(self, condition: Tensor, num_clip_frames: int) -> tuple[Tensor, ...]:
        """Map conditions (B, 1 or 1 + N, D) to ``num_vectors`` tensors (B, 1 or F + N, 1, D)."""
        return per_frame(self(condition), num_clip_frames).chunk(self.num_vectors, dim=-1)


def norm_layer(dim: int, injection: Injection, rms_norm: bool) -> nn.Module:
    """Make a norm over D, with affine parameters unless adaptive ones take their place.

    Args:
        dim: width D.
        injection: "tokens" has affine parameters.
        rms_norm: RMSNorm (Zhang & Sennrich 2019), which subtracts no mean, in place of LayerNorm.
    """
    kind = nn.RMSNorm if rms_norm else nn.LayerNorm
    return kind(dim, eps=1e-6, elementwise_affine=injection == "tokens")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute ``x * (1 + scale) + shift`` in one pass over x (B, F, S, D)."""
    return torch.addcmul(shift, x, 1 + scale)
