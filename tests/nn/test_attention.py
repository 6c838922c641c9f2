"""Attention within frames, across frames and to captions, against written-out formulas."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from latte_pl.nn import attention
from latte_pl.nn.attention import CrossAttention, SpatialAttention, TemporalAttention
from latte_pl.nn.positions import rotary_1d, rotary_2d
from latte_pl.types import Text


@pytest.fixture
def x():
    return torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (B, F, S, D)


def test_spatial_attention_matches_its_formula(x):
    attention = SpatialAttention(8, num_heads=2).double()
    out = attention(x)
    for frame, expected in zip(x.flatten(0, 1), out.flatten(0, 1)):
        query, key, value = (attention.qkv.weight @ frame.T + attention.qkv.bias[:, None]).view(3, 2, 4, 3)  # (H, d, S)
        weights = (query.transpose(1, 2) @ key / 4**0.5).softmax(-1)  # (H, S, S)
        heads = (value @ weights.transpose(1, 2)).flatten(0, 1)  # (D, S)
        torch.testing.assert_close(attention.proj(heads.T), expected)


def test_temporal_attention_is_spatial_attention_on_swapped_axes(x):
    spatial, temporal = SpatialAttention(8, num_heads=2).double(), TemporalAttention(8, num_heads=2).double()
    temporal.load_state_dict(spatial.state_dict())
    torch.testing.assert_close(temporal(x), spatial(x.transpose(1, 2)).transpose(1, 2))


def test_temporal_rope_ignores_a_shift_of_all_positions(x):
    attention = TemporalAttention(8, num_heads=2).double()
    outs = [attention(x, rotary_1d(torch.arange(5) + start, 4, torch.float64)) for start in (0, 11)]
    torch.testing.assert_close(*outs)
    assert not torch.allclose(outs[0], attention(x))


def test_spatial_rope_ignores_a_shift_of_all_positions(x):
    attention = SpatialAttention(8, num_heads=2).double()
    rows, columns = torch.tensor([[0, 0, 1], [0, 2, 1]])
    outs = [attention(x, rotary_2d(rows + n, columns + 3 * n, 4, torch.float64)) for n in (0, 4)]
    torch.testing.assert_close(*outs)
    assert not torch.allclose(outs[0], attention(x))


def with_qk_norm(kind):
    attention = kind(8, num_heads=2, qk_norm=True).double()
    with torch.no_grad():
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.copy_(torch.rand(4, generator=torch.Generator().manual_seed(2)) + 0.5)
    return attention


def test_spatial_attention_with_qk_norm_matches_its_formula(x):
    attention = with_qk_norm(SpatialAttention)
    for frame, expected in zip(x.flatten(0, 1), attention(x).flatten(0, 1)):
        query, key, value = (attention.qkv.weight @ frame.T + attention.qkv.bias[:, None]).view(3, 2, 4, 3)  # (H, d, S)
        query, key = (
            part / (part.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight[:, None]
            for part, norm in ((query, attention.q_norm), (key, attention.k_norm))
        )
        weights = (query.transpose(1, 2) @ key / 4**0.5).softmax(-1)  # (H, S, S)
        heads = (value @ weights.transpose(1, 2)).flatten(0, 1)  # (D, S)
        torch.testing.assert_close(attention.proj(heads.T), expected)


@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
def test_qk_norm_makes_scores_independent_of_the_scale_of_queries_and_keys(x, kind):
    table = rotary_1d(torch.arange(5 if kind is TemporalAttention else 3), 4, torch.float64)
    plain, attention = kind(8, num_heads=2).double(), with_qk_norm(kind)
    assert attention.q_norm.weight.shape == attention.k_norm.weight.shape == (4,)  # shared by the heads
    before = attention(x, table), plain(x, table)
    with torch.no_grad():
        for module in (attention, plain):
            for parameter in (module.qkv.weight, module.qkv.bias):
                parameter[:8] *= 7  # queries
                parameter[8:16] *= 30  # keys
    torch.testing.assert_close(attention(x, table), before[0], rtol=1e-3, atol=1e-4)  # not exact because of the epsilon
    assert not torch.allclose(plain(x, table), before[1], atol=0.01)


def test_temporal_attention_with_qk_norm_is_spatial_attention_on_swapped_axes(x):
    spatial, temporal = with_qk_norm(SpatialAttention), TemporalAttention(8, num_heads=2, qk_norm=True).double()
    temporal.load_state_dict(spatial.state_dict())
    torch.testing.assert_close(temporal(x), spatial(x.transpose(1, 2)).transpose(1, 2))


class Operations(TorchDispatchMode):
    """Record the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
