"""Averages of the weights whose length is chosen after training: kept as snapshots, put together from them.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696),
section 3 and appendix C.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from latte_pl.training.checkpoints import write_tensors

LENGTHS = (0.05, 0.10)
"""Relative lengths of the two averages that training keeps, the paper's."""
TOLERANCE = 0.1  # of `miss`
Profile = np.ndarray | float


def exponent(length: float) -> float:
    """Return the exponent gamma of the power-function average of a relative length.

    The average weighs the training time tau by tau^gamma (section 3.1 of the paper); the standard deviation of that
    profile, as a share of the training, is the length sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) (appendix C).

    Args:
        length: In [0.005, 0.28]; 1 / sqrt(12) = 0.289 would be the plain mean of all steps, and shorter ones than
            snapshots resolve magnify their rounding.

    Raises:
        ValueError: When the length is outside.
    """
    if not 0.005 <= length <= 0.28:
        raise ValueError(f"an average's length is {length:g}; choose lengths in [0.005, 0.28], shares of the training")
    # length^2 (gamma + 2)^2 (gamma + 3) = gamma + 1; only the largest root is no smaller than 0
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


@torch.no_grad()
def update(averages: nn.ModuleList, net: nn.Module, step: int) -> None:
    """Move the averages of `LENGTHS` towards the weights after a step: beta = (1 - 1 / step)^(gamma + 1) (section 3.1).

    Args:
        averages: One copy of the network a length; at step 1 they forget what they started from.
        net: The network.
        step: Steps taken, from 1.
    """
    for average, length in zip(averages, LENGTHS):
        beta = (1.0 - 1.0 / step) ** (exponent(length) + 1.0)
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1.0 - beta)


def write_snapshot(averages: nn.ModuleList, run: Path, step: int) -> None:
    """Write the averages of a step as ``averages/step=N.safetensors`` of a run; all processes have to call this.

    A file is as large as two models in float32.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(averages, options=options)  # sharded weights are gathered, on the first process
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    tensors: dict[str, Any] = {name: state[name] for name, _ in averages.named_parameters()}
    write_tensors(tensors, _folder(run) / f"step={step:07d}.safetensors")


def snapshots(checkpoint: Path, step: int, every: int) -> dict[int, Path]:
    """Return the files that hold a run's averages, by step: the snapshots before a checkpoint, and the checkpoint.

    What another run left in the folder does not count: later steps, and steps at which this run writes none. A run that
    began at another's checkpoint has the snapshots since then alone.

    Args:
        checkpoint: ``checkpoints/step=N.ckpt`` of the run.
        step: Of the checkpoint.
        every: Steps between snapshots.
    """
    folder = _folder(checkpoint.parent.parent)
    steps = {n: folder / f"step={n:07d}.safetensors" for n in range(every, step, every)}
    return {n: path for n, path in steps.items() if path.is_file()} | {step: checkpoint}


def coefficients(steps: Sequence[int], length: float) -> np.ndarray:
    """Return the factors (N, len(LENGTHS)) that make the average of a length at the last step out of snapshots.

    Their profile is the nearest to the wanted one in the least squares over training time (appendix C), among those
    whose factors sum to 1. The paper leaves the sum free, which shrinks all weights where snapshots are few. The inner
    products of profiles are in closed form, in float64.

    Args:
        steps: Of the N snapshots.
        length: Relative length that is wanted.

    Raises:
        ValueError: When the length is out of range.
    """
    times, powers = _kept(steps)
    gram = _inner(times[:, None], powers[:, None], times, powers)
    wanted = _inner(times, powers, times.max(), exponent(length))
    # with a Lagrange multiplier for the sum; profiles are scaled to norm 1
    scale = np.append(np.sqrt(np.diag(gram)), 1.0)
    system = np.block([[gram, np.ones((len(times), 1))], [np.ones((1, len(times))), np.zeros((1, 1))]])
    # neighbouring snapshots are nearly the same, which a plain solve would answer with huge factors
    solved = np.linalg.lstsq(system / np.outer(scale, scale), np.append(wanted, 1.0) / scale, rcond=1e-13)[0] / scale
    return solved[:-1].reshape(len(steps), len(LENGTHS))


def miss(steps: Sequence[int], length: float) -> float:
    """Return by how much the average that snapshots make misses the one that is wanted.

    Args:
        steps: Of the snapshots.
        length: Relative length that is wanted.

    Returns:
        Norm of the difference of the two profiles over the norm of the wanted one; 0 is exact.
    """
    times, powers = _kept(steps)
    factors, end = coefficients(steps, length).ravel(), times.max()
    own = factors @ _inner(times[:, None], powers[:, None], times, powers) @ factors
    shared = factors @ _inner(times, powers, end, exponent(length))
    norm = _inner(end, exponent(length), end, exponent(length))
    return float(np.sqrt(max(own - 2.0 * shared + norm, 0.0) / norm))


def _kept(steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return end and exponent of each profile that snapshots hold, in the order of their factors."""
    times = np.repeat(np.asarray(steps, dtype=np.float64), len(LENGTHS))
    return times, np.tile([exponent(length) for length in LENGTHS], len(steps))


def _inner(t: Profile, a: Profile, u: Profile, b: Profile) -> np.ndarray:
    """Return the integral of the profiles (a + 1) tau^a / t^(a + 1) on [0, t] and (b + 1) tau^b / u^(b + 1) on [0, u].

    Up to the earlier end the product is a power of tau; of the later profile, a ratio of the ends is left.
    """
    first, last = np.minimum(t, u), np.maximum(t, u)
    later = np.where(t > u, a, b)
    return (a + 1.0) * (b + 1.0) / (a + b + 1.0) * (first / last) ** later / last


@torch.no_grad()
def reconstruct(net: nn.Module, files: Mapping[int, Path], length: float) -> None:
    """Set the parameters of a network to the average of a length at the last of some snapshots.

    Args:
        net: Gets the average; one snapshot at a time is in memory besides.
        files: Snapshots by step, from `snapshots`.
        length: Relative length.

    Raises:
        ValueError: When the length is out of range.
    """
    factors = coefficients(list(files), length)
    for parameter in net.parameters():
        parameter.zero_()
    for path, row in zip(files.values(), factors):
        state = _read(path)
        for n, factor in enumerate(row):
            for name, parameter in net.named_parameters():
                parameter.add_(state[f"{n}.{name}"].to(parameter), alpha=float(factor))


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole snapshot; delete it to do without") from error
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    return {name.removeprefix("averages."): value for name, value in state.items() if name.startswith("averages.")}


def _folder(run: Path) -> Path:
    return run / "averages"
