"""The official code (Vchitect/Latte) as the baseline of the benchmarks, imported from a checkout that the user names.

It needs timm, which this package does not. Only the modules that a step needs are loaded, since the packages around
them import what a measuring machine lacks.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def load(path: Path, name: str, file: str) -> ModuleType:
    """Import one file, or one package by its __init__.py, of the checkout under a name of its own."""
    source = path / file
    if not source.is_file():
        raise SystemExit(f"{source} does not exist: --official takes a checkout of github.com/Vchitect/Latte")
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(path: Path, size: str, num_classes: int, input_size: int = 32, num_frames: int = 16) -> nn.Module:
    """Build the official class-conditional model with weights that are nowhere zero."""
    if importlib.util.find_spec("timm") is None:
        raise SystemExit("the official code imports timm: pip install timm")
    model = load(path, "official_latte", "models/latte.py").Latte_models[f"Latte-{size}/2"](
        input_size=input_size, num_classes=num_classes, num_frames=num_frames, extras=2
    )
    for name, parameter in model.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def diffusion(path: Path, steps: int | None = None) -> Any:
    """Return the official diffusion of 1000 steps, or its chain respaced to so many."""
    create = load(path, "official_diffusion", "diffusion/__init__.py").create_diffusion
    return create(timestep_respacing="" if steps is None else str(steps))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float = 0.9999) -> None:
    """Move the average one parameter at a time, as the official training script does."""
    averaged: dict[str, Tensor] = dict(ema.named_parameters())
    for name, parameter in model.named_parameters():
        averaged[name].mul_(decay).add_(parameter, alpha=1 - decay)
