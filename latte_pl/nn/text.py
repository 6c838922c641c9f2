"""How captions enter: their tokens projected to the model's width, and the cross-attention that reads them."""

import torch
from torch import Tensor, nn

from latte_pl.nn.attention import attend
from latte_pl.types import Text


class TextEmbedder(nn.Module):
    """Project the tokens of captions to the model's width by a two-layer perceptron (PixArt-alpha, Chen et al. 2023).

    A learned token stands for the null caption of classifier-free guidance: a caption without tokens, one whose mask is
    False throughout, is that token, and any other does not see it. So dropping a caption needs no text encoder, and
    attention never meets an empty row.

    Args:
        text_dim: width E of the embeddings.
        dim: width D of the model.
    """

    def __init__(self, text_dim: int, dim: int) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.mlp = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.null = nn.Parameter(torch.empty(1, dim))

    def forward(self, text: Text) -> Text:
        """Map embeddings (B, G, L, E) and mask (B, G, L) to (B, G, 1 + L, D) and (B, G, 1 + L)."""
        embeddings, mask = text
        tokens = self.mlp(embeddings.to(self.null.dtype))
        null = self.null.to(tokens.dtype).expand(*mask.shape[:2], 1, -1)
        empty = ~mask.any(dim=-1, keepdim=True)
        return Text(torch.cat([null, tokens], dim=2), torch.cat([empty, mask], dim=2))

    def groups(self, text: Text | None, num_videos: int, num_images: int) -> Text:
        """Return captions as (B, 1 + N, L, E) and (B, 1 + N, L).

        Raises:
            ValueError: there are none, or their shapes do not fit.
        """
        if text is None:
            raise ValueError("the model is text-conditional: give text, net.null_text(text) for no caption")
        shapes = [(num_videos, 1 + num_images)] + [(num_videos,)] * (num_images == 0)
        embeddings, mask = text
        if tuple(embeddings.shape[:-2]) not in shapes or embeddings.shape[-1] != self.text_dim:
            expected = ", ".join(map(str, (*shapes[-1], "L", self.text_dim)))
            raise ValueError(
                f"text embeddings must be ({expected}), the clip's first and one per image, got "
                f"{tuple(embeddings.shape)}"
            )
        if mask.shape != embeddings.shape[:-1] or mask.dtype != torch.bool:
            raise ValueError(
                f"the text mask must be bool of shape {tuple(embeddings.shape[:-1])}, got {mask.dtype} of "
                f"{tuple(mask.shape)}"
            )
        shape = (num_videos, 1 + num_images, *embeddings.shape[-2:])
        return Text(embeddings.reshape(shape), mask.reshape(shape[:-1]))


class CrossAttention(nn.Module):
    """Attention from the patches to the tokens of a caption, the clip's or each image's own.

    Args:
        dim: width D of activations and tokens.
        num_heads: heads, each of width D / num_heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)  # rows: keys of all heads, values
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Text, num_clip_frames: int) -> Tensor:
        """Attend to captions: x (B, F + N, S, D), tokens (B, 1 + N, L, D) with mask (B, 1 + N, L) -> shape of x."""
        clip, images = self.q(x).split([num_clip_frames, x.shape[1] - num_clip_frames], dim=1)
        key, value = self.kv(text.embeddings).chunk(2, dim=-1)  # (B, 1 + N, L, D) each
        out = self._attend(clip.flatten(1, 2)[:, None], key[:, :1], value[:, :1], text.mask[:, :1]).view_as(clip)
        if images.shape[1]:
            out = torch.cat([out, self._attend(images, key[:, 1:], value[:, 1:], text.mask[:, 1:])], dim=1)
        return self.proj(out)  # (B, F + N, S, D)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attend within G groups: query (B, G, Q, D), key and value (B, G, L, D), mask (B, G, L)."""
        q, k, v = (
            part.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (B G, H, Q or L, d) each
        out = attend(q, k, v, mask.flatten(0, 1)[:, None, None])  # (B G, H, Q, d)
        return out.transpose(1, 2).reshape(query.shape)
