"""Attention along either axis against its formula."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from latte_pl.nn import attention
from latte_pl.nn.attention import SpatialAttention, TemporalAttention
from latte_pl.nn.positions import rotary_phases, rotary_phases_2d


@pytest.fixture
def x():
    return torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # (B, F, S, D)


def test_spatial_attention_is_its_formula_frame_by_frame(x):
    attention = SpatialAttention(8, num_heads=2).double()
    out = attention(x)
    for frame, expected in zip(x.flatten(0, 1), out.flatten(0, 1)):
        query, key, value = (attention.qkv.weight @ frame.T + attention.qkv.bias[:, None]).view(3, 2, 4, 3)  # (H, d, S)
        weights = (query.transpose(1, 2) @ key / 4**0.5).softmax(-1)  # (H, S, S)
        heads = (value @ weights.transpose(1, 2)).flatten(0, 1)  # (D, S)
        torch.testing.assert_close(attention.proj(heads.T), expected)


def test_temporal_attention_is_spatial_attention_on_exchanged_axes(x):
    spatial, temporal = SpatialAttention(8, num_heads=2).double(), TemporalAttention(8, num_heads=2).double()
    temporal.load_state_dict(spatial.state_dict())
    torch.testing.assert_close(temporal(x), spatial(x.transpose(1, 2)).transpose(1, 2))


def test_temporal_attention_with_rope_ignores_a_shift_of_all_positions(x):
    attention = TemporalAttention(8, num_heads=2).double()
    outs = [attention(x, rotary_phases(torch.arange(5) + start, 4, torch.float64)) for start in (0, 11)]
    torch.testing.assert_close(*outs)
    assert not torch.allclose(outs[0], attention(x))


def test_spatial_attention_with_rope_ignores_a_shift_of_the_frame(x):
    attention = SpatialAttention(8, num_heads=2).double()
    rows, columns = torch.tensor([[0, 0, 1], [0, 2, 1]])
    outs = [attention(x, rotary_phases_2d(rows + n, columns + 3 * n, 4, torch.float64)) for n in (0, 4)]
    torch.testing.assert_close(*outs)
    assert not torch.allclose(outs[0], attention(x))


def normed(kind):
    attention = kind(8, num_heads=2, qk_norm=True).double()
    with torch.no_grad():
        for norm in (attention.q_norm, attention.k_norm):
            norm.weight.copy_(torch.rand(4, generator=torch.Generator().manual_seed(2)) + 0.5)
    return attention


def test_normed_spatial_attention_is_its_formula_frame_by_frame(x):
    attention = normed(SpatialAttention)
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
def test_normed_scores_know_no_scale_of_queries_and_keys(x, kind):
    phases = rotary_phases(torch.arange(5 if kind is TemporalAttention else 3), 4, torch.float64)
    plain, attention = kind(8, num_heads=2).double(), normed(kind)
    assert attention.q_norm.weight.shape == attention.k_norm.weight.shape == (4,)  # shared by the heads
    before = attention(x, phases), plain(x, phases)
    with torch.no_grad():
        for module in (attention, plain):
            for parameter in (module.qkv.weight, module.qkv.bias):
                parameter[:8] *= 7  # queries
                parameter[8:16] *= 30  # keys
    torch.testing.assert_close(attention(x, phases), before[0], rtol=1e-3, atol=1e-4)  # the norm's epsilon is left
    assert not torch.allclose(plain(x, phases), before[1], atol=0.01)


def test_normed_temporal_attention_is_normed_spatial_attention_on_exchanged_axes(x):
    spatial, temporal = normed(SpatialAttention), TemporalAttention(8, num_heads=2, qk_norm=True).double()
    temporal.load_state_dict(spatial.state_dict())
    torch.testing.assert_close(temporal(x), spatial(x.transpose(1, 2)).transpose(1, 2))


class Operations(TorchDispatchMode):
    """Record the names of the operations that are run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
def test_nothing_is_copied_between_layout_and_kernel(x, kind, qk_norm):
    attention, x = kind(8, num_heads=2, qk_norm=qk_norm), x.float()
    with Operations() as operations, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attention(x)
    assert "_scaled_dot_product_flash_attention_for_cpu" in operations.names
    assert not operations.names & {"clone", "copy_", "_to_copy", "_reshape_copy"}


@pytest.mark.filterwarnings("error:Mismatch dtype")  # no fused norm
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", [SpatialAttention, TemporalAttention])
def test_half_precision_agrees_with_single(x, kind, qk_norm):
    attention = kind(8, num_heads=2, qk_norm=qk_norm)
    full = attention(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(x.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("masked", [None, (1, 1, 1, 5), (7, 1, 1, 5), (7, 1, 6, 5), (7, 11, 6, 5)])
@pytest.mark.parametrize("limits", [{"GRID": 3}, {"REACH": 9 * 128 * 128}, {"GRID": 8, "REACH": 30 * 128 * 128}])
def test_attention_in_parts_is_attention(monkeypatch, masked, limits):
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 11, n, 4) for n in (6, 5, 5)]  # batch, heads, tokens, width: neither divides into the limits
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    mask = None if masked is None else torch.rand(masked, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)

    def outcome():
        out = attention.attend(*tensors, mask)
        return out, *torch.autograd.grad((weight * out).sum(), tensors)

    whole = outcome()
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    sizes = calls(monkeypatch)
    for part, one in zip(outcome(), whole):
        torch.testing.assert_close(part, one, rtol=1e-12, atol=1e-14)
    assert len(sizes) > 1
    assert all(max(size[:2]) <= limits.get("GRID", 99) for size in sizes)
    assert all(size[0] * size[1] * 128 * 128 <= limits.get("REACH", 2**31) for size in sizes)


def calls(monkeypatch):
    """Record the shapes of queries that reach the kernel."""
    sizes = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def record(query, *rest):
        sizes.append(tuple(query.shape))
        return kernel(query, *rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return sizes


@pytest.mark.parametrize(
    ("kind", "shape", "parts"),
    [
        (TemporalAttention, (5, 16, 16 * 16, 1152), 1),  # XL at 256 pixels: in one call
        (TemporalAttention, (7, 16, 64 * 64, 1152), 6),  # at 1024 pixels: 65,536 heads
        (TemporalAttention, (300, 16, 8 * 12, 384), 2),  # many small clips
        (SpatialAttention, (4100, 16, 8 * 12, 384), 4),  # a batch of 65,600 frames
    ],
)
def test_no_call_goes_beyond_a_grid(monkeypatch, kind, shape, parts):
    sizes = calls(monkeypatch)
    with torch.device("meta"):
        layer = kind(shape[-1], 16 if shape[-1] == 1152 else 6)
        assert layer(torch.empty(shape)).shape == shape
    assert len(sizes) == parts
    for batch, heads, length, _ in sizes:
        assert max(batch, heads) <= 65_535
        assert batch * heads * -(-length // 128) * 128 * 128 < 2**31
