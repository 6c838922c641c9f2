"""Trained weights: found by path or name, read from checkpoints and exported files, written for use elsewhere."""

import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from latte_pl import hub
from latte_pl.diffusion import Diffusion
from latte_pl.nn.denoiser import Denoiser
from latte_pl.training import sharded
from latte_pl.training.checkpoints import NAME, checkpoints, digest, is_intact, newest_intact, write_tensors
from latte_pl.training.components import instantiate
from latte_pl.training.module import LatteModule
from latte_pl.training.renames import upgrade
from latte_pl.training.settings import Sampling, check_parts

SHIPPED = Path(__file__).parents[1] / "weights"
USED = ("model", "data", "seed_everything")
"""Sections of a run's configuration that are needed to use its model."""


@dataclass
class Weights:
    """Trained weights and what is needed to use them.

    Args:
        ema: State dict of the EMA of the denoiser.
        raw: State dict of the denoiser as the optimizer left it; exported files hold the EMA only.
        config: Resolved configuration of the run, with the sections "model" and "data".
        class_names: Names of the classes, empty when unlabelled.
        step: Optimizer steps taken.
    """

    ema: dict[str, Tensor]
    raw: dict[str, Tensor]
    config: dict[str, Any]
    class_names: list[str] = field(default_factory=list)
    step: int = 0

    def load_into(self, module: LatteModule) -> None:
        """Copy the weights into a module.

        Raises:
            ValueError: Names or shapes differ; the first difference is named.
        """
        for net, state in ((module.net, self.raw), (module.ema, self.ema)):
            own = net.state_dict()
            for name in own.keys() | state.keys():
                if name not in state or name not in own or own[name].shape != state[name].shape:
                    theirs = tuple(state[name].shape) if name in state else "missing"
                    ours = tuple(own[name].shape) if name in own else "missing"
                    raise ValueError(
                        f"the weights do not fit the model: {name} is {theirs} in the file and {ours} in the model; "
                        "remove the settings of model.net that change shapes"
                    )
            net.load_state_dict(state)


def find(path: str | Path) -> Path:
    """Return the file that a path or name refers to.

    Args:
        path: A file, a run's folder (its newest checkpoint), the name of shipped weights, an address of the hub
            (hf://OWNER/REPO/FILE), or the name of official weights (`latte_pl.hub.OFFICIAL`).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checksum of a download is wrong.
    """
    path = hub.find(path)
    if sharded.is_sharded(path):
        return path
    if path.is_dir():
        found = checkpoints(path / "checkpoints") or checkpoints(path)
        if not found:
            raise FileNotFoundError(f"{path} has no checkpoint (checkpoints/step=N.ckpt)")
        return found[-1]
    shipped = SHIPPED / f"{path}.safetensors"
    if not path.is_file() and shipped.is_file():
        return shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
        official = ", ".join(hub.OFFICIAL)
        raise FileNotFoundError(
            f"there is no checkpoint at {path}; the shipped weights are: {names}; those of the hub are: {official}, or "
            "hf://OWNER/REPO/FILE"
        )
    return path


def run_of(path: str | Path) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None for other files and those of the hub."""
    file = find(path)
    own = file.parent.name in ("checkpoints", "averages") and not hub.is_remote(path)
    return file.parent.parent if own else None


def step_of(path: str | Path) -> int:
    """Return the optimizer step of a checkpoint."""
    match = NAME.fullmatch(find(path).name)
    return int(match[1]) if match else int(_open(find(path), weights=False)["global_step"])


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the configuration in a checkpoint, a run's folder or an exported file, without reading the weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of latte_pl, or has no configuration.
    """
    file = find(path)
    if file.suffix == ".safetensors":
        return upgrade(_exported(file)["config"])
    is_run = Path(path).is_dir() and not sharded.is_sharded(Path(path))
    earlier = checkpoints(file.parent)[:-1] if is_run else []  # used if the newest is damaged
    for other in reversed(earlier):
        try:
            return _config_of(file, _open(file, weights=False))
        except ValueError:
            file = other
    return _config_of(file, _open(file, weights=False))


def read(path: str | Path) -> Weights:
    """Read a checkpoint, a run's folder or an exported file. Nothing in it is executed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint of latte_pl, or some weights are not finite.
    """
    path = intact(path)
    if path.suffix == ".safetensors":
        about = _exported(path)
        stored = load_file(path)
        if "sha256" in about and about["sha256"] != digest(stored):
            raise ValueError(f"{path} is damaged: its weights do not match their checksum; export or fetch it again")
        _check_finite(path, stored)
        state = {name: value.float() for name, value in stored.items()}
        return Weights(state, state, upgrade(about["config"]), about["class_names"], about["step"])
    checkpoint = _open(path)
    state = checkpoint["state_dict"]
    _check_finite(path, state)
    raw = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    ema = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    return Weights(ema, raw, _config_of(path, checkpoint), checkpoint.get("class_names", []), checkpoint["global_step"])


