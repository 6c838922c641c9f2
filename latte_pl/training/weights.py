"""Reading and writing trained weights: checkpoints of runs and safetensors files for release."""

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from latte_pl.diffusion import Diffusion
from latte_pl.nn.denoiser import Denoiser
from latte_pl.training.checkpoints import NAME, checkpoints, write_tensors
from latte_pl.training.module import LatteModule
from latte_pl.training.settings import Sampling, check_parts

SHIPPED = Path(__file__).parents[1] / "weights"


@dataclass
class Weights:
    """Trained weights and what is needed to use them.

    Args:
        ema: State dict of the averaged denoiser.
        raw: State dict of the denoiser as the optimizer left it; of a release file, the averaged one.
        config: The run's resolved configuration, with "model" and "data".
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
            ValueError: When names or shapes differ; the first difference is named.
        """
        for net, state in ((module.net, self.raw), (module.ema, self.ema)):
            own = net.state_dict()
            for name in own.keys() | state.keys():
                if name not in state or name not in own or own[name].shape != state[name].shape:
                    theirs = tuple(state[name].shape) if name in state else "missing"
                    ours = tuple(own[name].shape) if name in own else "missing"
                    raise ValueError(
                        f"the weights do not fit the model: {name} is {theirs} in the file and {ours} in the model; "
                        "leave out the overrides of model.net that change shapes"
                    )
            net.load_state_dict(state)


def find(path: str | Path) -> Path:
    """Return the file that a user means: itself, the newest checkpoint of a run's folder, or shipped weights by name.

    Raises:
        FileNotFoundError: When there is none.
    """
    path = Path(path)
    if path.is_dir():
        found = checkpoints(path / "checkpoints") or checkpoints(path)
        if not found:
            raise FileNotFoundError(f"{path} holds no checkpoint (checkpoints/step=N.ckpt)")
        return found[-1]
    shipped = SHIPPED / f"{path}.safetensors"
    if not path.is_file() and shipped.is_file():
        return shipped
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors")))
        raise FileNotFoundError(f"no checkpoint at {path}; shipped weights are {names}")
    return path


def step_of(path: str | Path) -> int:
    """Return the optimizer step of a checkpoint, from its name where that tells."""
    match = NAME.fullmatch(find(path).name)
    return int(match[1]) if match else read(path).step


def read(path: str | Path) -> Weights:
    """Read a checkpoint, a run's folder or a release file; nothing in it is executed.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is neither one of ours nor of the official code.
    """
    path = find(path)
    if path.suffix == ".safetensors":
        if "config" not in (kept := metadata(path)):
            raise ValueError(f"{path} carries no configuration; it was not written by `latte export`")
        state, about = {name: value.float() for name, value in load_file(path).items()}, json.loads(kept["config"])
        return Weights(state, state, about["config"], about["class_names"], about["step"])
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official code keeps its arguments in one
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        official = "state_dict" not in checkpoint and bool({"ema", "model", "pos_embed"} & checkpoint.keys())
        state, config = (checkpoint, {}) if official else (checkpoint["state_dict"], checkpoint["config"])
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise ValueError(
            f"{path} is not a whole checkpoint of a latte run or of the official code ({type(error).__name__})"
        ) from error
    if official:
        return _official(path, state)
    raw = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    ema = {name.removeprefix("ema."): value for name, value in state.items() if name.startswith("ema.")}
    return Weights(ema, raw, config, checkpoint["class_names"], checkpoint["global_step"])


def metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself.

    Raises:
        ValueError: It is not a whole one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def _official(path: Path, checkpoint: dict[str, Any]) -> Weights:
    """Read a checkpoint of the official code: its weights, and the configuration that samples as it does.

    A model of 101 classes is one of UCF101; any other takes its data from the command line.
    """
    from latte_pl.interop.official import load_official, with_ucf101_order  # its package imports this module

    try:
        nets = [load_official(checkpoint[part]) for part in ("model", "ema") if part in checkpoint]
        nets = nets or [load_official(checkpoint)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    net, states = nets[0], [with_ucf101_order(net.state_dict()) for net in nets]
    overlay = "ucf101" if net.num_classes == 101 else "folder"
    config = yaml.safe_load((SHIPPED.parent / "configs" / "data" / f"{overlay}.yaml").read_text())
    names = ("hidden_size", "depth", "num_heads", "patch_size", "in_channels", "num_frames", "mlp_ratio", "learn_sigma")
    shape = {name: getattr(net, name) for name in (*names, "conditioning", "num_classes")}
    config["model"]["net"]["init_args"] = {**shape, "input_size": list(net.input_size)}
    config["model"]["diffusion"] = {
        "class_path": "latte_pl.diffusion.GaussianDiffusion",
        "init_args": {"learn_sigma": net.learn_sigma},
    }
    cell = 8  # of Stable Diffusion's autoencoder, in pixels
    config["data"]["init_args"] |= {"num_frames": net.num_frames, "size": [cell * side for side in net.input_size]}
    return Weights(ema=states[-1], raw=states[0], config=config)


def export(ckpt_path: str, output: str, dtype: Literal["float32", "float16", "bfloat16"] = "float32") -> None:
    """Write the averaged weights of a run, with their configuration, as one safetensors file.

    Args:
        ckpt_path: A checkpoint or a run's folder.
        output: The file to write, ending in .safetensors.
        dtype: Storage type of the weights; they are used in float32.

    Raises:
        ValueError: When the file's name has another ending.
    """
    path = release_file(output)
    make_room(path)
    weights = read(ckpt_path)
    release(weights, {name: value.to(getattr(torch, dtype)) for name, value in weights.ema.items()}, path)
    print(f"{output}: {Path(output).stat().st_size / 1e6:.1f} MB")


def release_file(output: str) -> Path:
    """Return the path of a release file to write.

    Raises:
        ValueError: When its name has another ending.
    """
    if not output.endswith(".safetensors"):
        raise ValueError(f"output is {output!r}; its name must end in .safetensors")
    return Path(output)


def make_room(path: Path) -> None:
    """Make the folder of a file that is to be written later.

    Raises:
        OSError: The file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}; choose another output") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OSError(f"cannot write {path}: it is a folder, or may not be written; choose another output")


def release(weights: Weights, state: dict[str, Tensor], path: Path) -> None:
    """Write a denoiser's state dict as a release file, with the configuration and the step of a run's weights."""
    config = {name: weights.config[name] for name in ("model", "data", "seed_everything") if name in weights.config}
    about = {"config": config, "class_names": weights.class_names, "step": weights.step}
    write_tensors(state, path, {"config": json.dumps(about)})


def build_net(config: Any) -> Denoiser:
    """Build the denoiser alone of a configuration's ``model.net``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Denoiser, "net")
    return parser.instantiate_classes(parser.parse_object({"net": config})).net


def outline(config: dict[str, Any]) -> Denoiser:
    """Return the denoiser of a resolved configuration on the meta device; nothing is allocated, no codec is opened.

    Raises:
        ValueError: Denoiser, objective and sampling do not fit together.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Diffusion, "diffusion")
    parser.add_class_arguments(Sampling, "sampling")
    parts = {name: config["model"][name] for name in ("diffusion", "sampling")}
    built = parser.instantiate_classes(parser.parse_object(parts))
    with torch.device("meta"):
        net = build_net(config["model"]["net"])
    check_parts(net, built.diffusion, built.sampling)
    return net


def build(config: dict[str, Any]) -> LatteModule:
    """Build the module that a resolved configuration describes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LatteModule, "model")
    return parser.instantiate_classes(parser.parse_object({"model": config["model"]})).model


def load(path: str | Path) -> LatteModule:
    """Return the trained module of a checkpoint, a run's folder or a release file, for use in Python."""
    weights = read(path)
    module = build(weights.config)
    weights.load_into(module)
    return module.eval()
