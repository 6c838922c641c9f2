"""Types that all parts of the package share: captions and batches of videos."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

Conditioning = Literal["none", "class", "text"]
Split = Literal["train", "val", "test", "all"]
"""A part of a data set; "all" is every video of it."""


class Text(NamedTuple):
    """Captions as a frozen text encoder gives them: B clips, N images of joint training, L tokens of width E."""

    embeddings: Tensor
    """(B, L, E) float, or (B, 1 + N, L, E) in joint training with the clip's caption first."""
    mask: Tensor
    """(B, L) or (B, 1 + N, L) bool, True where there is a token and False where there is padding."""

    @classmethod
    def padded(cls, captions: Sequence[Tensor], length: int) -> "Text":
        """Stack captions (n, E) of up to L tokens each to (B, L, E), zeros behind the last token."""
        mask = torch.arange(length) < torch.tensor([len(tokens) for tokens in captions])[:, None]
        rows = [torch.nn.functional.pad(tokens, (0, 0, 0, length - len(tokens))) for tokens in captions]
        return cls(torch.stack(rows), mask.to(rows[0].device))

    def replaced(self, where: Tensor, other: "Text") -> "Text":
        """Return the captions of ``other`` where (B,) or (B, 1 + N) is True, these elsewhere."""
        embeddings = torch.where(where[..., None, None], other.embeddings, self.embeddings)
        return Text(embeddings, torch.where(where[..., None], other.mask, self.mask))


class Draws(NamedTuple):
    """Random draws of a batch: B clips, N images of joint training, latents (F + N, C, h, w)."""

    timesteps: Tensor
    """(B,) timesteps of the diffusion."""
    posterior: Tensor
    """(B, F + N, C, h, w) standard normal noise of the posterior samples."""
    noise: Tensor
    """(B, F + N, C, h, w) standard normal noise of the diffusion."""
    condition: Tensor
    """(B,) or (B, 1 + N) uniforms that decide which labels or captions are dropped; empty without condition."""


class VideoBatch(TypedDict, total=False):
    """Clips as they leave a data loader, either as pixels or as cached posterior moments.

    Shapes: B clips, F frames, N extra images of joint training (0 without it).
    """

    video: Tensor
    """(B, F + N, 3, H, W) uint8 pixels; the N images follow the F frames of the clip."""
    moments: Tensor
    """(B, F + N, 2C, h, w) float, mean and log-variance of the autoencoder's posterior; instead of ``video``."""
    label: Tensor
    """(B,) int64, or (B, 1 + N) in joint training with the clip's label first; zeros when unlabelled."""
    caption: list[str] | list[list[str]]
    """B captions, or in joint training 1 + N lists of B with the clips' first; only of data with captions."""
    text: Text
    """Cached token embeddings of the captions; instead of ``caption``."""
    clip: Tensor
    """(B,) int64, the index of the clip since the start of training (or in the validation split). It names the random
    draws of the clip (timestep, noise, label dropout), so that they do not depend on the batch or the device."""
    padding: Tensor
    """(B,) bool, True for clips that only fill the last batch and must not count; only in validation batches."""
    draws: Draws
    """Random numbers of the clips, which `latte_pl.training.LatteModule` draws before the transfer to the device."""
