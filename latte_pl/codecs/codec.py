"""The interface of a frozen autoencoder between pixels and scaled latents."""

import hashlib
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn


def from_uint8(video: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1]."""
    return video.float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """Map float pixels in [-1, 1] to uint8, to the nearest level; what lies outside is clipped."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def fingerprint(name: str, settings: tuple, module: nn.Module) -> str:
    """Return a name with a hash of settings and weights."""
    digest = hashlib.sha256(repr(settings).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{name}-{digest.hexdigest()[:12]}"


class Codec(nn.Module, ABC):
    """A frozen autoencoder, frame by frame; the only home of the latent scale and its inverse.

    Shapes: B clips, F frames, C channels of the latent, H, W pixels, h = H / factor, w = W / factor.

    Args:
        name: short name for caches.
        channels: C.
        factor: pixels per latent cell, along each side.
        scale: scaled latent = (latent - shift) * scale, which has about unit variance.
        shift: see ``scale``.
        slice_frames: frames of 256x256 pixels that are processed at a time, which bounds the memory;
            smaller pictures go through in larger slices, bigger ones in smaller.
    """

    def __init__(
        self, name: str, channels: int, factor: int, scale: float = 1.0, shift: float = 0.0, slice_frames: int = 16
    ) -> None:
        super().__init__()
        if slice_frames < 1:
            raise ValueError(f"slice_frames must be at least 1, not {slice_frames}")
        self.name = name
        self.channels = channels
        self.factor = factor
        self.scale = scale
        self.shift = shift
        self.slice_frames = slice_frames

    @abstractmethod
    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance (N, C, h, w) of frames (N, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Return frames (N, 3, H, W) of unscaled latents (N, C, h, w)."""

    @torch.no_grad()
    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a video to the posterior's moments.

        Args:
            video: (B, F, 3, H, W), uint8 or float in [-1, 1].

        Returns:
            Mean and log-variance, unscaled float32 (B, F, C, h, w).

        Raises:
            ValueError: the shape is not (B, F, 3, H, W), or a side is no multiple of ``factor``.
        """
        if video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"a video is (B, F, 3, H, W), not {tuple(video.shape)}")
        height, width = video.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"{height}x{width} pixels don't divide into cells of {self.factor}x{self.factor}; "
                f"resize to multiples of {self.factor}"
            )
        parts = [
            self._encode(from_uint8(frames) if video.dtype == torch.uint8 else frames)
            for frames in video.flatten(0, 1).split(self._slice(height * width))
        ]
        mean, logvar = (torch.cat(part).float() for part in zip(*parts, strict=True))  # (B * F, C, h, w)
        return mean.unflatten(0, video.shape[:2]), logvar.unflatten(0, video.shape[:2])

    def latents(self, mean: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents: the posterior's mean, or the sample that standard normal ``noise`` picks."""
        if noise is not None:
            mean = mean + (0.5 * logvar).exp() * noise
        return (mean - self.shift) * self.scale

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the scaled latents (B, F, C, h, w) of a video; see ``moments`` and ``latents``."""
        return self.latents(*self.moments(video), noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the video, float32 (B, F, 3, H, W) in [-1, 1], of scaled latents (B, F, C, h, w).

        Raises:
            ValueError: the shape is not (B, F, C, h, w).
        """
        if latents.ndim != 5 or latents.shape[2] != self.channels:
            raise ValueError(f"latents are (B, F, {self.channels}, h, w), not {tuple(latents.shape)}")
        cells = latents.shape[-2] * latents.shape[-1]
        unscaled = latents.flatten(0, 1) / self.scale + self.shift
        frames = torch.cat([self._decode(part) for part in unscaled.split(self._slice(cells * self.factor**2))])
        return frames.float().clamp(-1, 1).unflatten(0, latents.shape[:2])

    def _slice(self, pixels: int) -> int:
        return max(1, self.slice_frames * 256 * 256 // pixels)

    def fingerprint(self) -> str:
        """Return the name and a hash of scale and weights, for caches of what this codec encoded."""
        return fingerprint(self.name, (self.channels, self.factor, self.scale, self.shift), self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)
