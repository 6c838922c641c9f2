"""Position encodings in time and space: fixed sin-cos tables and rotary tables (cos, sin)."""

import torch
from torch import Tensor


def sincos_1d(num_positions: int, dim: int) -> Tensor:
    """Encode positions as ``[sin(p w), cos(p w)]`` with ``w_k = 10000^(-2k / dim)`` (Vaswani et al. 2017, section 3.5).

    The table is computed in float64 and rounded to float32, as in the official code.

    Args:
        num_positions: Number of positions 0, 1, ...
        dim: Width of the encoding, even.

    Returns:
        (num_positions, dim) float32 on the CPU, values in [-1, 1].
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64, device="cpu") / (dim / 2))
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * frequencies  # (N, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (N, dim)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Encode the positions of a grid, row by row: the first half of the width encodes the column, the second the row.

    Args:
        height: Number of rows.
        width: Number of columns.
        dim: Width of the encoding, divisible by 4.

    Returns:
        (height * width, dim) float32 on the CPU, values in [-1, 1].
    """
    columns = sincos_1d(width, dim // 2).expand(height, -1, -1)  # (h, w, D/2)
    rows = sincos_1d(height, dim // 2)[:, None].expand(-1, width, -1)  # (h, w, D/2)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)  # (h w, D)


def rotary_1d(positions: Tensor, dim: int, dtype: torch.dtype, base: float = 10000.0) -> Tensor:
    """Compute the rotary table of 1D positions (RoPE, Su et al. 2021, equation 15).

    Args:
        positions: (N,) integer.
        dim: Width d of an attention head, even.
        dtype: Dtype of the parameters; the table has at least float32.
        base: Ratio of the highest to the lowest frequency, in the limit of a wide head.

    Returns:
        (2, N, d / 2): cosines and sines.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = base ** -(torch.arange(dim // 2, dtype=dtype, device=positions.device) / (dim / 2))
    angles = positions[:, None] * frequencies  # (N, d/2)
    return torch.stack([angles.cos(), angles.sin()])


def rotary_2d(rows: Tensor, columns: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Compute the rotary table of positions on a grid (axial RoPE, Heo et al. 2024, with their base of 100).

    Columns rotate the first half of a head's pairs, rows the second half, in the order of `sincos_2d`. Attention scores
    depend only on the differences of rows and of columns.

    Args:
        rows: (N,) integer.
        columns: (N,) integer.
        dim: Width d of an attention head, divisible by 4.
        dtype: Dtype of the parameters; the table has at least float32.

    Returns:
        (2, N, d / 2): cosines and sines.
    """
    return torch.cat([rotary_1d(axis, dim // 2, dtype, base=100.0) for axis in (columns, rows)], dim=-1)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Apply rotary embedding: rotate the pairs (k, k + d/2) of each head by the angles of its position.

    Args:
        x: Queries or keys (..., N, d).
        table: (2, N, d / 2) from `rotary_1d` or `rotary_2d`; the rotation is computed in its dtype.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)
