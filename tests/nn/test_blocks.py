"""Blocks: which tokens interact, the formulas of the split blocks, and the block types of each variant."""

import pytest
import torch

from latte_pl.nn import Latte
from latte_pl.nn.blocks import (
    BlockOptions,
    Context,
    Modulation,
    SpatialBlock,
    SplitAttentionBlock,
    SplitHeadsBlock,
    TemporalBlock,
    block_types,
    expand_per_frame,
)

BLOCKS = [SpatialBlock, TemporalBlock, SplitAttentionBlock, SplitHeadsBlock]
FRAMES, IMAGES = 4, 2


def make(kind, injection="adaln"):
    torch.manual_seed(0)
    block = kind(16, 4, BlockOptions(mlp_ratio=2.0, injection=injection)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    condition = torch.randn(2, 1, 16, dtype=torch.float64) if injection == "adaln" else None
    return block, Context(condition, FRAMES)


def activations(num_frames=FRAMES):
    return torch.randn(2, num_frames, 6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def changed_by(block, context, x, frame, position):
    """Return which frames and which positions of the output change with one token of the input."""
    other = x.clone()
    other[:, frame, position] *= -1
    changed = (block(x, context) - block(other, context)).abs().amax(dim=(0, 3)) > 1e-9  # (F, S)
    return changed.any(1), changed.any(0)


@pytest.mark.parametrize("injection", ["adaln", "tokens"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_attention_reaches_the_tokens_of_its_axis(kind, injection):
    block, context = make(kind, injection)
    frames, positions = changed_by(block, context, activations(), frame=1, position=2)
    assert positions.tolist() == ([i == 2 for i in range(6)] if kind is TemporalBlock else [True] * 6)
    assert frames.tolist() == ([i == 1 for i in range(4)] if kind is SpatialBlock else [True] * 4)


@pytest.mark.parametrize("kind", BLOCKS)
def test_images_and_clip_do_not_interact(kind):
    block, context = make(kind)
    x = activations(FRAMES + IMAGES)
    frames, _ = changed_by(block, context, x, frame=FRAMES, position=0)
    assert frames[:FRAMES].tolist() == [False] * FRAMES
    assert frames[FRAMES + 1].item() is False
    frames, _ = changed_by(block, context, x, frame=0, position=0)
    assert frames[FRAMES:].tolist() == [False] * IMAGES
    torch.testing.assert_close(block(x, context)[:, :FRAMES], block(x[:, :FRAMES], context))


@pytest.mark.parametrize("kind", BLOCKS)
def test_permuted_frames_give_permuted_outputs(kind):
    block, context = make(kind)
    order, x = torch.tensor([2, 0, 3, 1]), activations()
    torch.testing.assert_close(block(x[:, order], context), block(x, context)[:, order])


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_with_zero_gates_is_the_identity(kind):
    block, context = make(kind)
    with torch.no_grad():
        for chunk in (2, 5):
            block.adaLN_modulation[1].weight[16 * chunk : 16 * (chunk + 1)] = 0
            block.adaLN_modulation[1].bias[16 * chunk : 16 * (chunk + 1)] = 0
    x = activations(FRAMES + IMAGES)
    assert torch.equal(block(x, context), x)


def test_split_heads_adds_both_attentions_on_one_norm():
    block, context = make(SplitHeadsBlock)
    x = activations()
    parameters = block.adaLN_modulation(context.condition)[:, None].chunk(6, dim=-1)
    h = torch.layer_norm(x, (16,), eps=1e-6) * (1 + parameters[1]) + parameters[0]
    x2 = x + parameters[2] * (block.attn(h) + block.attn_temporal(h))
    h2 = torch.layer_norm(x2, (16,), eps=1e-6) * (1 + parameters[4]) + parameters[3]
    torch.testing.assert_close(block(x, context), x2 + parameters[5] * block.mlp(h2))
    assert block.attn.num_heads == block.attn_temporal.num_heads == 2  # half of the 4 heads


def test_split_attention_is_spatial_then_temporal_attention_with_one_modulation():
    block, context = make(SplitAttentionBlock)
    spatial, temporal = make(SpatialBlock)[0], make(TemporalBlock)[0]
    state = block.state_dict()
    spatial.load_state_dict({key: value for key, value in state.items() if "temporal" not in key})
    shared = {key: value for key, value in state.items() if not key.startswith("attn")}
    attention = {
        key.replace("attn_temporal", "attn"): value for key, value in state.items() if key.startswith("attn_temporal")
    }
    temporal.load_state_dict(shared | attention)
    with torch.no_grad():  # the MLP runs once, in the temporal block
        for parameter in (spatial.adaLN_modulation[1].weight, spatial.adaLN_modulation[1].bias):
            parameter[80:] = 0
    x = activations()
    torch.testing.assert_close(block(x, context), temporal(spatial(x, context), context))


@pytest.mark.parametrize("depth", [4, 5])
def test_late_fusion_has_the_blocks_of_interleaved_with_the_spatial_ones_first(depth):
    interleaved, late = block_types("interleaved", depth), block_types("late_fusion", depth)
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
def test_frames_interact_from_the_first_temporal_attention_on(variant, expected):
    """A change of the last frame reaches the first one after the first block with temporal attention."""
    torch.manual_seed(0)
    net = Latte(hidden_size=16, depth=4, num_heads=4, input_size=(4, 6), num_frames=4, variant=variant)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    outputs = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: outputs.append(out[:, 0]))
    x = torch.randn(1, 4, 4, 4, 6)
    other = x.clone()
    other[:, 3] += 1
    for latents in (x, other):
        net(latents, torch.tensor([500]))
    assert [not torch.equal(a, b) for a, b in zip(outputs[:4], outputs[4:])] == expected


def test_clip_frames_share_one_vector_and_images_have_their_own():
    groups = torch.randn(2, 3, 4)
    expanded = expand_per_frame(groups, num_clip_frames=5)
    assert expanded.shape == (2, 7, 1, 4)
    for frame in range(5):
        assert torch.equal(expanded[:, frame, 0], groups[:, 0])
    assert torch.equal(expanded[:, 5:, 0], groups[:, 1:])
    assert expand_per_frame(groups[:, :1], num_clip_frames=5).shape == (2, 1, 1, 4)  # broadcast later


def test_modulation_is_computed_once_per_clip_and_image():
    modulation, rows = Modulation(4, 6), []
    modulation[1].register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:-1].numel()))
    parameters = modulation.per_frame(torch.randn(2, 3, 4), num_clip_frames=16)
    assert rows == [6]
    assert [parameter.shape for parameter in parameters] == [(2, 18, 1, 4)] * 6
