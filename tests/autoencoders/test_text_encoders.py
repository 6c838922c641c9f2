"""Text encoders: a tiny T5 in a folder, and MiniLM of the hub."""

import pytest
import torch
from fake_text import write_t5

from latte_pl.autoencoders import MiniLMEncoder, T5Encoder
from latte_pl.types import Text

CAPTIONS = ["a red square moves left", "a blue star", "", "a red square moves right left right left"]


@pytest.fixture
def folder(tmp_path):
    write_t5(tmp_path / "t5")
    return tmp_path / "t5"


def test_embeddings_match_the_transformer(tmp_path):
    model = write_t5(tmp_path).eval()
    text = T5Encoder(tmp_path, length=7).encode(CAPTIONS)
    assert text.embeddings.shape == (4, 7, 12)
    assert text.embeddings.dtype == torch.float32
    assert text.mask.tolist() == [[True] * n + [False] * (7 - n) for n in (6, 4, 1, 7)]
    assert not text.embeddings[~text.mask].any()
    ids = torch.tensor([[3, 4, 6, 8, 9, 1]])
    torch.testing.assert_close(text.embeddings[0, :6], model(input_ids=ids).last_hidden_state[0])
    cut = torch.tensor([[3, 4, 6, 8, 10, 9, 1]])  # a truncated caption ends with </s>, too
    torch.testing.assert_close(text.embeddings[3], model(input_ids=cut).last_hidden_state[0])
    padded = model(input_ids=torch.tensor([[3, 5, 7, 1, 0, 0]]), attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]))
    torch.testing.assert_close(text.embeddings[1, :4], padded.last_hidden_state[0, :4])


def test_embeddings_do_not_depend_on_batch_or_autocast(folder):
    whole = T5Encoder(folder, 7).encode(CAPTIONS)
    other = T5Encoder(folder, 7)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        apart = [other.encode([caption]) for caption in reversed(CAPTIONS)]
    assert torch.equal(whole.embeddings, torch.cat([text.embeddings for text in reversed(apart)]))
    again = other.encode(CAPTIONS).embeddings  # cached in inference mode, usable for training
    weight = torch.ones(12, requires_grad=True)
    (again @ weight).sum().backward()
    assert weight.grad.any()


def test_encoders_are_frozen_and_have_different_fingerprints(folder, tmp_path):
    encoder = T5Encoder(folder, 7).train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    write_t5(tmp_path / "other", seed=1)
    prints = [encoder, T5Encoder(folder, 8), T5Encoder(tmp_path / "other", 7), T5Encoder(folder, 7, "bfloat16")]
    assert len({one.fingerprint() for one in prints}) == 4
    assert encoder.fingerprint() == T5Encoder(folder, 7).fingerprint()
    assert encoder.fingerprint().startswith("t5-")


def test_constructor_arguments_are_attributes(folder):
    encoder = T5Encoder(folder, 7, "bfloat16")
    assert (encoder.source, encoder.length, encoder.dtype) == (str(folder), 7, "bfloat16")
    assert encoder.model.dtype == torch.bfloat16
    assert encoder.tokens("a red square").dtype == torch.float32


def test_pipeline_folder_is_accepted(tmp_path):
    write_t5(tmp_path / "latte", pipeline=True)
    assert T5Encoder(tmp_path / "latte").width == 12


def test_truncated_captions_are_reported_once(folder, caplog):
    encoder = T5Encoder(folder, 7)
    encoder.encode(CAPTIONS)
    encoder.encode(["a a a a a a a a a"])
    assert [record.getMessage() for record in caplog.records] == [
        "captions are truncated to 7 tokens; the first one is 'a red square moves right left right left'"
    ]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing", "is not a folder; use a folder or a Hub name like"),
        ("", "contains no text encoder; it needs config"),
    ],
)
def test_wrong_source_is_reported_in_one_line(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=said) as error:
        T5Encoder(source or tmp_path)
    assert "\n" not in str(error.value)


def test_absence_of_transformers_is_reported_with_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'latte_pl\[text\]'"):
        T5Encoder(folder)


@pytest.mark.network
def test_minilm_embeddings_differ_where_captions_differ():
    encoder = MiniLMEncoder(length=12)
    assert MiniLMEncoder().fingerprint() == "all-MiniLM-L6-v2-013f8a824577"  # caption caches on disk contain it
    text = encoder.encode(["a red square moves left", "a red square moves right", "an orange ring circles clockwise"])
    assert text.embeddings.shape == (3, 12, encoder.width) == (3, 12, 384)
    assert text.mask.sum(dim=1).tolist() == [7, 7, 7]
    left, right = text.embeddings[:2]
    assert (left - right)[5].norm() > (left - right)[2].norm()  # most at the word that differs


def test_captions_are_padded_to_length():
    text = Text.padded([torch.ones(2, 3), torch.ones(4, 3), torch.ones(0, 3)], 4)
    assert text.mask.sum(dim=1).tolist() == [2, 4, 0]
    assert torch.equal(text.embeddings, text.mask[..., None].expand(3, 4, 3).float())
