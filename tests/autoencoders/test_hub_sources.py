"""Autoencoders, text encoders, extractors and pretrained models of the hub, against a server on this machine."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from fake_text import write_t5
from hub_server import serve
from transformers import BertConfig, BertModel

from latte_pl.autoencoders.hub import short_name
from latte_pl.autoencoders.kl import BUNDLED

USE = """
import sys
from latte_pl import KLAutoencoder
from latte_pl.autoencoders import MiniLMEncoder, T5Encoder
from latte_pl.metrics.downloads import find_weights

for source in ("hf://owner/pipeline/vae", "hf://owner/pipeline/vae@main"):
    assert KLAutoencoder.latent_format(source) == (4, 8)
    vae = KLAutoencoder(source)
    assert (vae.name, vae.source) == ("pipeline", source)
    assert all((a == b).all() for a, b in zip(vae.state_dict().values(), KLAutoencoder("toy").state_dict().values()))
t5 = T5Encoder("hf://owner/pipeline/text_encoder", length=8)
assert t5.encode(["a red square"]).mask.sum() == 4
MiniLMEncoder.files = dict(zip(MiniLMEncoder.files, sys.argv[1:]))
assert MiniLMEncoder(length=6).encode(["a red square"]).embeddings.shape == (1, 6, 12)
assert find_weights("i3d.pt", None, None, "hf://owner/pipeline/i3d.pt").read_bytes() == b"i3d"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_t5(folder, pipeline=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=32, **sizes)).save_pretrained(folder / "bert")
    bert = {name: (folder / "bert" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    bert["tokenizer.json"] = (folder / "tokenizer/tokenizer.json").read_bytes()
    files = {f"vae/{path.name}": path.read_bytes() for path in BUNDLED.iterdir()}
    for place in ("text_encoder", "tokenizer"):
        files |= {f"{place}/{path.name}": path.read_bytes() for path in (folder / place).iterdir()}

    def use(wrong=False):
        names = ("config.json", "tokenizer.json", "model.safetensors")
        sums = [hashlib.sha256(bert[name]).hexdigest() for name in names]
        with serve() as hub:
            hub.files = {"owner/pipeline": files | {"i3d.pt": b"i3d"}, "sentence-transformers/all-MiniLM-L6-v2": bert}
            return subprocess.run(
                [sys.executable, "-c", USE, *sums[: 2 if wrong else 3], *(["0" * 64] if wrong else [])],
                env=os.environ | hub.environment(folder),
                cwd=folder,
                capture_output=True,
                text=True,
            )

    return use


def test_sources_of_the_hub_are_used(run):
    done = run()
    assert done.returncode == 0, done.stderr


def test_a_changed_text_encoder_is_refused(run):
    done = run(wrong=True)
    assert f"expected {'0' * 64}; the file is deleted" in done.stderr


def test_an_address_and_a_hub_name_have_the_same_short_name():
    assert short_name("hf://owner/vae/folder@main") == short_name("owner/vae") == short_name("/data/vae") == "vae"
