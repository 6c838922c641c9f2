"""Optional layers of the blocks: SwiGLU, RMSNorm, QK-norm and RoPE in space."""

import pytest
import torch
from test_latte import CHOICES, FRAMES, IMAGES, LABELS, LAYERS, TIMESTEPS, latents, randomise, tiny
from torch import nn

from latte_pl.nn import Latte, latte
from latte_pl.nn.mlp import SwiGLU, mlp


def test_swiglu_matches_its_formula():
    torch.manual_seed(0)
    layer = SwiGLU(16, 48).double()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    value, gate = hidden[..., :32], hidden[..., 32:]
    expected = (value * gate / (1 + torch.exp(-gate))) @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("size", latte.SIZES)
@pytest.mark.parametrize("mlp_ratio", [2.0, 4.0])
def test_swiglu_has_the_parameters_of_the_mlp_that_it_replaces(size, mlp_ratio):
    width = latte.SIZES[size][0]
    with torch.device("meta"):
        plain, gated = (mlp(width, mlp_ratio, swiglu) for swiglu in (False, True))
    counts = [sum(p.numel() for p in layer.parameters()) for layer in (plain, gated)]
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
    assert gated.fc2.in_features % 8 == 0
    assert plain.state_dict().keys() == gated.state_dict().keys()


@pytest.mark.parametrize("injection", CHOICES["injection"])
@pytest.mark.parametrize("variant", CHOICES["variant"])
def test_rms_norm_replaces_all_layer_norms(variant, injection):
    net = tiny(variant=variant, injection=injection, rms_norm=True)
    assert not any(isinstance(module, nn.LayerNorm) for module in net.modules())
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.RMSNorm)}
    assert len(norms) == 1 + net.config.depth * (3 if variant == "split_attention" else 2)
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1))
    for norm in norms.values():
        out = norm(x)
        scale = norm.weight if injection == "tokens" else 1.0
        torch.testing.assert_close(out, x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale)
        torch.testing.assert_close(norm(9 * x), out, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(norm(x + 1), out, atol=0.01)


@pytest.mark.parametrize("variant", CHOICES["variant"])
def test_spatial_rope_encodes_only_relative_positions(variant, monkeypatch):
    """A shift of all positions changes nothing; with equal positions, the model is equivariant to rolled patches."""
    net, x = tiny(variant=variant, spatial_position="rope"), latents(FRAMES + IMAGES)
    rotary_2d = latte.rotary_2d

    def out(x, by):
        monkeypatch.setattr(latte, "rotary_2d", lambda rows, columns, *rest: rotary_2d(*by(rows, columns), *rest))
        return net(x, TIMESTEPS, LABELS, num_images=IMAGES)

    expected = out(x, lambda rows, columns: (rows, columns))
    torch.testing.assert_close(out(x, lambda rows, columns: (rows + 5, columns + 2)), expected)
    for one_axis in (lambda r, c: (0 * r, c), lambda r, c: (r, 0 * c)):  # both axes matter
        assert not torch.allclose(out(x, one_axis), expected, atol=1e-4)
    rolled = x.roll((2, 2), dims=(3, 4))  # by one patch
    assert not torch.allclose(
        out(rolled, lambda rows, columns: (rows, columns)), expected.roll((2, 2), dims=(3, 4)), atol=1e-4
    )
    without = [out(latent, lambda rows, columns: (0 * rows, 0 * columns)) for latent in (x, rolled)]
    torch.testing.assert_close(without[1], without[0].roll((2, 2), dims=(3, 4)))


@pytest.mark.parametrize("variant", ["interleaved", "split_heads"])
def test_condition_tokens_are_not_rotated_and_patches_are_rotated_by_their_position(variant):
    net, tables = tiny(variant=variant, injection="tokens", token_placement="both", **LAYERS), []
    net.blocks[0].register_forward_pre_hook(lambda module, args: tables.append(args[1].spatial_rotary))
    net(latents(FRAMES), TIMESTEPS, LABELS[:, 0])
    cos, sin = tables[0]
    assert cos.shape == (2 + 2 * 3, net.config.head_dim // 2)  # timestep and label, then a grid of 2 x 3
    assert torch.equal(cos[:2], torch.ones_like(cos[:2]))
    assert torch.equal(sin[:2], torch.zeros_like(sin[:2]))
    quarter = net.config.head_dim // 4
    for patch in range(6):
        row, column = divmod(patch, 3)
        first = sin[2 + patch, 0], sin[2 + patch, quarter]  # of frequency 1
        torch.testing.assert_close(torch.stack(first), torch.tensor([column, row]).float().sin())


@pytest.mark.parametrize("variant", CHOICES["variant"])
def test_optional_layers_add_only_the_scales_of_queries_and_keys(variant):
    plain, modern = tiny(variant=variant), tiny(variant=variant, **LAYERS)
    added = modern.state_dict().keys() - plain.state_dict().keys()
    assert {name.rpartition("attn")[2].partition(".")[2] for name in added} == {"q_norm.weight", "k_norm.weight"}
    assert not plain.state_dict().keys() - modern.state_dict().keys()
    heads = sum(name.endswith("qkv.weight") for name in plain.state_dict())
    assert len(added) == 2 * heads
    modern.init_weights(seed=3)
    plain.init_weights(seed=3)
    for name, value in modern.state_dict().items():
        if name in added:
            assert torch.equal(value, torch.ones(modern.config.head_dim))
        elif ".mlp." not in name or value.ndim == 1:  # the MLP has other shapes
            assert torch.equal(value, plain.state_dict()[name]) or not value.any()


@pytest.mark.parametrize("name", LAYERS)
def test_each_optional_layer_changes_the_output(name):
    x, labels = latents(), LABELS[:, 0]
    plain, other = tiny(), tiny(**{name: LAYERS[name]})
    state = {key: value for key, value in plain.state_dict().items() if value.shape == other.state_dict()[key].shape}
    other.load_state_dict(state, strict=False)
    assert not torch.allclose(plain(x, TIMESTEPS, labels), other(x, TIMESTEPS, labels), atol=1e-4)


def test_qk_norm_bounds_the_attention_scores():
    """Queries and keys that are 1e4 times larger would overflow the scores in half precision without it."""
    net = randomise(Latte(hidden_size=32, depth=2, num_heads=4, input_size=(4, 6), num_frames=4, qk_norm=True))
    with torch.no_grad():
        for block in net.blocks:
            block.attn.qkv.weight[:64] *= 1e4
            block.attn.q_norm.weight.fill_(1.0)
            block.attn.k_norm.weight.fill_(1.0)
    projections = []
    block = net.blocks[0]
    block.attn.register_forward_pre_hook(lambda module, args: projections.append(module.qkv_projections(args[0])[:2]))
    net(latents(), TIMESTEPS)
    query, key = projections[0]
    assert (torch.einsum("bfshd,bfthd->bfhst", query, key) / 8**0.5).abs().max() <= 8**0.5 * 1.001
