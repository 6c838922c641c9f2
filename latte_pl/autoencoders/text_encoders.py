"""Frozen text encoders, which map captions to token embeddings, through transformers."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from latte_pl.autoencoders.base import fingerprint
from latte_pl.autoencoders.hub import load_pretrained, short_name
from latte_pl.hub import Address, download
from latte_pl.types import Text

# Embeddings of this many captions are cached: captions repeat, and encoding one costs more than a small denoiser.
CACHE_SIZE = 2048
_log = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A frozen encoder of captions.

    Each caption is encoded alone, without padding, in the precision of the weights. Its embeddings therefore do not
    depend on the batch, the number of devices or the precision of training.

    Args:
        name: Short name, which begins the fingerprint.
        model: A transformer whose ``last_hidden_state`` has width E.
        tokenizer: Its tokenizer.
        width: Width E of the embeddings.
        length: Maximum number of tokens L of a caption, including special tokens. Longer captions are truncated, the
            first one with a warning.

    Raises:
        ValueError: ``length`` is less than 2.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, width: int, length: int) -> None:
        super().__init__()
        if length < 2:
            raise ValueError(f"length is {length}; a caption needs at least 2 tokens")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.width = width
        self.length = length
        self._cache: dict[str, Tensor] = {}
        self._warned = False

    def encode(self, captions: Sequence[str] | Sequence[Sequence[str]]) -> Text:
        """Encode a batch of captions.

        Args:
            captions: B captions, or for joint training 1 + N lists of B captions each, those of the clips first.

        Returns:
            Embeddings, float32 (B, L, E) or (B, 1 + N, L, E), and their mask, (B, L) or (B, 1 + N, L), on the device
            of the encoder.
        """
        if not isinstance(captions[0], str):
            return Text(*(torch.stack(parts, dim=1) for parts in zip(*map(self.encode, captions))))
        device = self.model.device
        return Text.padded([self.tokens(str(caption)).to(device) for caption in captions], self.length)

    def tokens(self, caption: str) -> Tensor:
        """Return the embeddings (n, E) float32 of the n tokens of one caption, n <= L."""
        if caption not in self._cache:
            if len(self._cache) >= CACHE_SIZE:
                self._cache.pop(next(iter(self._cache)))
            self._cache[caption] = self._encode(caption)
        return self._cache[caption]

    def _encode(self, caption: str) -> Tensor:
        ids = self.tokenizer(caption, truncation=True, max_length=self.length, return_tensors="pt").input_ids
        if not self._warned and len(self.tokenizer(caption).input_ids) > self.length:
            self._warned = True
            _log.warning("captions are truncated to %d tokens; the first one is %r", self.length, caption)
        # training may use a cached embedding later, and autograd does not accept inference tensors
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
            return self.model(input_ids=ids.to(self.model.device)).last_hidden_state[0].float()

    def fingerprint(self) -> str:
        """Return the name with a hash of length, vocabulary and weights, which identifies this encoder in caches."""
        return fingerprint(self.name, (self.length, sorted(self.tokenizer.get_vocab().items())), self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, also when the surrounding module is set to training mode."""
        return super().train(False)


class T5Encoder(TextEncoder):
    """The encoder of a T5 model (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).

    Args:
        source: Hub name such as "google/t5-v1_1-xxl", address hf://OWNER/REPO/FOLDER[@REVISION], or a local folder. A
            folder contains model and tokenizer, or it is the folder of a diffusers pipeline with ``text_encoder`` and
            ``tokenizer`` in it. An address of a pipeline ends with its folder ``text_encoder``.
        length: Maximum number of tokens of a caption. Latte's pipeline uses 120.
        dtype: Type of the weights. The embeddings are float32.

    Raises:
        FileNotFoundError: The source is not such a folder, and it is not a Hub name that is cached or can be
            downloaded.
    """

    def __init__(
        self, source: str | Path, length: int = 120, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        model, tokenizer = _load("T5EncoderModel", source, dtype)
        super().__init__(short_name(source), model, tokenizer, model.config.d_model, length)
        self.source = str(source)
        self.dtype = dtype


class MiniLMEncoder(TextEncoder):
    """A small encoder of English captions: the token embeddings (E = 384) of all-MiniLM-L6-v2, 22.7 M parameters.

    The files come from one commit of the hub and are compared with their checksums each time. Later runs need no
    network.

    Args:
        length: Maximum number of tokens of a caption.

    Raises:
        FileNotFoundError: The files are not in the cache and cannot be downloaded.
        ValueError: A file has another checksum.
    """

    repo = "sentence-transformers/all-MiniLM-L6-v2"
    revision = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    files: ClassVar[dict[str, str]] = {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    }
    """Files and their SHA-256."""

    def __init__(self, length: int = 16) -> None:
        paths = [download(Address(self.repo, file, self.revision), sha256) for file, sha256 in self.files.items()]
        model, tokenizer = _load("AutoModel", paths[0].parent, "float32")
        super().__init__("all-MiniLM-L6-v2", model, tokenizer, model.config.hidden_size, length)


def _load(class_name: str, source: str | Path, dtype: str) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder, else from the Hub's cache, else from the Hub.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: The package transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("this text encoder needs the package transformers; run pip install 'latte_pl[text]'")
    import transformers

    def load(place: str | Path, **options: Any) -> tuple[Any, Any]:
        encoder = tokens = place
        if isinstance(place, Path) and (place / "text_encoder").is_dir():
            encoder, tokens = place / "text_encoder", place / "tokenizer"
        beside = {"subfolder": "tokenizer"} if options.get("subfolder") == "text_encoder" else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokens, **options | beside)
        model = getattr(transformers, class_name).from_pretrained(encoder, dtype=getattr(torch, dtype), **options)
        return model, tokenizer

    return load_pretrained(
        load,
        source,
        kind="text encoder",
        files="config.json, model.safetensors and the tokenizer's files (spiece.model also needs the package "
        "sentencepiece: pip install 'latte_pl[text]')",
        example="'google/t5-v1_1-xxl'",
    )
