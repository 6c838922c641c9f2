"""Counter-based random streams: every draw is a pure function of its names, never of what was drawn before.

A clip's crop, timestep and noise depend on (seed, purpose, clip number) alone. So a resumed run, another number of
devices or workers, and the other arm of a comparison all see the same draws.
"""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def key(*names: int | str) -> int:
    """Hash names such as ``(seed, "noise", clip)`` to a non-negative 63-bit seed."""
    return int.from_bytes(hashlib.blake2b(repr(names).encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(*names: int | str) -> np.random.Generator:
    """Return the NumPy generator of these names."""
    return np.random.Generator(np.random.Philox(key(*names)))


def torch_generator(*names: int | str) -> torch.Generator:
    """Return the CPU torch generator of these names."""
    return torch.Generator().manual_seed(key(*names))


def normal(seed: int, purpose: str, clips: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal float32 noise (B, *shape) on the CPU, row b a function of (seed, purpose, clips[b])."""
    return torch.stack([torch.randn(*shape, generator=torch_generator(seed, purpose, n)) for n in clips.tolist()])


def uniform(seed: int, purpose: str, clips: Tensor, columns: int = 1) -> Tensor:
    """Draw float32 uniforms in [0, 1), (B, columns) on the CPU, row b a function of (seed, purpose, clips[b])."""
    rows = [numpy_generator(seed, purpose, n).random(columns, dtype=np.float32) for n in clips.tolist()]
    return torch.from_numpy(np.stack(rows))


def run_seed() -> int:
    """Return the seed that the run was started with (``--seed_everything``), 0 outside of a run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
