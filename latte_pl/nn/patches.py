"""Patch embeddings and their inverses: latents (B, F, C, H, W) to tokens (B, T, S, D) and back.

The stride of the convolutions equals their kernel, so they run as matmuls on rearranged patches. This yields contiguous
tokens in the layout of the blocks.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class UniformPatches(nn.Module):
    """Embed p x p patches of each frame (uniform frame patch embedding of the Latte paper; ViT).

    Args:
        in_channels: Channels C of the latents.
        dim: Width D of the tokens.
        patch_size: Patch side p in latent cells.
    """

    temporal_stride = 1

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    @property
    def patch_size(self) -> int:
        """Patch side p in latent cells."""
        return self.proj.kernel_size[-1]

    def forward(self, x: Tensor, num_images: int = 0) -> Tensor:
        """Embed (B, F + N, C, H, W) as (B, F + N, S, D); images are embedded like frames."""
        p = self.patch_size
        patches = rearrange(x, "b f c (h p) (w q) -> b f (h w) (c p q)", p=p, q=p)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # (B, F, S, D)


class TubeletPatches(nn.Module):
    """Embed s x p x p tubelets of consecutive frames (compression frame patch embedding of the Latte paper; ViViT).

    An image of joint training is repeated s times to a tubelet of its own, so it never mixes with the clip.

    Args:
        in_channels: Channels C of the latents.
        dim: Width D of the tokens.
        patch_size: Patch side p in latent cells.
        temporal_stride: Tubelet length s in frames.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int, temporal_stride: int) -> None:
        super().__init__()
        kernel = (temporal_stride, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, dim, kernel, stride=kernel)

    @property
    def patch_size(self) -> int:
        """Patch side p in latent cells."""
        return self.proj.kernel_size[-1]

    @property
    def temporal_stride(self) -> int:
        """Tubelet length s in frames."""
        return self.proj.kernel_size[0]

    def forward(self, x: Tensor, num_images: int = 0) -> Tensor:
        """Embed (B, F + N, C, H, W) as (B, F / s + N, S, D)."""
        s, p = self.temporal_stride, self.patch_size
        if num_images:
            clip, images = x.split([x.shape[1] - num_images, num_images], dim=1)
            x = torch.cat([clip, images.repeat_interleave(s, dim=1)], dim=1)  # (B, F + s N, C, H, W)
        tubelets = rearrange(x, "b (t s) c (h p) (w q) -> b t (h w) (c s p q)", s=s, p=p, q=p)
        return F.linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)  # (B, T + N, S, D)


def unpatch(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """Rearrange patches (B, T, S, p p C) of a ``height`` x ``width`` grid to frames (B, T, C, H, W)."""
    pattern = "b t (h w) (p q c) -> b t c (h p) (w q)"
    return rearrange(tokens, pattern, h=height, w=width, p=patch_size, q=patch_size)


class TubeletFrames(nn.ConvTranspose3d):
    """Decode each tubelet to s frames by a transposed convolution with kernel and stride (s, 1, 1).

    Its input has s times the channels of a frame; with fewer, s frames of independent noise could not be represented.
    The paper does not state this width. The s frames of an image's tubelet are averaged.

    Args:
        channels: Channels of the output frames.
        temporal_stride: Tubelet length s in frames.
    """

    def __init__(self, channels: int, temporal_stride: int) -> None:
        kernel = (temporal_stride, 1, 1)
        super().__init__(temporal_stride * channels, channels, kernel, stride=kernel)

    def forward(self, x: Tensor, num_images: int = 0) -> Tensor:  # type: ignore[override]
        """Decode (B, T + N, s C, H, W) to (B, s T + N, C, H, W)."""
        x = super().forward(x.transpose(1, 2)).transpose(1, 2)  # (B, s (T + N), C, H, W)
        if num_images:
            stride = self.kernel_size[0]
            clip, images = x.split([x.shape[1] - num_images * stride, num_images * stride], dim=1)
            x = torch.cat([clip, images.unflatten(1, (num_images, stride)).mean(dim=2)], dim=1)
        return x
