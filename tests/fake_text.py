"""A tiny T5 with random weights and 11 words, stored like a real one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "square", "star", "moves", "left", "right"]


def write_t5(folder: Path, seed: int = 0, pipeline: bool = False) -> T5EncoderModel:
    """Save model and tokenizer in a folder, or in the folder of a diffusers pipeline. Captions end with </s>."""
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    torch.manual_seed(seed)
    model = T5EncoderModel(T5Config(vocab_size=11, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    tokenizer.save_pretrained(folder / "tokenizer" if pipeline else folder)
    model.save_pretrained(folder / "text_encoder" if pipeline else folder)
    return model
