"""Read trained weights of this package or of the official code, whichever a file contains."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from latte_pl import hub
from latte_pl.interop.official import load_official, official_config, with_ucf101_order
from latte_pl.interop.torch_file import load_torch_file
from latte_pl.nn import LatteConfig
from latte_pl.training import weights
from latte_pl.training.module import LatteModule
from latte_pl.training.weights import Weights

CONFIGS = Path(__file__).parents[1] / "configs"
VAE = "stabilityai/sd-vae-ft-ema"
VAE_FACTOR = 8  # pixels per latent cell
Result = TypeVar("Result")


def read_weights(path: str | Path) -> Weights:
    """Read trained weights and their configuration. No code in the file is executed.

    Args:
        path: A run's folder, a checkpoint, exported weights or the name of shipped weights (see
            `latte_pl.training.weights.read`); a ``.pt`` file of the official code; the name of official weights
            (`latte_pl.hub.OFFICIAL`); or an address of the hub (hf://OWNER/REPO/FILE) of one of these files.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is neither from this package nor from the official code.
    """
    file = weights.find(path)
    if _is_own(file):
        return weights.read(path)
    found = _read_official(file, _official_weights)
    return dataclasses.replace(found, config=_of_release(path, found.config))


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the configuration of trained weights, without reading the weights; see `read_weights`."""
    file = weights.find(path)
    if _is_own(file):
        return weights.read_config(path)
    return _of_release(path, _read_official(file, _official_configuration))


def load(path: str | Path) -> LatteModule:
    """Return the trained module of a file that `read_weights` reads, in evaluation mode."""
    found = read_weights(path)
    module = weights.build(found.config)
    found.load_into(module)
    return module.eval()


def _of_release(path: str | Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of official weights with the data and the guidance of their release."""
    release = hub.OFFICIAL.get(str(path)) if hub.is_remote(path) else None
    if release is None:
        return config
    data = yaml.safe_load((CONFIGS / release.data).read_text())["data"]
    shape = {name: config["data"]["init_args"][name] for name in ("num_frames", "size")}
    data["init_args"] |= shape
    model = config["model"] | {"sampling": {"guidance": release.guidance}}
    return config | {"data": data, "model": model}


def _is_own(path: Path) -> bool:
    return path.suffix in (".ckpt", ".safetensors")


def _read_official(path: Path, read: Callable[[dict[str, Any]], Result]) -> Result:
    """Read a checkpoint of the official code: a state dict, or a dictionary with one under "model", "ema" or both.

    Raises:
        ValueError: The file contains something else; the message names the file.
    """
    content = load_torch_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of the official Latte; it contains a {type(content).__name__}")
    if "state_dict" in content:
        raise ValueError(f"{path} is not a checkpoint of the official Latte; checkpoints of latte_pl end in .ckpt")
    try:
        return read(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _official_weights(content: dict[str, Any]) -> Weights:
    states = [content[part] for part in ("model", "ema") if part in content] or [content]
    converted = [with_ucf101_order(load_official(state).state_dict()) for state in states]
    return Weights(ema=converted[-1], raw=converted[0], config=_official_configuration(content))


def _official_configuration(content: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with which the official code trains and samples a model.

    A model of 101 classes gets the data of UCF101. Any other model gets a folder of videos, which the command line can
    replace.
    """
    net: LatteConfig = official_config(content)
    config = yaml.safe_load((CONFIGS / "data" / f"{'ucf101' if net.num_classes == 101 else 'folder'}.yaml").read_text())
    height, width = cast(tuple[int, int], net.input_size)
    size = [VAE_FACTOR * height, VAE_FACTOR * width]
    config["data"]["init_args"] |= {"num_frames": net.num_frames, "size": size}
    options = dataclasses.asdict(net) | {"input_size": [height, width]}
    config["model"] = {
        "net": {
            "class_path": "latte_pl.nn.Latte",
            "init_args": {name: value for name, value in options.items() if value is not None},
        },
        "diffusion": {
            "class_path": "latte_pl.diffusion.GaussianDiffusion",
            "init_args": {"learn_sigma": net.learn_sigma},
        },
        "autoencoder": {"class_path": "latte_pl.autoencoders.KLAutoencoder", "init_args": {"source": VAE}},
    }
    return config
