"""The base class of autoencoders, and the conversion between uint8 and float pixels."""

import hashlib
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn


def from_uint8(video: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [-1, 1]."""
    return video.float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """Convert float pixels in [-1, 1] to uint8. Values are rounded to the nearest level and clipped."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def fingerprint(name: str, settings: tuple, module: nn.Module) -> str:
    """Return ``name`` with a hash of the settings and of the module's state dict."""
    digest = hashlib.sha256(repr(settings).encode())
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{name}-{digest.hexdigest()[:12]}"


class Autoencoder(nn.Module, ABC):
    """Base class of frozen autoencoders, which encode and decode each frame on its own.

    The denoiser sees scaled latents, ``(latent - shift) * scale``, which have about unit variance. Scaling and its
    inverse happen only here.

    It computes in the dtype of its weights, also under autocast, so that latents that are encoded in training equal
    those of a cache. The fingerprint covers the weights in this dtype.

    Shapes: B clips, F frames, C latent channels, H x W pixels, h = H / factor, w = W / factor.

    Args:
        name: Short name, which begins the fingerprint.
        channels: Number of latent channels C.
        factor: Pixels per latent cell along each side.
        scale: Scale of the latents.
        shift: Shift of the latents.
        slice_frames: Number of 256x256 frames that are processed at once, which bounds the memory. Smaller frames are
            processed in proportionally larger slices, larger frames in smaller ones.
    """

    def __init__(
        self, name: str, channels: int, factor: int, scale: float = 1.0, shift: float = 0.0, slice_frames: int = 16
    ) -> None:
        super().__init__()
        if slice_frames < 1:
            raise ValueError(f"slice_frames is {slice_frames}; it must be at least 1")
        self.name = name
        self.channels = channels
        self.factor = factor
        self.scale = scale
        self.shift = shift
        self.slice_frames = slice_frames

    @classmethod
    def latent_format(cls, **init_args: Any) -> tuple[int, int]:
        """Return ``channels`` and ``factor`` of the autoencoder that these constructor arguments describe.

        The default builds the autoencoder. Subclasses that read weights override it to read only their configuration.
        """
        autoencoder = cls(**init_args)
        return autoencoder.channels, autoencoder.factor

    @abstractmethod
    def _encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior's mean and log-variance, (N, C, h, w) each, of frames (N, 3, H, W) in [-1, 1]."""

    @abstractmethod
    def _decode(self, latents: Tensor) -> Tensor:
        """Return the frames (N, 3, H, W) of unscaled latents (N, C, h, w)."""

    @torch.no_grad()
    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a video to the moments of the posterior.

        Args:
            video: Pixels (B, F, 3, H, W), uint8 or float in [-1, 1].

        Returns:
            Mean and log-variance, unscaled float32 (B, F, C, h, w).

        Raises:
            ValueError: The shape is not (B, F, 3, H, W), or H or W is not a multiple of ``factor``.
        """
        if video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"video has shape {tuple(video.shape)}; it must be (B, F, 3, H, W)")
        height, width = video.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"frames of {height}x{width} pixels cannot be divided into cells of {self.factor}x{self.factor}; "
                f"resize them to multiples of {self.factor}"
            )
        with torch.autocast(video.device.type, enabled=False):
            parts = [
                self._encode(from_uint8(frames) if video.dtype == torch.uint8 else frames)
                for frames in video.flatten(0, 1).split(self._frames_per_slice(height * width))
            ]
        mean, logvar = (torch.cat(part).float() for part in zip(*parts, strict=True))  # (B F, C, h, w)
        return mean.unflatten(0, video.shape[:2]), logvar.unflatten(0, video.shape[:2])

    def latents(self, mean: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents of a posterior.

        Args:
            mean: Mean (B, F, C, h, w).
            logvar: Log-variance of the same shape.
            noise: Standard normal noise of the same shape, to sample from the posterior. None uses the mean.
        """
        if noise is not None:
            mean = mean + (0.5 * logvar).exp() * noise
        return (mean - self.shift) * self.scale

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the scaled latents (B, F, C, h, w) of a video; see `moments` and `latents` for the arguments."""
        return self.latents(*self.moments(video), noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents.

        Args:
            latents: Scaled latents (B, F, C, h, w).

        Returns:
            Pixels, float32 (B, F, 3, H, W) in [-1, 1].

        Raises:
            ValueError: The shape is not (B, F, C, h, w).
        """
        if latents.ndim != 5 or latents.shape[2] != self.channels:
            raise ValueError(f"latents have shape {tuple(latents.shape)}; it must be (B, F, {self.channels}, h, w)")
        cells = latents.shape[-2] * latents.shape[-1]
        unscaled = latents.flatten(0, 1) / self.scale + self.shift
        slices = unscaled.split(self._frames_per_slice(cells * self.factor**2))
        with torch.autocast(latents.device.type, enabled=False):
            frames = torch.cat([self._decode(part) for part in slices])
        return frames.float().clamp(-1, 1).unflatten(0, latents.shape[:2])

    def _frames_per_slice(self, pixels: int) -> int:
        """Return how many frames of so many pixels are processed at once."""
        return max(1, self.slice_frames * 256 * 256 // pixels)

    def fingerprint(self) -> str:
        """Return the name with a hash of scale and weights, which identifies this autoencoder in latent caches."""
        return fingerprint(self.name, (self.channels, self.factor, self.scale, self.shift), self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, also when the surrounding module is set to training mode."""
        return super().train(False)
