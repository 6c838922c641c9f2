"""Position codes: sin-cos tables and rotary phases, for space and time.

The tables are computed in float64 on the CPU and rounded to float32, as in the official code.
"""

import torch
from torch import Tensor


def sincos_1d(num_positions: int, dim: int) -> Tensor:
    """Code positions as ``[sin(p w), cos(p w)]`` with ``w_k = 10000^(-2k / dim)`` (Vaswani et al. 2017, section 3.5).

    Args:
        num_positions: positions 0, 1, ...
        dim: even width of the code.

    Returns:
        (num_positions, dim), values in [-1, 1].
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64, device="cpu") / (dim / 2))
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * frequencies  # (N, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (N, dim)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Code a grid row by row; the first half of the width is the column's code, the second half the row's.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        dim: width of the code, divisible by 4.

    Returns:
        (height * width, dim), values in [-1, 1].
    """
    columns = sincos_1d(width, dim // 2).expand(height, -1, -1)  # (h, w, D/2)
    rows = sincos_1d(height, dim // 2)[:, None].expand(-1, width, -1)  # (h, w, D/2)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)  # (h w, D)


def rotary_phases(positions: Tensor, dim: int, dtype: torch.dtype, base: float = 10000.0) -> Tensor:
    """Compute the rotary phases of some positions (RoPE, Su et al. 2021, equation 15).

    Args:
        positions: (N,) integer.
        dim: even width of an attention head.
        dtype: of the parameters; the phases have at least float32.
        base: ratio of the fastest turn to the limit of the slowest.

    Returns:
        (2, N, dim / 2): cosines and sines.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = base ** -(torch.arange(dim // 2, dtype=dtype, device=positions.device) / (dim / 2))
    angles = positions[:, None] * frequencies  # (N, d/2)
    return torch.stack([angles.cos(), angles.sin()])


def rotary_phases_2d(rows: Tensor, columns: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Compute axial rotary phases of places in a plane; the columns turn half of a head's pairs, the rows the others.

    As in `sincos_2d` the column's half comes first; each half is RoPE (Su et al. 2021) of its own axis, so a score
    depends on the differences of row and column alone (axial RoPE, Heo et al. 2024, whose base is 100: a grid has
    fewer positions than a text).

    Args:
        rows: (N,) integer.
        columns: (N,) integer.
        dim: width of an attention head, divisible by 4.
        dtype: of the parameters; the phases have at least float32.

    Returns:
        (2, N, dim / 2): cosines and sines.
    """
    return torch.cat([rotary_phases(axis, dim // 2, dtype, base=100.0) for axis in (columns, rows)], dim=-1)


def rotate(x: Tensor, phases: Tensor) -> Tensor:
    """Turn the pairs (k, k + d/2) of each head by the phase of its position, so scores see differences only.

    Args:
        x: (..., N, d) queries or keys.
        phases: (2, N, d / 2) from one of the functions above; of float32 or better, in which the turn is computed.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    cosines, sines = phases
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
    return turned.to(x.dtype)
