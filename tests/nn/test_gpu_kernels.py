"""Attention on a GPU at the limits of its kernels, and in each precision."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from latte_pl.nn.attention import MAX_GRID, SpatialAttention, TemporalAttention, attend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def error(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def inputs(*shape, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype, device="cuda").requires_grad_() for _ in range(3)]


def check_parts(query, key, value, part):
    """Compare an attention call and its gradients with a call on a slice of batch and heads."""
    out = attend(query, key, value)
    grads = torch.autograd.grad(out.square().sum(), (query, key, value))
    pieces = [tensor[part].detach().float().requires_grad_() for tensor in (query, key, value)]
    expected = scaled_dot_product_attention(*pieces)
    assert error(out[part], expected) < 0.02
    for found, wanted in zip(grads, torch.autograd.grad(expected.square().sum(), pieces)):
        assert error(found[part], wanted) < 0.04


@pytest.mark.parametrize("heads", [MAX_GRID, MAX_GRID + 1, 150_000])
def test_temporal_attention_with_more_heads_than_a_grid_has_blocks(heads):
    query, key, value = inputs(1, heads, 16, 72)
    for first in (0, MAX_GRID // 2, heads - 64):
        check_parts(query, key, value, (slice(None), slice(first, first + 64)))


def test_batch_with_more_rows_than_a_grid_has_blocks():
    query, key, value = inputs(MAX_GRID + 5, 2, 4, 16)
    check_parts(query, key, value, slice(MAX_GRID - 60, None))


def test_attention_over_tensors_with_more_elements_than_32_bit_offsets_reach():
    query, key, value = inputs(3, 2800, 4096, 64)  # 2.2e9 elements each
    check_parts(query, key, value, (slice(2, None), slice(2790, None)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_layers_agree_with_float64_on_the_cpu(kind, qk_norm, dtype):
    torch.manual_seed(0)
    layer = kind(144, num_heads=2, qk_norm=qk_norm).double()
    x = torch.randn(2, 16, 12, 144, dtype=torch.float64)
    expected = layer(x)
    found = layer.to("cuda", dtype)(x.to("cuda", dtype))
    assert error(found.cpu(), expected) < {torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