def test_activations_are_not_copied_for_the_attention_kernel(x, kind, qk_norm):
    attention, x = kind(8, num_heads=2, qk_norm=qk_norm), x.float()
    with Operations() as operations, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attention(x)
    assert "_scaled_dot_product_flash_attention_for_cpu" in operations.names
    assert not operations.names & {"clone", "copy_", "_to_copy", "_reshape_copy"}


@pytest.mark.filterwarnings("error:Mismatch dtype")  # the warning means that the norm is not fused
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
def test_half_precision_agrees_with_float32(x, kind, qk_norm):
    attention = kind(8, num_heads=2, qk_norm=qk_norm)
    full = attention(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(x.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("mask_shape", [None, (1, 1, 1, 5), (7, 1, 1, 5), (7, 1, 6, 5), (7, 11, 6, 5)])
@pytest.mark.parametrize(
    "limits", [{"MAX_GRID": 3}, {"MAX_ELEMENTS": 9 * 128 * 128}, {"MAX_GRID": 8, "MAX_ELEMENTS": 30 * 128 * 128}]
)
def test_split_attention_calls_equal_one_call(monkeypatch, mask_shape, limits):
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 11, n, 4) for n in (6, 5, 5)]  # batch, heads, tokens, width: not divisible by the limits
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    mask = None if mask_shape is None else torch.rand(mask_shape, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)

    def out_and_gradients():
        out = attention.attend(*tensors, mask)
        return out, *torch.autograd.grad((weight * out).sum(), tensors)

    expected = out_and_gradients()
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    sizes = record_calls(monkeypatch)
    for actual, one in zip(out_and_gradients(), expected):
        torch.testing.assert_close(actual, one, rtol=1e-12, atol=1e-14)
    assert len(sizes) > 1
    assert all(max(size[:2]) <= limits.get("MAX_GRID", 99) for size in sizes)
    assert all(size[0] * size[1] * 128 * 128 <= limits.get("MAX_ELEMENTS", 2**31) for size in sizes)


@pytest.mark.parametrize(
    ("frames", "dtype", "num_calls"), [(16, "bfloat16", 0), (64, "bfloat16", 1), (16, "float32", 1)]
)
def test_short_sequences_in_half_precision_use_matmuls_on_a_gpu(monkeypatch, frames, dtype, num_calls):
    sizes = record_calls(monkeypatch)
    x = torch.empty(2, 6, frames, 8, device="meta", dtype=getattr(torch, dtype))  # stands for any device but the CPU
    assert attention.attend(x, x, x).shape == x.shape
    assert len(sizes) == num_calls


def test_matmuls_equal_the_fused_kernel():
    generator = torch.Generator().manual_seed(4)
    query, key, value = (torch.randn(2, 3, n, 4, generator=generator, dtype=torch.float64) for n in (6, 5, 5))
    mask = torch.rand(2, 1, 6, 5, generator=generator) < 0.7
    mask[..., 0] = True
    for chosen in (None, mask):
        expected = attention.attend(query, key, value, chosen)
        torch.testing.assert_close(attention._attend_by_matmuls(query, key, value, chosen), expected)


def record_calls(monkeypatch):
    """Record the shapes of the queries of all calls of the fused kernel."""
    sizes = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def record(query, *rest):
        sizes.append(tuple(query.shape))
        return kernel(query, *rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return sizes


@pytest.mark.parametrize(
    ("kind", "shape", "num_calls"),
    [
        (TemporalAttention, (5, 16, 16 * 16, 1152), 1),  # XL at 256 pixels: one call
        (TemporalAttention, (7, 16, 64 * 64, 1152), 6),  # at 1024 pixels: 65,536 heads
        (TemporalAttention, (300, 16, 8 * 12, 384), 2),  # many small clips
        (SpatialAttention, (4100, 16, 8 * 12, 384), 4),  # a batch of 65,600 frames
    ],
)
def test_attention_calls_stay_within_the_limits_of_gpu_kernels(monkeypatch, kind, shape, num_calls):
    sizes = record_calls(monkeypatch)
    with torch.device("meta"):
        layer = kind(shape[-1], 16 if shape[-1] == 1152 else 6)
        assert layer(torch.empty(shape)).shape == shape
    assert len(sizes) == num_calls
    for batch, heads, length, _ in sizes:
        assert max(batch, heads) <= 65_535
        assert batch * heads * -(-length // 128) * 128 * 128 < 2**31


def test_cross_attention_to_two_tokens_is_their_weighted_mean():
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
