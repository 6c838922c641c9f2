"""Text conditioning: captions of clip and images, masked tokens, and the null caption."""

import pytest
import torch
from test_latte import CHOICES, FRAMES, IMAGES, LABELS, TEXT, TIMESTEPS, TINY, latents, randomise, tiny

from latte_pl.nn import Latte
from latte_pl.types import Text

CLIP = Text(TEXT.embeddings[:, 0], TEXT.mask[:, 0])


def text_net(**options) -> Latte:
    return tiny(conditioning="text", **options)


@pytest.mark.parametrize("variant", CHOICES["variant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # two attention kernels
def test_masked_tokens_are_ignored(variant, dtype):
    net = text_net(variant=variant).to(dtype)
    x = latents(FRAMES + IMAGES).to(dtype)
    out = net(x, TIMESTEPS, text=TEXT, num_images=IMAGES)
    noise = 100 * torch.randn(TEXT.embeddings.shape, generator=torch.Generator().manual_seed(3))
    masked = torch.where(TEXT.mask[..., None], TEXT.embeddings, noise)
    assert torch.equal(net(x, TIMESTEPS, text=Text(masked, TEXT.mask), num_images=IMAGES), out)
    visible = torch.where(TEXT.mask[..., None], noise, TEXT.embeddings)
    assert not torch.allclose(net(x, TIMESTEPS, text=Text(visible, TEXT.mask), num_images=IMAGES), out, atol=1e-3)


def test_padding_has_no_effect():
    net, x = text_net(), latents()
    out = net(x, TIMESTEPS, text=CLIP)
    longer = Text(
        torch.nn.functional.pad(CLIP.embeddings, (0, 0, 0, 4), value=9.0), torch.nn.functional.pad(CLIP.mask, (0, 4))
    )
    torch.testing.assert_close(net(x, TIMESTEPS, text=longer), out)
    shorter = Text(CLIP.embeddings[:, :3], CLIP.mask[:, :3])
    torch.testing.assert_close(net(x, TIMESTEPS, text=shorter), out)


@pytest.mark.parametrize("injection", CHOICES["injection"])
@pytest.mark.parametrize("variant", CHOICES["variant"])
def test_clip_and_images_attend_to_their_own_captions(variant, injection):
    net = text_net(variant=variant, injection=injection, token_placement="both")
    x = latents(FRAMES + IMAGES)
    together = net(x, TIMESTEPS, text=TEXT, num_images=IMAGES)
    torch.testing.assert_close(together[:, :FRAMES], net(x[:, :FRAMES], TIMESTEPS, text=CLIP))
    for i in range(IMAGES):
        keep, captions = [*range(FRAMES), FRAMES + i], [0, 1 + i]
        text = Text(TEXT.embeddings[:, captions], TEXT.mask[:, captions])
        alone = net(x[:, keep], TIMESTEPS, text=text, num_images=1)
        torch.testing.assert_close(together[:, FRAMES + i], alone[:, FRAMES])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_null_caption_is_the_learned_token(dtype):
    net, x = text_net().to(dtype), latents().to(dtype)
    null = net.null_text(CLIP)
    out = net(x, TIMESTEPS, text=null)
    assert out.isfinite().all()
    assert torch.equal(net(x, TIMESTEPS, text=null._replace(embeddings=CLIP.embeddings + 1)), out)
    captioned = net(x, TIMESTEPS, text=CLIP)
    assert not torch.allclose(out, captioned, atol=1e-3)
    with torch.no_grad():
        net.text_embedder.null.add_(1.0)
    assert not torch.allclose(net(x, TIMESTEPS, text=null), out, atol=1e-3)
    assert torch.equal(net(x, TIMESTEPS, text=CLIP), captioned)  # captions do not attend to it


def test_all_parameters_have_gradients_with_and_without_captions():
    net, x = text_net(), latents()
    net(x, TIMESTEPS, text=CLIP).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []  # DDP would hang on unused parameters
    assert net.text_embedder.mlp[0].weight.grad.any()
    assert not net.text_embedder.null.grad.any()
    net.zero_grad()
    net(x, TIMESTEPS, text=net.null_text(CLIP)).square().mean().backward()
    assert net.text_embedder.null.grad.any()


def test_new_text_model_equals_the_unconditional_model():
    plain, net = (Latte(**TINY, conditioning=conditioning) for conditioning in ("none", "text"))
    for model in (plain, net):
        model.init_weights(seed=5)
    states = plain.state_dict(), net.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert states[1]["text_embedder.null"].std().item() == pytest.approx(0.02, rel=0.4)
    with torch.no_grad():
        for model in (plain, net):  # otherwise all outputs are zero
            randomise(model.final_layer)
            for block in model.blocks:
                randomise(block.adaLN_modulation)
    x = latents()
    assert torch.equal(plain(x, TIMESTEPS), net(x, TIMESTEPS, text=CLIP))


def test_compiled_and_checkpointed_blocks_compute_the_same_gradients():
    x, grads = latents(FRAMES + IMAGES), []
    for change in ("", "compiled", "checkpointed"):
        net = text_net(variant="split_attention", activation_checkpointing=change == "checkpointed")
        if change == "compiled":
            net.compile_blocks(backend="aot_eager")
        net(x, TIMESTEPS, text=TEXT, num_images=IMAGES).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            torch.testing.assert_close(other[name], grad, msg=name)


def test_blocks_with_spatial_attention_have_cross_attention():
    for variant in CHOICES["variant"]:
        net = text_net(variant=variant)
        assert [block.cross_attn is not None for block in net.blocks] == {
            "interleaved": [True, False, True, False],
            "late_fusion": [True, True, False, False],
        }.get(variant, [True] * 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text-conditional: pass text, or net.null_text"),
        (Text(CLIP.embeddings[:1], CLIP.mask[:1]), r"must have the shape \(2, L, 6\).*got \(1, 5, 6\)"),
        (Text(CLIP.embeddings[..., :5], CLIP.mask), r"must have the shape \(2, L, 6\).*got \(2, 5, 5\)"),
        (TEXT, r"must have the shape \(2, L, 6\).*got \(2, 3, 5, 6\)"),
        (Text(CLIP.embeddings, CLIP.mask[:, :4]), r"mask must be bool of shape \(2, 5\)"),
        (Text(CLIP.embeddings, CLIP.mask.long()), r"mask must be bool .* got torch.int64"),
    ],
)
def test_wrong_captions_raise_a_one_line_error(text, message):
    with pytest.raises(ValueError, match=message) as error:
        text_net()(latents(), TIMESTEPS, LABELS[:, 0], text)
    assert "\n" not in str(error.value)


def test_text_conditioning_needs_the_width_of_the_text_encoder():
    with pytest.raises(ValueError, match="needs text_dim"):
        Latte(**(TINY | {"text_dim": 0}), conditioning="text")
