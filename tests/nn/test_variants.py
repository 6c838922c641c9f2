"""Arrangements of the blocks: what sees what, and the formulas of the split blocks."""

import pytest
import torch

from latte_pl.nn import Latte
from latte_pl.nn.variants import (
    Context,
    SpatialBlock,
    SplitAttentionBlock,
    SplitHeadsBlock,
    TemporalBlock,
    arrangement,
)

BLOCKS = [SpatialBlock, TemporalBlock, SplitAttentionBlock, SplitHeadsBlock]
FRAMES, IMAGES = 4, 2


def make(kind, injection="adaln"):
    torch.manual_seed(0)
    block = kind(16, 4, 2.0, injection).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    condition = torch.randn(2, 1, 16, dtype=torch.float64) if injection == "adaln" else None
    return block, Context(condition, FRAMES, None)


def activations(num_frames=FRAMES):
    return torch.randn(2, num_frames, 6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def spread(block, context, x, frame, place):
    """Tell which frames and which places of the output change with one token of the input."""
    other = x.clone()
    other[:, frame, place] *= -1
    changed = (block(x, context) - block(other, context)).abs().amax(dim=(0, 3)) > 1e-9  # (F, S)
    return changed.any(1), changed.any(0)


@pytest.mark.parametrize("injection", ["adaln", "tokens"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_who_sees_whom(kind, injection):
    block, context = make(kind, injection)
    frames, places = spread(block, context, activations(), frame=1, place=2)
    assert places.tolist() == ([i == 2 for i in range(6)] if kind is TemporalBlock else [True] * 6)
    assert frames.tolist() == ([i == 1 for i in range(4)] if kind is SpatialBlock else [True] * 4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_images_and_clip_never_mix(kind):
    block, context = make(kind)
    x = activations(FRAMES + IMAGES)
    frames, _ = spread(block, context, x, frame=FRAMES, place=0)
    assert frames[:FRAMES].tolist() == [False] * FRAMES
    assert frames[FRAMES + 1].item() is False
    frames, _ = spread(block, context, x, frame=0, place=0)
    assert frames[FRAMES:].tolist() == [False] * IMAGES
    torch.testing.assert_close(block(x, context)[:, :FRAMES], block(x[:, :FRAMES], context))


@pytest.mark.parametrize("kind", BLOCKS)
def test_permuted_frames_give_permuted_outputs(kind):
    block, context = make(kind)
    order, x = torch.tensor([2, 0, 3, 1]), activations()
    torch.testing.assert_close(block(x[:, order], context), block(x, context)[:, order])


@pytest.mark.parametrize("kind", BLOCKS)
def test_gates_of_zero_make_the_identity(kind):
    block, context = make(kind)
    with torch.no_grad():
        for vector in (2, 5):
            block.adaLN_modulation[1].weight[16 * vector : 16 * (vector + 1)] = 0
            block.adaLN_modulation[1].bias[16 * vector : 16 * (vector + 1)] = 0
    x = activations(FRAMES + IMAGES)
    assert torch.equal(block(x, context), x)


def test_split_heads_is_the_sum_of_both_attentions_on_one_norm():
    block, context = make(SplitHeadsBlock)
    x = activations()
    vectors = block.adaLN_modulation(context.condition)[:, None].chunk(6, dim=-1)
    h = torch.layer_norm(x, (16,), eps=1e-6) * (1 + vectors[1]) + vectors[0]
    x2 = x + vectors[2] * (block.attn(h) + block.attn_temporal(h))
    h2 = torch.layer_norm(x2, (16,), eps=1e-6) * (1 + vectors[4]) + vectors[3]
    torch.testing.assert_close(block(x, context), x2 + vectors[5] * block.mlp(h2))
    assert block.attn.num_heads == block.attn_temporal.num_heads == 2  # half of 4


def test_split_attention_is_spatial_then_temporal_under_one_modulation():
    block, context = make(SplitAttentionBlock)
    spatial, temporal = make(SpatialBlock)[0], make(TemporalBlock)[0]
    state = block.state_dict()
    spatial.load_state_dict({key: value for key, value in state.items() if "temporal" not in key})
    shared = {key: value for key, value in state.items() if not key.startswith("attn")}
    attention = {
        key.replace("attn_temporal", "attn"): value for key, value in state.items() if key.startswith("attn_temporal")
    }
    temporal.load_state_dict(shared | attention)
    with torch.no_grad():  # the perceptron runs once, in the temporal half
        for vector in (spatial.adaLN_modulation[1].weight, spatial.adaLN_modulation[1].bias):
            vector[80:] = 0
    x = activations()
    torch.testing.assert_close(block(x, context), temporal(spatial(x, context), context))


@pytest.mark.parametrize("depth", [4, 5])
def test_late_fusion_is_interleaved_with_the_spatial_blocks_first(depth):
    interleaved, late = arrangement("interleaved", depth), arrangement("late_fusion", depth)
    assert interleaved == [SpatialBlock, TemporalBlock, SpatialBlock, TemporalBlock, SpatialBlock][:depth]
    assert late == [SpatialBlock] * interleaved.count(SpatialBlock) + [TemporalBlock] * interleaved.count(TemporalBlock)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("interleaved", [False, True, True, True]),
        ("late_fusion", [False, False, True, True]),
        ("split_attention", [True] * 4),
        ("split_heads", [True] * 4),
        ("spatial", [False] * 4),
    ],
)
def test_the_depth_at_which_frames_meet(variant, expected):
    """Change the last frame: after which blocks has the first one changed?"""
    torch.manual_seed(0)
    net = Latte(hidden_size=16, depth=4, num_heads=4, input_size=(4, 6), num_frames=4, variant=variant)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out[:, 0]))
    x = torch.randn(1, 4, 4, 4, 6)
    other = x.clone()
    other[:, 3] += 1
    for latents in (x, other):
        net(latents, torch.tensor([500]))
    assert [not torch.equal(a, b) for a, b in zip(seen[:4], seen[4:])] == expected