def _check_finite(path: Path, state: dict[str, Tensor]) -> None:
    for name, value in state.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{path} holds values that are not finite ({name}): its training diverged; use an earlier checkpoint"
            )


def intact(path: str | Path) -> Path:
    """Return the file that a path or name refers to; damaged checkpoints of a run's folder are skipped.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    file = find(path)
    if file.suffix in (".safetensors", ".pt") or is_intact(file):
        return file
    is_run = Path(path).is_dir() and not sharded.is_sharded(Path(path))
    other = newest_intact(file.parent) if is_run else None
    if other is None:
        raise ValueError(f"{file} is damaged or incomplete; use an earlier checkpoint")
    return other


def _open(path: Path, weights: bool = True) -> dict[str, Any]:
    """Open a checkpoint memory-mapped: tensors are read from the disk when they are used; a sharded one is read."""
    try:
        if sharded.is_sharded(path):
            return sharded.read(path, ("state_dict",) if weights else ())
        with zipfile.ZipFile(path) as file:  # everything but the tensors; reading compares it with its checksum
            for name in file.namelist():
                if name.endswith("/data.pkl"):
                    file.read(name)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        checkpoint["state_dict"], checkpoint["global_step"]
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise ValueError(f"{path} is no complete checkpoint of latte_pl ({type(error).__name__})") from error
    return checkpoint


def _config_of(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the run's configuration, or the module's hyperparameters where it was trained from Python."""
    if "config" in checkpoint:
        return upgrade(checkpoint["config"])
    if "hyper_parameters" in checkpoint:
        return {"model": checkpoint["hyper_parameters"]}
    raise ValueError(f"{path} has no configuration; it was not written by a LatteModule")


def _exported(path: Path) -> dict[str, Any]:
    """Return the configuration, class names and step that an exported file carries."""
    kept = metadata(path)
    if "config" not in kept:
        raise ValueError(f"{path} has no configuration; it was not written by `latte export`")
    return json.loads(kept["config"])


def metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        ValueError: The file is incomplete.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error})") from error


def export(ckpt_path: str, output: str, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> Path:
    """Write the EMA weights of a run, with their configuration, to one safetensors file.

    Args:
        ckpt_path: A checkpoint or a run's folder.
        output: The file to write, ending in .safetensors.
        dtype: Storage type of the weights; they are used in float32.

    Returns:
        The path of the file.

    Raises:
        ValueError: The file's name has another ending.
        OSError: The file cannot be written.
    """
    path = export_path(output)
    check_writable(path)
    weights = read(ckpt_path)
    write_export(weights, {name: value.to(getattr(torch, dtype)) for name, value in weights.ema.items()}, path)
    return path


def export_path(output: str) -> Path:
    """Return the path of an exported file.

    Raises:
        ValueError: Its name has another ending than .safetensors.
    """
    if not output.endswith(".safetensors"):
        raise ValueError(f"output is {output!r}; its name must end in .safetensors")
    return Path(output)


def check_writable(path: Path) -> None:
    """Create the folder of a file that will be written later.

    Raises:
        OSError: The file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}; choose another output") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"cannot write {path}: it is a folder, or its folder is read-only; choose another output")


def write_export(weights: Weights, state: dict[str, Tensor], path: Path) -> None:
    """Write a denoiser's state dict with the configuration, class names and step of a run's weights."""
    config = {name: weights.config[name] for name in USED if name in weights.config}
    about = {"config": config, "class_names": weights.class_names, "step": weights.step, "sha256": digest(state)}
    write_tensors(state, path, {"config": json.dumps(about)})


def outline(config: dict[str, Any]) -> Denoiser:
    """Build the denoiser of a resolved configuration on the meta device: no memory is allocated, no file is read.

    Raises:
        ValueError: Denoiser, objective and sampling do not fit together.
    """
    model = config["model"]
    with torch.device("meta"):
        net = instantiate(Denoiser, model["net"])
    check_parts(net, instantiate(Diffusion, model["diffusion"]), instantiate(Sampling, model["sampling"]))
    return net


def build(config: dict[str, Any]) -> LatteModule:
    """Build the module of a resolved configuration, without the copies that only training needs."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LatteModule, "model")
    settings = {**config["model"], "ema_snapshot_every": 0}
    return parser.instantiate(parser.parse_object({"model": settings})).model


def load(path: str | Path) -> LatteModule:
    """Return the trained module of a checkpoint, a run's folder, an exported file or shipped weights."""
    weights = read(path)
    module = build(weights.config)
    weights.load_into(module)
    return module.eval()
