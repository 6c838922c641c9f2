"""The bundled text encoder, which needs no other package and no download."""

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from latte_pl.autoencoders.text_encoders import TextEncoder

BUNDLED = Path(__file__).parent / "weights" / "toy_text"
"""Weights and vocabulary; `latte_pl.toy.train_text_encoder` writes them."""
END = "</s>"
BUCKETS = 256  # tokens that words outside the vocabulary share
WIDTH, DEPTH, HEADS = 64, 2, 4
MAX_LENGTH = 64


class WordTokenizer:
    """Split captions into words in lower case, and end them with a token of their own.

    Args:
        words: The vocabulary. Other words share `BUCKETS` tokens by their checksum.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.ids = {word: n for n, word in enumerate([END, *words])}

    def __call__(
        self, caption: str, truncation: bool = False, max_length: int = MAX_LENGTH, return_tensors: str = ""
    ) -> SimpleNamespace:
        """Return ``input_ids``: a list, or a tensor (1, n) with ``return_tensors="pt"``."""
        ids = [self.id(word) for word in re.findall(r"[\w-]+", caption.lower())]
        ids = [*(ids[: max_length - 1] if truncation else ids), self.ids[END]]
        return SimpleNamespace(input_ids=torch.tensor([ids]) if return_tensors == "pt" else ids)

    def id(self, word: str) -> int:
        """Return the token of a word."""
        return self.ids.get(word, len(self.ids) + zlib.crc32(word.encode()) % BUCKETS)

    def get_vocab(self) -> dict[str, int]:
        """Return the token of each word of the vocabulary."""
        return self.ids


class WordTransformer(nn.Module):
    """A transformer encoder of tokens.

    Args:
        num_tokens: Size of the vocabulary with its buckets.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(num_tokens, WIDTH)
        self.positions = nn.Embedding(MAX_LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.tokens.weight.device

    def forward(self, input_ids: Tensor, padding: Tensor | None = None) -> SimpleNamespace:
        """Return ``last_hidden_state`` (B, n, E) of tokens (B, n); ``padding`` (B, n) is True where there is none."""
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        return SimpleNamespace(last_hidden_state=self.layers(x, src_key_padding_mask=padding))


class ToyTextEncoder(TextEncoder):
    """The bundled encoder of captions of the moving shapes ("a red square moves left"): E = 64, 0.12 M parameters.

    It is trained on captions of the moving shapes in many wordings, so that each token carries colour, shape and
    motion. Other words are told apart, but they have no meaning to it: use `T5Encoder` or `MiniLMEncoder` for real
    videos. It needs no other package and no download.

    Args:
        length: Maximum number of tokens of a caption, at most 64.

    Raises:
        ValueError: ``length`` is out of range.
    """

    def __init__(self, length: int = 16) -> None:
        if length > MAX_LENGTH:
            raise ValueError(f"length is {length}; ToyTextEncoder has at most {MAX_LENGTH} tokens")
        tokenizer = WordTokenizer(json.loads((BUNDLED / "words.json").read_text(encoding="utf-8")))
        model = WordTransformer(len(tokenizer.ids) + BUCKETS)
        model.load_state_dict({name: value.float() for name, value in load_file(BUNDLED / "model.safetensors").items()})
        super().__init__("toy-text", model, tokenizer, WIDTH, length)
