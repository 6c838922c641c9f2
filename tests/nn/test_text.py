"""Captions in the net: what they reach, what padding does not, and the caption that says nothing."""

from typing import get_args

import pytest
import torch
from test_latte import FRAMES, IMAGES, LABELS, TEXT, TIMESTEPS, TINY, latents, randomise, tiny

from latte_pl.nn import Latte
from latte_pl.nn.text import CrossAttention
from latte_pl.types import Injection, Text, Variant

CLIP = Text(TEXT.embeddings[:, 0], TEXT.mask[:, 0])
VARIANTS = get_args(Variant)


def reader(**arguments) -> Latte:
    return tiny(conditioning="text", **arguments)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # two kernels
def test_masked_tokens_are_not_seen(variant, dtype):
    net = reader(variant=variant).to(dtype)
    x = latents(FRAMES + IMAGES).to(dtype)
    out = net(x, TIMESTEPS, text=TEXT, num_images=IMAGES)
    noise = 100 * torch.randn(TEXT.embeddings.shape, generator=torch.Generator().manual_seed(3))
    hidden = torch.where(TEXT.mask[..., None], TEXT.embeddings, noise)
    assert torch.equal(net(x, TIMESTEPS, text=Text(hidden, TEXT.mask), num_images=IMAGES), out)
    seen = torch.where(TEXT.mask[..., None], noise, TEXT.embeddings)
    assert not torch.allclose(net(x, TIMESTEPS, text=Text(seen, TEXT.mask), num_images=IMAGES), out, atol=1e-3)


def test_padding_does_not_matter():
    net, x = reader(), latents()
    out = net(x, TIMESTEPS, text=CLIP)
    longer = Text(
        torch.nn.functional.pad(CLIP.embeddings, (0, 0, 0, 4), value=9.0), torch.nn.functional.pad(CLIP.mask, (0, 4))
    )
    torch.testing.assert_close(net(x, TIMESTEPS, text=longer), out)
    shorter = Text(CLIP.embeddings[:, :3], CLIP.mask[:, :3])
    torch.testing.assert_close(net(x, TIMESTEPS, text=shorter), out)


@pytest.mark.parametrize("injection", get_args(Injection))
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_clip_and_each_image_read_their_own_caption(variant, injection):
    net = reader(variant=variant, injection=injection, token_placement="both")
    x = latents(FRAMES + IMAGES)
    together = net(x, TIMESTEPS, text=TEXT, num_images=IMAGES)
    torch.testing.assert_close(together[:, :FRAMES], net(x[:, :FRAMES], TIMESTEPS, text=CLIP))
    for i in range(IMAGES):
        keep, captions = [*range(FRAMES), FRAMES + i], [0, 1 + i]
        text = Text(TEXT.embeddings[:, captions], TEXT.mask[:, captions])
        alone = net(x[:, keep], TIMESTEPS, text=text, num_images=1)
        torch.testing.assert_close(together[:, FRAMES + i], alone[:, FRAMES])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_null_caption_is_the_learned_token_alone(dtype):
    net, x = reader().to(dtype), latents().to(dtype)
    null = net.null_text(CLIP)
    out = net(x, TIMESTEPS, text=null)
    assert out.isfinite().all()
    assert torch.equal(net(x, TIMESTEPS, text=null._replace(embeddings=CLIP.embeddings + 1)), out)
    captioned = net(x, TIMESTEPS, text=CLIP)
    assert not torch.allclose(out, captioned, atol=1e-3)
    with torch.no_grad():
        net.text_embedder.null.add_(1.0)
    assert not torch.allclose(net(x, TIMESTEPS, text=null), out, atol=1e-3)
    assert torch.equal(net(x, TIMESTEPS, text=CLIP), captioned)  # a caption does not see it


def test_every_parameter_takes_part_with_and_without_captions():
    net, x = reader(), latents()
    net(x, TIMESTEPS, text=CLIP).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []  # else DDP would wait for ever
    assert net.text_embedder.mlp[0].weight.grad.any()
    assert not net.text_embedder.null.grad.any()
    net.zero_grad()
    net(x, TIMESTEPS, text=net.null_text(CLIP)).square().mean().backward()
    assert net.text_embedder.null.grad.any()


def test_a_new_model_starts_as_one_without_captions():
    plain, net = (Latte(**TINY, conditioning=conditioning) for conditioning in ("none", "text"))
    for model in (plain, net):
        model.init_weights(seed=5)
    states = plain.state_dict(), net.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[1]["text_embedder.null"].std().item() == pytest.approx(0.02, rel=0.4)
    with torch.no_grad():
        for model in (plain, net):  # or everything is zero
            randomise(model.final_layer)
            for block in model.blocks:
                randomise(block.adaLN_modulation)
    x = latents()
    assert torch.equal(plain(x, TIMESTEPS), net(x, TIMESTEPS, text=CLIP))


def test_compiled_and_checkpointed_blocks_compute_the_same():
    x, grads = latents(FRAMES + IMAGES), []
    for change in ("", "compiled", "checkpointed"):
        net = reader(variant="split_attention", activation_checkpointing=change == "checkpointed")
        if change == "compiled":
            net.compile_blocks(backend="aot_eager")
        net(x, TIMESTEPS, text=TEXT, num_images=IMAGES).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            torch.testing.assert_close(other[name], grad, msg=name)


def test_captions_enter_where_there_is_spatial_attention():
    for variant in VARIANTS:
        net = reader(variant=variant)
        assert [block.cross_attn is not None for block in net.blocks] == {
            "interleaved": [True, False, True, False],
            "late_fusion": [True, True, False, False],
        }.get(variant, [True] * 4)


def test_attention_to_two_tokens_is_their_weighted_mean():
    layer = CrossAttention(4, 1)
    with torch.no_grad():
        layer.q.weight.copy_(torch.eye(4))
        layer.kv.weight.copy_(torch.cat([torch.eye(4), 2 * torch.eye(4)]))
        layer.proj.weight.copy_(torch.eye(4))
        for linear in (layer.q, layer.kv, layer.proj):
            linear.bias.zero_()
        x = torch.zeros(1, 2, 3, 4)
        x[..., 0] = torch.arange(6.0).view(2, 3)
        tokens = torch.tensor([[[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]]])
        out = layer(x, Text(tokens, torch.tensor([[[True, True, False]]])), 2)
    first = torch.sigmoid(x[..., 0] / 2)  # softmax of (x / sqrt 4, 0)
    torch.testing.assert_close(out, torch.stack([2 * first, 2 - 2 * first, 0 * first, 0 * first], dim=-1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text-conditional: give text, net.null_text"),
        (Text(CLIP.embeddings[:1], CLIP.mask[:1]), r"must be \(2, L, 6\).*got \(1, 5, 6\)"),
        (Text(CLIP.embeddings[..., :5], CLIP.mask), r"must be \(2, L, 6\).*got \(2, 5, 5\)"),
        (TEXT, r"must be \(2, L, 6\).*got \(2, 3, 5, 6\)"),
        (Text(CLIP.embeddings, CLIP.mask[:, :4]), r"mask must be bool of shape \(2, 5\)"),
        (Text(CLIP.embeddings, CLIP.mask.long()), r"mask must be bool .* got torch.int64"),
    ],
)
def test_wrong_captions_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        reader()(latents(), TIMESTEPS, LABELS[:, 0], text)
    assert "\n" not in str(error.value)


def test_the_width_of_the_encoder_is_needed():
    with pytest.raises(ValueError, match="needs text_dim"):
        Latte(**(TINY | {"text_dim": 0}), conditioning="text")
