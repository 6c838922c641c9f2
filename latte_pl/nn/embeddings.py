"""Embeddings of the timestep, the class label and the caption."""

import math

import torch
from torch import Tensor, nn

from latte_pl.types import Text


class TimestepEmbedder(nn.Module):
    """Embed the timestep by 256 sinusoids and a two-layer MLP (DiT, Peebles & Xie 2023).

    Args:
        dim: Width D of the model.
    """

    num_sinusoids = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.num_sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps (B,), integer or float in [0, 1000], as (B, D)."""
        stored = next(self.mlp.parameters()).dtype
        dtype = torch.promote_types(stored, torch.float32)  # half precision cannot resolve angles up to 1000
        half = self.num_sinusoids // 2
        exponents = torch.arange(half, dtype=dtype, device=timesteps.device) * (-math.log(10000) / half)
        angles = timesteps.to(dtype)[:, None] * exponents.exp()  # (B, 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(stored))  # (B, D)


class LabelEmbedder(nn.Module):
    """Embed class labels by a table, whose last row is the null class of classifier-free guidance.

    Args:
        num_classes: Number of classes, without the null class.
        dim: Width D of the model.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Embed labels (...), int64 in [0, num_classes], as (..., D)."""
        return self.embedding_table(labels)


class TextEmbedder(nn.Module):
    """Project caption tokens to the width of the model by a two-layer MLP (PixArt-alpha, Chen et al. 2023).

    A learned null token is prepended to every caption. It is visible only if all other tokens are masked, which makes
    the caption the null caption of classifier-free guidance. So dropping a caption needs no text encoder, and attention
    always has a visible key.

    Args:
        text_dim: Width E of the text encoder's embeddings.
        dim: Width D of the model.
    """

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.null = nn.Parameter(torch.empty(1, dim))

    def forward(self, text: Text) -> Text:
        """Embed captions (B, G, L, E) with mask (B, G, L) as (B, G, 1 + L, D) with mask (B, G, 1 + L)."""
        embeddings, mask = text
        tokens = self.mlp(embeddings.to(self.null.dtype))
        null = self.null.to(tokens.dtype).expand(*mask.shape[:2], 1, -1)
        empty = ~mask.any(dim=-1, keepdim=True)
        return Text(torch.cat([null, tokens], dim=2), torch.cat([empty, mask], dim=2))
