"""The bundled text encoder: it needs no package, reads wordings alike, and tells colour, shape and motion apart."""

import json

import pytest
import torch
import torch.nn.functional as nnf

from latte_pl.autoencoders import ToyTextEncoder
from latte_pl.autoencoders.toy_text import BUNDLED
from latte_pl.toy import train_text_encoder
from latte_pl.toy.shapes import PALETTE, SHAPES, VERBS


@pytest.fixture(scope="module")
def encoder():
    return ToyTextEncoder()


def mean(encoder, caption):
    return encoder.tokens(caption).mean(dim=0)


def similarity(encoder, one, other):
    return float(nnf.cosine_similarity(mean(encoder, one), mean(encoder, other), dim=0))


def test_no_other_package_is_needed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = ToyTextEncoder(length=8).encode(["a red square moves left", "a star"])
    assert text.embeddings.shape == (2, 8, 64)
    assert text.mask.sum(dim=1).tolist() == [6, 3]  # the words and the end
    assert not text.embeddings[~text.mask].any()


@pytest.mark.parametrize("other", ["a blue square moves left", "a red star moves left", "a red square moves right"])
def test_another_wording_is_nearer_than_another_meaning(encoder, other):
    caption = "a red square moves left"
    for wording in (
        "The square is RED and moves left.",
        "a video of a red square which moves left",
        "red square moves left",
    ):
        assert similarity(encoder, caption, wording) > similarity(encoder, caption, other) + 0.1


def test_all_captions_have_embeddings_of_their_own(encoder):
    captions = [f"a {colour} {shape} {verb}" for colour in PALETTE for shape in SHAPES for verb in VERBS.values()]
    means = torch.stack([mean(encoder, caption) for caption in captions])
    distance = torch.cdist(means, means) + 9 * torch.eye(len(means))
    assert distance.min() > 0.3


def test_unknown_words_are_told_apart_and_leave_the_meaning(encoder):
    plain, one, other = (f"a red square {word}moves left" for word in ("", "slowly ", "happily "))
    assert not torch.equal(mean(encoder, one), mean(encoder, other))
    assert similarity(encoder, plain, one) > similarity(encoder, plain, "a red square moves right") + 0.1


def test_long_captions_are_cut_and_end_with_the_end(encoder):
    short = ToyTextEncoder(length=4)
    assert short.tokens("a red square moves left").shape == (4, 64)
    ids = encoder.tokenizer("a red square moves left", truncation=True, max_length=4).input_ids
    assert ids == [encoder.tokenizer.ids[word] for word in ("a", "red", "square", "</s>")]
    with pytest.raises(ValueError, match="at most 64 tokens"):
        ToyTextEncoder(length=65)


def test_the_shipped_files_are_those_of_the_script(tmp_path, encoder):
    assert json.loads((BUNDLED / "words.json").read_text()) == train_text_encoder.vocabulary()
    train_text_encoder.train(steps=2, batch_size=4, seed=0, folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in BUNDLED.iterdir()}
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 300_000
    assert encoder.fingerprint() == "toy-text-2acec00bb6be"  # caption caches on disk contain it
