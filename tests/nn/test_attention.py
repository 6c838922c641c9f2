"""Attention along either axis against its formula."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

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
