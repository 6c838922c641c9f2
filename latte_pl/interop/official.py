"""Checkpoints of the official code (Vchitect/Latte): its classes `Latte` and `LatteIMG` are one `latte_pl.nn.Latte`.

Parameters have the same names and layouts there; only the position tables differ, which are parameters there and
buffers outside the state dict here.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latte_pl.nn import Latte
from latte_pl.nn.latte import SIZES
from latte_pl.nn.positions import sincos_1d, sincos_2d

TABLES = ("pos_embed", "temp_embed")


def load_official(source: str | Path | dict[str, Any], **overrides: Any) -> Latte:
    """Build the model of an official checkpoint and load its weights.

    Width, depth, patch, latent size, channels, frames and classes are read from the shapes.

    Args:
        source: path of a ``.pt`` file, or its content: a state dict, or one under "ema" (taken first) or "model".
        overrides: arguments of `latte_pl.nn.Latte` that replace those read from the checkpoint. ``num_heads`` is needed
            where the width is of no known size, ``input_size`` where the latents are not square.

    Returns:
        The model on the CPU, in training mode like any new module.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a checkpoint; missing, unexpected or misshapen keys, all named; position tables that
            are not the ones computed here.
    """
    state = _state_dict(source)
    model = Latte(**{**_arguments(state, overrides), **overrides})
    _check_tables(state, model.grid)
    weights = {key: value for key, value in state.items() if key not in TABLES}
    expected = model.state_dict()
    problems = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape},
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the checkpoint does not fit the model, keys {listed}")
    model.load_state_dict(weights)
    return model


def export_official(model: Latte) -> dict[str, Tensor]:
    """Return the state dict that the official class of the model loads, position tables included.

    Args:
        model: an interleaved model with uniform patches, adaLN, absolute positions and square latents.

    Raises:
        ValueError: a model that the official code cannot express.
    """
    official = {
        "variant": "interleaved",
        "patch_embed": "uniform",
        "injection": "adaln",
        "temporal_position": "absolute",
        "spatial_position": "absolute",
        "qk_norm": False,
        "swiglu": False,
        "rms_norm": False,
        "text_dim": 0,
        "grid": (model.grid[0],) * 2,
    }
    for name, value in official.items():
        if getattr(model, name) != value:
            raise ValueError(f"the official code has {name} = {value} only, the model has {getattr(model, name)}")
    tables = {"pos_embed": model.pos_embed[None].clone(), "temp_embed": model.temp_embed[None].clone()}
    return tables | {key: value.clone() for key, value in model.state_dict().items()}


def with_ucf101_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the label table of a model trained on UCF101 in the order of ``classInd.txt``, or back.

    The official code numbers the classes by sorting their folders by character code, which swaps HammerThrow with
    Hammering and JumpRope with JumpingJack.

    Args:
        state: a state dict, which is left as it is; tables of another number of classes than 101 + 1 keep their order.
    """
    name = "y_embedder.embedding_table.weight"
    if name not in state or len(state[name]) != 102:
        return state
    order = list(range(102))
    for i in (34, 46):
        order[i], order[i + 1] = i + 1, i
    return {**state, name: state[name][order]}


def _state_dict(source: str | Path | dict[str, Any]) -> dict[str, Tensor]:
    """Load the source and descend to the weights."""
    if isinstance(source, dict):
        state = source
    elif Path(source).is_file():
        state = torch.load(source, map_location="cpu", weights_only=True)
    else:
        raise FileNotFoundError(f"no official checkpoint at {source}")
    part = next((part for part in ("ema", "model") if part in state), None)
    state = state[part] if part else state
    needed = [*TABLES, "x_embedder.proj.weight", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight"]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"not a checkpoint of the official Latte: missing keys {', '.join(missing)}")
    return state


def _arguments(state: dict[str, Tensor], overrides: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments of the model from the shapes of its weights."""
    dim, in_channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    heads = {width: num_heads for width, _, num_heads in SIZES.values()}
    if dim not in heads and "num_heads" not in overrides:
        raise ValueError(f"width {dim} is of no known size: give num_heads")
    side = math.isqrt(state["pos_embed"].shape[1])
    if side**2 != state["pos_embed"].shape[1] and "input_size" not in overrides:
        raise ValueError(f"{state['pos_embed'].shape[1]} places are not a square: give input_size")
    arguments: dict[str, Any] = {
        "hidden_size": dim,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "num_heads": heads.get(dim),
        "patch_size": patch_size,
        "input_size": side * patch_size,
        "in_channels": in_channels,
        "num_frames": state["temp_embed"].shape[1],
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        "learn_sigma": state["final_layer.linear.weight"].shape[0] == 2 * in_channels * patch_size**2,
    }
    labels = state.get("y_embedder.embedding_table.weight")
    if labels is not None:  # the last row is the null class
        arguments |= {"conditioning": "class", "num_classes": len(labels) - 1}
    return arguments


def _check_tables(state: dict[str, Tensor], grid: tuple[int, int]) -> None:
    """Refuse tables other than the sin-cos codes, to which the model is bound."""
    dim = state["pos_embed"].shape[-1]
    codes = {"pos_embed": sincos_2d(*grid, dim), "temp_embed": sincos_1d(state["temp_embed"].shape[1], dim)}
    for key, code in codes.items():
        table = state[key].float()
        if table.shape != code[None].shape or not torch.allclose(table[0], code, atol=1e-3):  # half precision passes
            raise ValueError(f"{key} of the checkpoint is not the sin-cos table of the official code")
