"""Position codes against written-out values, and the identity of RoPE."""

import math

import torch

from latte_pl.nn.positions import rotary_phases, rotary_phases_2d, rotate, sincos_1d, sincos_2d


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


def test_rotary_scores_in_the_plane_depend_on_both_differences_only():
    query, key = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).double()  # (H, N, d) each
    rows, columns = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 4, 1, 6, 3])

    def scores(rows, columns):
        phases = rotary_phases_2d(rows, columns, 8, torch.float64)
        return rotate(query, phases) @ rotate(key, phases).transpose(-2, -1)

    known = scores(rows, columns)
    torch.testing.assert_close(scores(rows + 9, columns + 23), known, rtol=1e-10, atol=1e-10)
    for other in (scores(columns, rows), scores(rows, 0 * columns), scores(0 * rows, columns), scores(-rows, columns)):
        assert not torch.allclose(other, known, atol=0.1)


def test_the_column_turns_the_first_half_of_the_pairs_and_the_row_the_second():
    phases = rotary_phases_2d(torch.tensor([2]), torch.tensor([5]), 12, torch.float64)
    assert phases.shape == (2, 1, 6)
    for k in range(3):
        for pair, position in ((k, 5), (3 + k, 2)):
            angle = position * 100 ** (-k / 3)
            assert math.isclose(phases[0, 0, pair], math.cos(angle), abs_tol=1e-9)
            assert math.isclose(phases[1, 0, pair], math.sin(angle), abs_tol=1e-9)


def test_rotation_keeps_norm_and_dtype():
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    phases = rotary_phases(torch.tensor([0, 3, 100, 1000]), 10, torch.bfloat16)
    assert phases.dtype == torch.float32
    turned = rotate(x, phases)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(turned[0], x[0])
    assert rotate(x.bfloat16(), phases).dtype == torch.bfloat16
