"""Experiments and ablations for Latte, the latent diffusion transformer for video, on PyTorch Lightning.

The public names below are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

HOMES = {
    "Latte": "nn",
    "LatteConfig": "nn",
    "GaussianDiffusion": "diffusion",
    "RectifiedFlow": "diffusion",
    "Guidance": "diffusion",
    "KLAutoencoder": "autoencoders",
    "PixelAutoencoder": "autoencoders",
    "T5Encoder": "autoencoders",
    "Folder": "data",
    "FaceForensics": "data",
    "SkyTimelapse": "data",
    "TaichiHD": "data",
    "UCF101": "data",
    "Shapes": "toy",
    "LatteModule": "training",
    "Sampling": "training",
    "Pretrained": "training",
    "ProtocolEvaluation": "evaluation",
    "VideoDistance": "evaluation",
    "VideoWriter": "evaluation",
    "load": "interop",
    "load_official": "interop",
}
"""The package that each public name belongs to."""
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
