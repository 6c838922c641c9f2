"""Sharded checkpoints: folders in which every process writes its own part (torch.distributed.checkpoint).

A sharded checkpoint is a folder ``step=N.ckpt`` with the tensors in the format of torch.distributed.checkpoint, all
other values in ``meta.pt``, and the CRC-32 of every file in ``checksums.json``. Any number of processes can read it.
"""

import json
import os
import pickle
import shutil
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter

META = "meta.pt"
CHECKSUMS = "checksums.json"
BLOCK = 1 << 24  # bytes that are read at a time
CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex"),
        *("StorageMeta", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath"),
}
"""Classes that the metadata of a sharded checkpoint consist of; no other class is created."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise ValueError(f"it contains {module}.{name}, which no checkpoint of latte_pl does")


class _Reader(FileSystemReader):
    """Read a sharded checkpoint without executing anything that it holds."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with (Path(self.path) / ".metadata").open("rb") as file:
            return _Unpickler(file).load()


class _Planner(DefaultLoadPlanner):
    """Load tensors only; other values would be unpickled."""

    def load_bytes(self, *args: Any) -> NoReturn:
        raise ValueError("the checkpoint has values that are no tensors; it was not written by latte_pl")


def is_sharded(path: Path) -> bool:
    """Return whether a path is a sharded checkpoint."""
    return (path / META).is_file()


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a sharded checkpoint atomically. Every process has to call this.

    Args:
        checkpoint: A checkpoint of Lightning, whose tensors are this process's shards (DTensor).
        path: The folder, on a file system that all processes share.

    Raises:
        OSError: A part cannot be written; earlier checkpoints are unchanged.
    """
    part, first = path.with_name(f".{path.name}.part"), dist.get_rank() == 0
    if first:  # of a process that was killed
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    meta = dict(checkpoint)
    tensors = {"state_dict": meta.pop("state_dict")}
    groups = []
    for n, state in enumerate(meta.pop("optimizer_states")):
        tensors[f"optimizer_{n}"] = state["state"]
        groups.append(state["param_groups"])
    dcp.save(tensors, storage_writer=FileSystemWriter(part))
    if first:
        torch.save(meta | {"param_groups": groups}, part / META)
    own = [file for file in part.iterdir() if file.name.startswith(f"__{dist.get_rank()}_")]
    if first:
        own += [part / META, part / ".metadata"]
    checksums: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(checksums, {file.name: _crc(file) for file in own})
    if first:
        merged = {name: value for part_of_one in checksums for name, value in part_of_one.items()}
        (part / CHECKSUMS).write_text(json.dumps(merged))
        for file in part.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(path, ignore_errors=True)  # a damaged one of the same step
        part.rename(path)
    dist.barrier()


def is_intact(path: Path) -> bool:
    """Return whether the files of a sharded checkpoint match their checksums. Reads all of them."""
    try:
        stated = json.loads((path / CHECKSUMS).read_text())
        return all(_crc(path / name) == value for name, value in stated.items())
    except (OSError, ValueError, AttributeError):
        return False


def read_meta(path: Path) -> dict[str, Any]:
    """Return everything of a sharded checkpoint but the tensors."""
    return torch.load(path / META, map_location="cpu", weights_only=True)


def load(tensors: dict[str, Any], path: Path) -> None:
    """Load tensors in place, each process its shards of them.

    Args:
        tensors: Nested dictionary of tensors, with the names of the checkpoint.
        path: The sharded checkpoint.
    """
    dcp.load(tensors, storage_reader=_Reader(path), planner=_Planner(), no_dist=not dist.is_initialized())


def read(path: Path, parts: Sequence[str] = ("state_dict",)) -> dict[str, Any]:
    """Read a sharded checkpoint into the memory of this process, as the checkpoint that a single device writes.

    Args:
        path: The sharded checkpoint.
        parts: What is read of the tensors: "state_dict", "optimizer_0".
    """
    stored = _Reader(path).read_metadata()
    tensors: dict[str, Any] = {}
    for name, place in stored.planner_data.items():
        if place[0] not in parts:
            continue
        about, inside = stored.state_dict_metadata[name], tensors
        for key in place[:-1]:
            inside = inside.setdefault(key, {})
        inside[place[-1]] = torch.empty(about.size, dtype=about.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as wanted
        if tensors:
            dcp.load(tensors, storage_reader=_Reader(path), planner=_Planner(), no_dist=True)
    meta = read_meta(path)
    groups = meta.pop("param_groups")
    result = meta | {"state_dict": tensors.get("state_dict", {})}
    if "optimizer_0" in parts:
        names = [name for group in groups[0] for name in group["params"]]
        index = {name: n for n, name in enumerate(names)}
        numbered = [group | {"params": [index[name] for name in group["params"]]} for group in groups[0]]
        state = {index[name]: value for name, value in tensors.get("optimizer_0", {}).items()}
        result["optimizer_states"] = [{"state": state, "param_groups": numbered}]
    return result


def _crc(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total = zlib.crc32(block, total)
    return total
