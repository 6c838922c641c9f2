"""Text encoders: a tiny T5 in a folder, the small one where its package is installed."""

import importlib.util

import pytest
import torch
from fake_text import write_t5

from latte_pl.codecs import MiniLMEncoder, T5Encoder
from latte_pl.types import Text

CAPTIONS = ["a red square moves left", "a blue star", "", "a red square moves right left right left"]


@pytest.fixture
def folder(tmp_path):
    write_t5(tmp_path / "t5")
    return tmp_path / "t5"


def test_embeddings_are_those_of_the_transformer(tmp_path):
    model = write_t5(tmp_path).eval()
    text = T5Encoder(tmp_path, length=7).encode(CAPTIONS)
    assert text.embeddings.shape == (4, 7, 12)
    assert text.embeddings.dtype == torch.float32
    assert text.mask.tolist() == [[True] * n + [False] * (7 - n) for n in (6, 4, 1, 7)]
    assert not text.embeddings[~text.mask].any()
    ids = torch.tensor([[3, 4, 6, 8, 9, 1]])
    torch.testing.assert_close(text.embeddings[0, :6], model(input_ids=ids).last_hidden_state[0])
    cut = torch.tensor([[3, 4, 6, 8, 10, 9, 1]])  # ends with </s> all the same
    torch.testing.assert_close(text.embeddings[3], model(input_ids=cut).last_hidden_state[0])
    padded = model(input_ids=torch.tensor([[3, 5, 7, 1, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
    torch.testing.assert_close(text.embeddings[1, :4], padded.last_hidden_state[0, :4])


def test_a_caption_does_not_know_its_batch_or_precision(folder):
    whole = T5Encoder(folder, 7).encode(CAPTIONS)
    other = T5Encoder(folder, 7)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        apart = [other.encode([caption]) for caption in reversed(CAPTIONS)]
    assert torch.equal(whole.embeddings, torch.cat([text.embeddings for text in reversed(apart)]))
    again = other.encode(CAPTIONS).embeddings  # kept from inference mode, and yet good for training
    weight = torch.ones(12, requires_grad=True)
    (again @ weight).sum().backward()
    assert weight.grad.any()


def test_encoders_are_frozen_and_told_apart(folder, tmp_path):
    encoder = T5Encoder(folder, 7).train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    write_t5(tmp_path / "other", seed=1)
    prints = [encoder, T5Encoder(folder, 8), T5Encoder(tmp_path / "other", 7), T5Encoder(folder, 7, "bfloat16")]
    assert len({one.fingerprint() for one in prints}) == 4
    assert encoder.fingerprint() == T5Encoder(folder, 7).fingerprint()
    assert encoder.fingerprint().startswith("t5-")


def test_a_pipelines_folder_is_one(tmp_path):
    write_t5(tmp_path / "latte", pipeline=True)
    assert T5Encoder(tmp_path / "latte").width == 12


def test_cut_captions_are_told_once(folder, caplog):
    encoder = T5Encoder(folder, 7)
    encoder.encode(CAPTIONS)
    encoder.encode(["a a a a a a a a a"])
    assert [record.getMessage() for record in caplog.records] == [
        "captions are cut to 7 tokens, the first of them: a red square moves right left right left"
    ]


@pytest.mark.parametrize(
    ("source", "said"), [("nothing", "is no folder; give a folder"), ("", "holds no text encoder")]
)
def test_a_wrong_source_is_one_line(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=said) as error:
        T5Encoder(source or tmp_path)
    assert "\n" not in str(error.value)


def test_the_small_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(MiniLMEncoder, "package", "no_such_package")
    with pytest.raises(FileNotFoundError, match=r"pip install 'latte_pl\[text\]'"):
        MiniLMEncoder()


@pytest.mark.skipif(importlib.util.find_spec(MiniLMEncoder.package) is None, reason="needs the extra [text]")
def test_the_small_encoder_tells_captions_apart():
    encoder = MiniLMEncoder(length=12)
    text = encoder.encode(["a red square moves left", "a red square moves right", "an orange ring circles clockwise"])
    assert text.embeddings.shape == (3, 12, encoder.width) == (3, 12, 384)
    assert text.mask.sum(dim=1).tolist() == [7, 7, 7]
    left, right = text.embeddings[:2]
    assert (left - right)[5].norm() > (left - right)[2].norm()  # the word that differs, more than its neighbours


def test_rows_are_padded_to_the_length():
    text = Text.padded([torch.ones(2, 3), torch.ones(4, 3), torch.ones(0, 3)], 4)
    assert text.mask.sum(dim=1).tolist() == [2, 4, 0]
    assert torch.equal(text.embeddings, text.mask[..., None].expand(3, 4, 3).float())
