"""What each layer of later transformers promises, and that a model without them has none of their parameters."""

from typing import get_args

import pytest
import torch
from test_latte import FRAMES, IMAGES, LABELS, RECIPE, TIMESTEPS, latents, randomise, tiny
from torch import nn

from latte_pl.nn import Latte, latte
from latte_pl.nn.perceptron import SwiGLU, perceptron
from latte_pl.types import Injection, Variant


def test_a_gated_perceptron_is_its_formula():
    torch.manual_seed(0)
    mlp = SwiGLU(16, 48).double()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    value, gate = hidden[..., :32], hidden[..., 32:]
    expected = (value * gate / (1 + torch.exp(-gate))) @ mlp.fc2.weight.T + mlp.fc2.bias
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("size", latte.SIZES)
@pytest.mark.parametrize("mlp_ratio", [2.0, 4.0])
def test_a_gated_perceptron_is_as_large_as_the_one_it_replaces(size, mlp_ratio):
    width = latte.SIZES[size][0]
    with torch.device("meta"):
        plain, gated = (perceptron(width, mlp_ratio, swiglu) for swiglu in (False, True))
    counts = [sum(p.numel() for p in mlp.parameters()) for mlp in (plain, gated)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
    assert gated.fc2.in_features % 8 == 0
    assert plain.state_dict().keys() == gated.state_dict().keys()


@pytest.mark.parametrize("injection", get_args(Injection))
@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_norm_ignores_the_scale_and_sees_the_mean(variant, injection):
    net = tiny(variant=variant, injection=injection, rms_norm=True)
    assert not any(isinstance(module, nn.LayerNorm) for module in net.modules())
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.RMSNorm)}
    assert len(norms) == 1 + net.depth * (3 if variant == "split_attention" else 2)
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1))
    for norm in norms.values():
        out = norm(x)
        scale = norm.weight if injection == "tokens" else 1.0
        torch.testing.assert_close(out, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale)
        torch.testing.assert_close(norm(9 * x), out, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(norm(x + 1), out, atol=0.01)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_places_are_known_by_their_differences_alone(variant, monkeypatch):
    """A frame of other coordinates is the same frame; with all places at one, rolled patches give rolled outputs."""
    net, x = tiny(variant=variant, spatial_position="rope"), latents(FRAMES + IMAGES)
    made = latte.rotary_phases_2d

    def out(x, by):
        monkeypatch.setattr(latte, "rotary_phases_2d", lambda rows, columns, *rest: made(*by(rows, columns), *rest))
        return net(x, TIMESTEPS, LABELS, num_images=IMAGES)

    known = out(x, lambda rows, columns: (rows, columns))
    torch.testing.assert_close(out(x, lambda rows, columns: (rows + 5, columns + 2)), known)
    for blind in (lambda r, c: (0 * r, c), lambda r, c: (r, 0 * c)):  # both axes are read
        assert not torch.allclose(out(x, blind), known, atol=1e-4)
    rolled = x.roll((2, 2), dims=(3, 4))  # by one patch
    assert not torch.allclose(
        out(rolled, lambda rows, columns: (rows, columns)), known.roll((2, 2), dims=(3, 4)), atol=1e-4
    )
    nowhere = [out(latent, lambda rows, columns: (0 * rows, 0 * columns)) for latent in (x, rolled)]
    torch.testing.assert_close(nowhere[1], nowhere[0].roll((2, 2), dims=(3, 4)))


@pytest.mark.parametrize("variant", ["interleaved", "split_heads"])
def test_condition_tokens_stay_unturned_and_patches_turn_by_their_place(variant):
    net, seen = tiny(variant=variant, injection="tokens", token_placement="both", **RECIPE), []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[1].spatial_phases))
    net(latents(FRAMES), TIMESTEPS, LABELS[:, 0])
    cosines, sines = seen[0]
    assert cosines.shape == (2 + 2 * 3, net.head_dim // 2)  # timestep and label, then a grid of 2 x 3
    assert torch.equal(cosines[:2], torch.ones_like(cosines[:2]))
    assert torch.equal(sines[:2], torch.zeros_like(sines[:2]))
    quarter = net.head_dim // 4
    for place in range(6):
        row, column = divmod(place, 3)
        first = sines[2 + place, 0], sines[2 + place, quarter]  # of frequency 1
        torch.testing.assert_close(torch.stack(first), torch.tensor([column, row]).float().sin())


@pytest.mark.parametrize("variant", get_args(Variant))
def test_a_recipe_adds_the_scales_of_queries_and_keys_and_no_other_name(variant):
    plain, recipe = tiny(variant=variant), tiny(variant=variant, **RECIPE)
    added = recipe.state_dict().keys() - plain.state_dict().keys()
    assert {name.rpartition("attn")[2].partition(".")[2] for name in added} == {"q_norm.weight", "k_norm.weight"}
    assert not plain.state_dict().keys() - recipe.state_dict().keys()
    heads = sum(name.endswith("qkv.weight") for name in plain.state_dict())
    assert len(added) == 2 * heads
    recipe.init_weights(seed=3)
    plain.init_weights(seed=3)
    for name, value in recipe.state_dict().items():
        if name in added:
            assert torch.equal(value, torch.ones(recipe.head_dim))
        elif ".mlp." not in name or value.ndim == 1:  # a perceptron has other shapes
            assert torch.equal(value, plain.state_dict()[name]) or not value.any()


@pytest.mark.parametrize("flag", RECIPE)
def test_each_layer_changes_the_function_alone(flag):
    x, labels = latents(), LABELS[:, 0]
    plain, other = tiny(), tiny(**{flag: RECIPE[flag]})
    state = {name: value for name, value in plain.state_dict().items() if value.shape == other.state_dict()[name].shape}
    other.load_state_dict(state, strict=False)
    assert not torch.allclose(plain(x, TIMESTEPS, labels), other(x, TIMESTEPS, labels), atol=1e-4)


def test_scores_stay_bounded_however_large_the_activations():
    """In half precision a query of 1e5 times the scale would overflow the score; normed ones cannot."""
    net = randomise(Latte(hidden_size=32, depth=2, num_heads=4, input_size=(4, 6), num_frames=4, qk_norm=True))
    with torch.no_grad():
        for block in net.blocks:
            block.attn.qkv.weight[:64] *= 1e4
            block.attn.q_norm.weight.fill_(1.0)
            block.attn.k_norm.weight.fill_(1.0)
    scores = []
    block = net.blocks[0]
    block.attn.register_forward_pre_hook(lambda module, args: scores.append(module.products(args[0])[:2]))
    net(latents(), TIMESTEPS)
    query, key = scores[0]
    assert (torch.einsum("bfshd,bfthd->bfhst", query, key) / 8**0.5).abs().max() <= 8**0.5 * 1.001
