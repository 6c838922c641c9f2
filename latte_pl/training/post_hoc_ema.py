"""Post-hoc EMA: averages of the weights whose length is chosen after training.

Training updates two power-function EMAs and saves snapshots of them; any other length is reconstructed from these.
Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696),
section 3 and appendix C.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from latte_pl.training.checkpoints import AtomicCheckpointIO, digest, is_intact, write_tensors

SIGMA_RELS = (0.05, 0.10)
"""Relative standard deviations of the two EMAs that training updates, those of the paper."""
TOLERANCE = 0.1
"""`latte average` skips EMAs with a larger `reconstruction_error`."""
Profile = np.ndarray | float


def std_to_exp(sigma_rel: float) -> float:
    """Return the exponent gamma of the power-function EMA with a relative standard deviation.

    The EMA gives the parameters at training time tau a weight proportional to tau^gamma (section 3.1 of the paper). The
    standard deviation of this profile, relative to the training time, is
    sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) (appendix C).

    Args:
        sigma_rel: In [0.005, 0.28]. The plain mean of all steps has 1 / sqrt(12) = 0.289.

    Raises:
        ValueError: ``sigma_rel`` is out of range.
    """
    if not 0.005 <= sigma_rel <= 0.28:
        raise ValueError(f"sigma_rel is {sigma_rel:g}; it must lie in [0.005, 0.28], as a share of the training time")
    # sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1; only the largest root is not negative
    inverse = sigma_rel**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


@torch.no_grad()
def update(averages: nn.ModuleList, net: nn.Module, step: int) -> None:
    """Update the EMAs of `SIGMA_RELS` after a step, with beta = (1 - 1 / step)^(gamma + 1) (section 3.1).

    Args:
        averages: One copy of the network per EMA; the first step overwrites their initial weights.
        net: The network.
        step: Steps taken, from 1.
    """
    for average, sigma_rel in zip(averages, SIGMA_RELS):
        beta = (1.0 - 1.0 / step) ** (std_to_exp(sigma_rel) + 1.0)
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1.0 - beta)


def write_snapshot(averages: nn.ModuleList, run: Path, step: int) -> None:
    """Write the EMAs of a step as ``averages/step=N.safetensors`` of a run. Every process has to call this.

    A file has the size of two models in float32.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(averages, options=options)  # gathers sharded weights on the first process
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    tensors: dict[str, Any] = {name: state[name] for name, _ in averages.named_parameters()}
    write_tensors(tensors, _folder(run) / f"step={step:07d}.safetensors", {"sha256": digest(tensors)})


def snapshots(checkpoint: Path, step: int, every: int) -> dict[int, Path]:
    """Return the files that hold a run's EMAs, by step: the snapshots before a checkpoint, and the checkpoint.

    Files of other steps are ignored, because another run may have written them. A run that started from the checkpoint
    of another run has only the snapshots since then.

    Args:
        checkpoint: ``checkpoints/step=N.ckpt`` of the run.
        step: Step N of the checkpoint.
        every: Steps between snapshots.
    """
    folder = _folder(checkpoint.parent.parent)
    steps = {n: folder / f"step={n:07d}.safetensors" for n in range(every, step, every)}
    return {n: path for n, path in steps.items() if path.is_file()} | {step: checkpoint}


