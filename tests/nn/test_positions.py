"""Position encodings against written-out values, and the invariances of RoPE."""

import math

import torch

from latte_pl.nn.positions import apply_rotary, rotary_1d, rotary_2d, sincos_1d, sincos_2d


def test_temporal_encoding_has_sines_then_cosines():
    encoding = sincos_1d(5, 8)
    for position in range(5):
        for k in range(4):
            angle = position * 10000 ** (-k / 4)
            assert math.isclose(encoding[position, k], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(encoding[position, 4 + k], math.cos(angle), abs_tol=1e-6)


def test_spatial_encoding_has_the_column_first_and_is_ordered_by_row():
    height, width, dim = 2, 3, 16
    encoding = sincos_2d(height, width, dim)
    assert encoding.shape == (6, dim)
    axis = sincos_1d(3, dim // 2)
    for row in range(height):
        for column in range(width):
            torch.testing.assert_close(encoding[row * width + column], torch.cat([axis[column], axis[row]]))


def test_rotary_scores_depend_only_on_position_differences():
    query, key = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).double()  # (H, N, d) each
    positions = torch.tensor([0, 1, 2, 5, 9, 11])

    def scores(offset):
        table = rotary_1d(positions + offset, 8, torch.float64)
        return apply_rotary(query, table) @ apply_rotary(key, table).transpose(-2, -1)

    torch.testing.assert_close(scores(0), scores(37), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(scores(0), query @ key.transpose(-2, -1), atol=0.1)


def test_axial_rotary_scores_depend_only_on_differences_of_rows_and_columns():
    query, key = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).double()  # (H, N, d) each
    rows, columns = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 4, 1, 6, 3])

    def scores(rows, columns):
        table = rotary_2d(rows, columns, 8, torch.float64)
        return apply_rotary(query, table) @ apply_rotary(key, table).transpose(-2, -1)

    expected = scores(rows, columns)
    torch.testing.assert_close(scores(rows + 9, columns + 23), expected, rtol=1e-10, atol=1e-10)
    for other in (scores(columns, rows), scores(rows, 0 * columns), scores(0 * rows, columns), scores(-rows, columns)):
        assert not torch.allclose(other, expected, atol=0.1)


def test_columns_rotate_the_first_half_of_the_pairs_and_rows_the_second():
    table = rotary_2d(torch.tensor([2]), torch.tensor([5]), 12, torch.float64)
    assert table.shape == (2, 1, 6)
    for k in range(3):
        for pair, position in ((k, 5), (3 + k, 2)):
            angle = position * 100 ** (-k / 3)
            assert math.isclose(table[0, 0, pair], math.cos(angle), abs_tol=1e-9)
            assert math.isclose(table[1, 0, pair], math.sin(angle), abs_tol=1e-9)


def test_rotation_preserves_norm_and_dtype():
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    table = rotary_1d(torch.tensor([0, 3, 100, 1000]), 10, torch.bfloat16)
    assert table.dtype == torch.float32
    rotated = apply_rotary(x, table)
    torch.testing.assert_close(rotated.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(rotated[0], x[0])
    assert apply_rotary(x.bfloat16(), table).dtype == torch.bfloat16
