"""The names that every part of the package shares: the design axes and the batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

Size = Literal["S", "B", "L", "XL"]
Variant = Literal["interleaved", "late_fusion", "split_attention", "split_heads", "spatial"]
PatchEmbed = Literal["uniform", "compression"]
Injection = Literal["adaln", "tokens"]
TemporalPosition = Literal["absolute", "rope"]
SpatialPosition = Literal["absolute", "rope"]
Conditioning = Literal["none", "class", "text"]


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


class VideoBatch(TypedDict, total=False):
    """Clips as they leave a data loader, either as pixels or as cached posterior moments.

    Shapes: B clips, F frames, N extra images of joint training (0 without it).
    """

    video: Tensor
    """(B, F + N, 3, H, W) uint8 pixels; the N images follow the F frames of the clip."""
    moments: Tensor
    """(B, F + N, 2C, h, w) float, mean and log-variance of the codec's posterior; instead of ``video``."""
    label: Tensor
    """(B,) int64, or (B, 1 + N) in joint training with the clip's label first; zeros when unlabelled."""
    caption: list[str] | list[list[str]]
    """B captions, or in joint training 1 + N lists of B with the clips' first; only of data with captions."""
    text: Text
    """Cached token embeddings of the captions; instead of ``caption``."""
    clip: Tensor
    """(B,) int64, the clip's number in the stream since the start of training (or of the split); it names the
    random draws that belong to the clip (timestep, noise, label dropout), whatever the batch or the device."""
