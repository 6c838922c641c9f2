"""Import the official code (Vchitect/Latte) from a checkout, as the baseline of the benchmarks.

The official model needs the package timm. Only the modules of a training step are imported, because the official
packages import further dependencies.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def load(path: Path, name: str, file: str) -> ModuleType:
    """Import one file of the checkout, or one package by its ``__init__.py``, under another name."""
    source = path / file
    if not source.is_file():
        raise SystemExit(f"{source} does not exist; set --official to a checkout of github.com/Vchitect/Latte")
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(path: Path, size: str, num_classes: int, input_size: int = 32, num_frames: int = 16) -> nn.Module:
    """Build the official class-conditional model without zero weights."""
    if importlib.util.find_spec("timm") is None:
        raise SystemExit("the official code needs timm; run pip install timm")
    model = load(path, "official_latte", "models/latte.py").Latte_models[f"Latte-{size}/2"](
        input_size=input_size, num_classes=num_classes, num_frames=num_frames, extras=2
    )
    for name, parameter in model.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            nn.init.normal_(parameter, std=0.02)
    return model


def diffusion(path: Path, steps: int | None = None) -> Any:
    """Return the official diffusion with 1000 steps, or respaced to ``steps``."""
    create = load(path, "official_diffusion", "diffusion/__init__.py").create_diffusion
    return create(timestep_respacing="" if steps is None else str(steps))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float = 0.9999) -> None:
    """Update the EMA one parameter at a time, as the official training script does."""
    averages: dict[str, Tensor] = dict(ema.named_parameters())
    for name, parameter in model.named_parameters():
        averages[name].mul_(decay).add_(parameter, alpha=1 - decay)
