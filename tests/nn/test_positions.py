"""Position codes against written-out values, and the identity of RoPE."""

import math

import torch

from latte_pl.nn.positions import rotary_phases, rotate, sincos_1d, sincos_2d


def test_temporal_code_is_sines_then_cosines():
    code = sincos_1d(5, 8)
    for position in range(5):
        for k in range(4):
            angle = position * 10000 ** (-k / 4)
            assert math.isclose(code[position, k], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(code[position, 4 + k], math.cos(angle), abs_tol=1e-6)


def test_spatial_code_has_the_column_first_and_runs_row_by_row():
    height, width, dim = 2, 3, 16
    code = sincos_2d(height, width, dim)
    assert code.shape == (6, dim)
    line = sincos_1d(3, dim // 2)
    for row in range(height):
        for column in range(width):
            torch.testing.assert_close(code[row * width + column], torch.cat([line[column], line[row]]))


def test_rotary_scores_depend_on_differences_only():
    query, key = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).double()  # (H, N, d) each
    positions = torch.tensor([0, 1, 2, 5, 9, 11])

    def scores(offset):
        phases = rotary_phases(positions + offset, 8, torch.float64)
        return rotate(query, phases) @ rotate(key, phases).transpose(-2, -1)

    torch.testing.assert_close(scores(0), scores(37), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(scores(0), query @ key.transpose(-2, -1), atol=0.1)


def test_rotation_keeps_norm_and_dtype():
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    phases = rotary_phases(torch.tensor([0, 3, 100, 1000]), 10, torch.bfloat16)
    assert phases.dtype == torch.float32
    turned = rotate(x, phases)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(turned[0], x[0])
    assert rotate(x.bfloat16(), phases).dtype == torch.bfloat16
