"""Checkpoints of the official code (Vchitect/Latte).

Its classes `Latte` and `LatteIMG` are both `latte_pl.nn.Latte` with default options. Parameters have the same names and
layouts. Position tables are parameters in the official code and buffers outside the state dict here.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from latte_pl.interop.torch_file import load_torch_file
from latte_pl.nn import Latte, LatteConfig
from latte_pl.nn.latte import SIZES
from latte_pl.nn.positions import sincos_1d, sincos_2d

TABLES = ("pos_embed", "temp_embed")
PATCH_WEIGHT = "x_embedder.proj.weight"  # (D, C, p, p)
LABEL_TABLE = "y_embedder.embedding_table.weight"  # (num_classes + 1, D), the null class last
WITHOUT_EFFECT = ("size", "token_placement", "class_dropout", "activation_checkpointing")
"""Options that do not change the outputs of a model with the official options."""


def load_official(source: str | Path | dict[str, Any], **overrides: Any) -> Latte:
    """Build the model of an official checkpoint and load its weights.

    The options that `READERS` lists are read from the shapes of the weights. All other options have their defaults,
    which are those of the official code.

    Args:
        source: Path of a ``.pt`` file or its content: a state dict, or a dictionary with one under "ema" (preferred) or
            "model".
        overrides: Options of `latte_pl.nn.Latte` that replace those read from the checkpoint. ``num_heads`` is required
            if the width is not that of a known size, ``input_size`` if the latents are not square.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source is not such a checkpoint, keys are missing, unexpected or of other shapes (all are
            named), or the position tables are not those of the official code.
    """
    state = _state_dict(source)
    model = Latte(**_options(state, overrides))
    _check_tables(state, model.config.grid)
    weights = {key: value for key, value in state.items() if key not in TABLES}
    expected = model.state_dict()
    problems = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {k for k in expected.keys() & weights.keys() if expected[k].shape != weights[k].shape},
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in problems.items() if keys)
        raise ValueError(f"the checkpoint does not fit the model; keys {listed}")
    model.load_state_dict(weights)
    return model


def official_config(source: str | Path | dict[str, Any]) -> LatteConfig:
    """Return the options of an official checkpoint, from the shapes of its weights; see `load_official`."""
    return LatteConfig(**_options(_state_dict(source), {}))


def export_official(model: Latte) -> dict[str, Tensor]:
    """Return the state dict that the official class loads, including position tables.

    Args:
        model: A model with square latents and the official options.

    Raises:
        ValueError: The official code has no such model.
    """
    config = model.config
    options = {name: getattr(config, name) for name in READERS}
    options |= {
        "input_size": cast(tuple[int, int], config.input_size)[0],
        "conditioning": "class" if config.num_classes else "none",
    }
    official = LatteConfig(**options)
    for name in (field.name for field in fields(LatteConfig) if field.name not in WITHOUT_EFFECT):
        ours, theirs = getattr(config, name), getattr(official, name)
        if ours != theirs:
            raise ValueError(f"the official code supports only {name}={theirs}; the model has {name}={ours}")
    tables = {"pos_embed": model.pos_embed[None].clone(), "temp_embed": model.temp_embed[None].clone()}
    return tables | {key: value.clone() for key, value in model.state_dict().items()}


def with_ucf101_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the label table of a UCF101 model from the official order of classes to ``classInd.txt``'s, or back.

    The official code sorts the class folders by character code, which swaps HammerThrow with Hammering and JumpRope
    with JumpingJack.

    Args:
        state: A state dict, which is not changed. Tables of other than 101 + 1 classes keep their order.
    """
    if LABEL_TABLE not in state or len(state[LABEL_TABLE]) != 102:
        return state
    order = list(range(102))
    for i in (34, 46):
        order[i], order[i + 1] = i + 1, i
    return {**state, LABEL_TABLE: state[LABEL_TABLE][order]}


def _state_dict(source: str | Path | dict[str, Any]) -> dict[str, Tensor]:
    """Return the state dict in a file or in its content."""
    state = source if isinstance(source, dict) else load_torch_file(source)
    part = next((part for part in ("ema", "model") if part in state), None)
    state = state[part] if part else state
    needed = [*TABLES, PATCH_WEIGHT, "blocks.0.mlp.fc1.weight", "final_layer.linear.weight"]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"not a checkpoint of the official Latte; missing keys: {', '.join(missing)}")
    return state


def _options(state: dict[str, Tensor], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the model of a state dict."""
    return {name: read(state) for name, read in READERS.items() if name not in overrides} | overrides


def _read_num_heads(state: dict[str, Tensor]) -> int:
    heads = {width: num_heads for width, _, num_heads in SIZES.values()}
    width = len(state[PATCH_WEIGHT])
    if width not in heads:
        raise ValueError(f"the weights have hidden_size {width}, which is not that of a known size; pass num_heads")
    return heads[width]


def _read_input_size(state: dict[str, Tensor]) -> int:
    num_patches = state["pos_embed"].shape[1]
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"the weights have {num_patches} patches per frame, which is not a square; pass input_size")
    return side * state[PATCH_WEIGHT].shape[-1]


def _read_learn_sigma(state: dict[str, Tensor]) -> bool:
    _, in_channels, patch_size, _ = state[PATCH_WEIGHT].shape
    return len(state["final_layer.linear.weight"]) == 2 * in_channels * patch_size**2


READERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "hidden_size": lambda state: len(state[PATCH_WEIGHT]),
    "depth": lambda state: 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
    "num_heads": _read_num_heads,
    "patch_size": lambda state: state[PATCH_WEIGHT].shape[-1],
    "input_size": _read_input_size,
    "in_channels": lambda state: state[PATCH_WEIGHT].shape[1],
    "num_frames": lambda state: state["temp_embed"].shape[1],
    "mlp_ratio": lambda state: len(state["blocks.0.mlp.fc1.weight"]) / len(state[PATCH_WEIGHT]),
    "learn_sigma": _read_learn_sigma,
    "conditioning": lambda state: "class" if LABEL_TABLE in state else "none",
    "num_classes": lambda state: len(state[LABEL_TABLE]) - 1 if LABEL_TABLE in state else 0,
}
"""Options in which official models differ, and how each is read from the shapes of the weights."""


def _check_tables(state: dict[str, Tensor], grid: tuple[int, int]) -> None:
    """Check that the position tables are the sin-cos tables that the model computes.

    Raises:
        ValueError: They are not.
    """
    dim = state["pos_embed"].shape[-1]
    computed = {"pos_embed": sincos_2d(*grid, dim), "temp_embed": sincos_1d(state["temp_embed"].shape[1], dim)}
    for key, expected in computed.items():
        table, expected = state[key].float(), expected.to(state[key].device)
        # the tolerance accepts tables in half precision
        if table.shape != expected[None].shape or not torch.allclose(table[0], expected, atol=1e-3):
            raise ValueError(f"{key} of the checkpoint is not the sin-cos table of the official code")
