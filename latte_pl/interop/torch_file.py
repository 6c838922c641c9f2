"""Read files of ``torch.save`` from other projects without executing code in them."""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import torch

from latte_pl.files import is_intact_zip


def load_torch_file(path: str | Path) -> Any:
    """Load a file to the CPU. Only tensors, plain Python types and the arguments of a training script are accepted.

    Files in torch's zip format are compared with their checksums and memory-mapped: tensors are read from the disk when
    they are used. Files in the format before PyTorch 1.6 have no checksums.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or contains other objects.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    is_zip = zipfile.is_zipfile(path)
    if is_zip and not is_intact_zip(path):
        raise ValueError(f"{path} is damaged: its content does not match its checksums; fetch it again")
    try:
        # the training scripts of DiT and Latte save their arguments beside the weights
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise ValueError(
            f"{path} is damaged or contains more than weights, so it is not loaded ({type(error).__name__})"
        ) from error