def solve_weights(steps: Sequence[int], sigma_rel: float) -> np.ndarray:
    """Return the coefficients (N, 2) of N snapshots whose linear combination approximates an EMA at the last step.

    The coefficients minimise the squared difference of the profiles over training time (appendix C) among all that sum
    to 1. The paper does not constrain the sum. With few snapshots it is then below 1, which shrinks all parameters. The
    inner products of the profiles have a closed form and are computed in float64.

    Args:
        steps: Steps of the N snapshots.
        sigma_rel: Relative standard deviation of the EMA.

    Raises:
        ValueError: ``sigma_rel`` is out of range.
    """
    times, exponents = _profiles(steps)
    gram = _inner_product(times[:, None], exponents[:, None], times, exponents)
    target = _inner_product(times, exponents, times.max(), std_to_exp(sigma_rel))
    # the last row and column are the Lagrange multiplier of the sum; profiles are scaled to norm 1
    scale = np.append(np.sqrt(np.diag(gram)), 1.0)
    system = np.block([[gram, np.ones((len(times), 1))], [np.ones((1, len(times))), np.zeros((1, 1))]])
    # least squares, since neighbouring snapshots are nearly equal and an exact solution has huge weights
    solved = np.linalg.lstsq(system / np.outer(scale, scale), np.append(target, 1.0) / scale, rcond=1e-13)[0] / scale
    return solved[:-1].reshape(len(steps), len(SIGMA_RELS))


def reconstruction_error(steps: Sequence[int], sigma_rel: float) -> float:
    """Return the relative error of the EMA profile that snapshots reconstruct.

    Args:
        steps: Steps of the snapshots.
        sigma_rel: Relative standard deviation of the EMA.

    Returns:
        Norm of the difference between the two profiles over the norm of the target; 0 is exact.
    """
    times, exponents = _profiles(steps)
    weights, end = solve_weights(steps, sigma_rel).ravel(), times.max()
    own = weights @ _inner_product(times[:, None], exponents[:, None], times, exponents) @ weights
    shared = weights @ _inner_product(times, exponents, end, std_to_exp(sigma_rel))
    norm = _inner_product(end, std_to_exp(sigma_rel), end, std_to_exp(sigma_rel))
    return float(np.sqrt(max(own - 2.0 * shared + norm, 0.0) / norm))


def _profiles(steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the last step and the exponent of each profile in the snapshots, in the order of `solve_weights`."""
    times = np.repeat(np.asarray(steps, dtype=np.float64), len(SIGMA_RELS))
    return times, np.tile([std_to_exp(sigma_rel) for sigma_rel in SIGMA_RELS], len(steps))


def _inner_product(t: Profile, a: Profile, u: Profile, b: Profile) -> np.ndarray:
    """Return the inner product of the profiles (a + 1) tau^a / t^(a + 1) on [0, t] and (b + 1) tau^b / u^(b + 1).

    Up to the earlier end the product of both is a power of tau, which is integrated in closed form.
    """
    first, last = np.minimum(t, u), np.maximum(t, u)
    later = np.where(t > u, a, b)
    return (a + 1.0) * (b + 1.0) / (a + b + 1.0) * (first / last) ** later / last


@torch.no_grad()
def reconstruct(net: nn.Module, files: Mapping[int, Path], sigma_rel: float) -> None:
    """Set the parameters of a network to the EMA with `sigma_rel`, at the step of the last snapshot.

    One snapshot at a time is in memory.

    Args:
        net: The network to overwrite.
        files: Snapshots by step, from `snapshots`.
        sigma_rel: Relative standard deviation of the EMA.

    Raises:
        ValueError: ``sigma_rel`` is out of range, or a snapshot is damaged.
    """
    weights = solve_weights(list(files), sigma_rel)
    for parameter in net.parameters():
        parameter.zero_()
    for path, row in zip(files.values(), weights):
        state = _read(path)
        for n, weight in enumerate(row):
            for name, parameter in net.named_parameters():
                parameter.add_(state[f"{n}.{name}"].to(parameter), alpha=float(weight))


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
            with safe_open(path, "pt") as file:
                stated = (file.metadata() or {}).get("sha256")
            if stated is not None and stated != digest(state):
                raise SafetensorError("wrong checksum")
            return state
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged; delete it to reconstruct from the other snapshots") from error
    if not is_intact(path):
        raise ValueError(f"{path} is damaged or incomplete; use an earlier checkpoint")
    state = AtomicCheckpointIO().load_checkpoint(path)["state_dict"]
    return {name.removeprefix("averages."): value for name, value in state.items() if name.startswith("averages.")}


def _folder(run: Path) -> Path:
    return run / "averages"
