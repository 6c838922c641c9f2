"""Read files of ``torch.save`` from other projects without executing code in them."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch


def load_torch_file(path: str | Path) -> Any:
    """Load a file to the CPU. Only tensors, plain Python types and the arguments of a training script are accepted.

    Files in torch's zip format are memory-mapped: tensors are read from the disk when they are used.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or contains other objects.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        # the training scripts of DiT and Latte save their arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise ValueError(
            f"{path} is damaged or contains more than weights, so it is not loaded ({type(error).__name__})"
        ) from error
