"""What `latte fit` will take, and which settings lower the memory of a step or of a sample that did not fit."""

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from latte_pl.profiling.memory import Precision, count_memory, count_sampling_memory
from latte_pl.training.post_hoc_ema import SIGMA_RELS
from latte_pl.training.weights import outline

ROOT = Path(__file__).parents[1]
NUM_REMEDIES = 3
DRAWING = {"evaluation/distance.py": "distance.batch_size", "training/callbacks.py": "samples.num_samples"}
"""Callbacks that draw samples during training, and their settings of how many at once."""
CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")
"""Parts of the messages of a RuntimeError that say that memory is exhausted."""


class OutOfMemory(ValueError):
    """A command ran out of memory; the message says which settings would help."""


@dataclass(frozen=True)
class TrainingStep:
    """The settings of a training step that decide its memory.

    Args:
        config: Resolved configuration.
        num_devices: Processes of the training.
        accumulate: Batches that are accumulated for a step.
        sharded: Whether the devices share the weights (FSDP).
    """

    config: dict[str, Any]
    num_devices: int = 1
    accumulate: int = 1
    sharded: bool = False

    @property
    def global_batch_size(self) -> int:
        """Clips of a step."""
        return self.config["data"]["init_args"]["global_batch_size"]

    @property
    def batch_size(self) -> int:
        """Clips that a device holds at once."""
        return max(1, self.global_batch_size // (self.num_devices * self.accumulate))

    @property
    def precision(self) -> Precision:
        """Precision of the cost model."""
        return precision_of(self.config)

    def memory(self) -> int:
        """Return the bytes that a step takes on a device, without the autoencoder; see `count_memory`."""
        found = count_memory(
            outline(self.config),
            self.config["data"]["init_args"]["num_images"],
            self.batch_size,
            self.precision,
            len(SIGMA_RELS) if self.config["model"]["ema_snapshot_every"] else 0,
        )
        states = 5 * found.weights + found.extra_emas
        return states // (self.num_devices if self.sharded else 1) + found.activations + found.temporary

    def changed(self, name: str, value: Any) -> "TrainingStep":
        """Return the step with another setting, by its dotted name."""
        return replace(self, config=_with(self.config, name.split("."), value))

    def remedies(self) -> list[tuple[str, "TrainingStep"]]:
        """Return settings that may lower the memory without another result, then those that change what is trained."""
        found = []
        share = self.global_batch_size // self.num_devices
        more = [n for n in range(2 * self.accumulate, share + 1) if share % n == 0]
        if more:
            found.append((f"--trainer.accumulate_grad_batches {more[0]}", replace(self, accumulate=more[0])))
        net = self.config["model"]["net"]["init_args"]
        if net.get("activation_checkpointing") is not True:
            name = "model.net.init_args.activation_checkpointing"
            found.append((f"--{name} true", self.changed(name, True)))
        if self.precision != "bf16":
            found.append(("--trainer.precision bf16-mixed", self.changed("trainer.precision", "bf16-mixed")))
        if self.config["model"]["ema_snapshot_every"]:
            found.append(("--model.ema_snapshot_every 0", self.changed("model.ema_snapshot_every", 0)))
        if self.num_devices > 1 and not self.sharded:
            found.append(("-c trainer/fsdp.yaml", replace(self, sharded=True)))
        if self.config["data"]["init_args"]["num_images"]:
            found.append(("--data.num_images 0", self.changed("data.init_args.num_images", 0)))
        frames = self.config["data"]["init_args"]["num_frames"]
        if frames % 4 == 0:
            fewer = self.changed("data.init_args.num_frames", frames // 2)
            fewer = fewer.changed("model.net.init_args.num_frames", frames // 2)
            found.append((f"--data.num_frames {frames // 2}", fewer))
        return found

    def advice(self, error: BaseException) -> str:
        """Return which part of a run ran out of memory, and the settings that help most, with what they save."""
        files = files_of(error)
        for file, setting in DRAWING.items():
            if file in files:
                section, name = setting.split(".")
                return SamplingStep(self.config, self.config[section][name], setting).advice(error)
        if in_autoencoder(error):
            return (
                f"out of memory while the autoencoder encodes {self.batch_size} clips. Lower "
                f"model.autoencoder.init_args.slice_frames (8 takes half of the default 16), train from data.latents "
                "(latte encode), which needs no autoencoder, or raise trainer.accumulate_grad_batches"
            )
        total = self.memory()
        what = f"a training step of {self.batch_size} clips on a device takes about {gib(total)} and the autoencoder's"
        return (
            f"out of memory: {what} memory. {_list(total, ((name, step.memory()) for name, step in self.remedies()))}"
        )


@dataclass(frozen=True)
class SamplingStep:
    """The settings of drawing samples that decide its memory.

    Args:
        config: Resolved configuration.
        batch_size: Videos that a device draws at once.
        setting: Name of the argument that sets the batch size.
    """

    config: dict[str, Any]
    batch_size: int
    setting: str = "batch_size"

    def memory(self) -> int:
        """Return the bytes that a denoising step takes on a device, without the autoencoder."""
        guided = self.config["model"]["sampling"]["guidance"] != 1.0
        net = outline(self.config)
        return count_sampling_memory(net, self.batch_size * (2 if guided else 1), precision_of(self.config))

    def remedies(self) -> list[tuple[str, "SamplingStep"]]:
        """Return settings that may lower the memory."""
        found = [
            (f"--{self.setting} {size}", replace(self, batch_size=size))
            for size in sorted({self.batch_size // 2, self.batch_size // 4, 1} - {0, self.batch_size}, reverse=True)[:2]
        ]
        if precision_of(self.config) != "bf16":
            changed = _with(self.config, ["trainer", "precision"], "bf16-mixed")
            found.append(("--trainer.precision bf16-mixed", replace(self, config=changed)))
        if self.config["model"]["sampling"]["guidance"] != 1.0:
            changed = _with(self.config, ["model", "sampling", "guidance"], 1.0)
            found.append(("--model.sampling.guidance 1", replace(self, config=changed)))
        return found

    def advice(self, error: BaseException) -> str:
        """Return which part ran out of memory, and the settings that help most, with what they save."""
        if in_autoencoder(error):
            return (
                "out of memory while the autoencoder runs. Lower model.autoencoder.init_args.slice_frames (8 takes "
                f"half of the default 16), or {self.setting}, or use another device"
            )
        total = self.memory()
        what = f"a denoising step of {self.batch_size} videos takes about {gib(total)} and the autoencoder's memory"
        return f"out of memory: {what}. {_list(total, ((name, other.memory()) for name, other in self.remedies()))}"


def _list(total: int, remedies: Iterable[tuple[str, int]]) -> str:
    """Return the first remedies that help as text, those that save most first."""
    helping = list(islice(((size, name) for name, size in remedies if size < total), NUM_REMEDIES))
    if not helping:
        return "No setting lowers it; use a smaller model or another device"
    listed = "; ".join(f"{name} (to {gib(size)}, -{1 - size / total:.0%})" for size, name in sorted(helping))
    return f"These settings help, each alone: {listed}"


def _with(config: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """Return a nested dictionary with another value at a path."""
    first, *rest = path
    return config | {first: _with(config[first], rest, value) if rest else value}


def precision_of(config: dict[str, Any]) -> Precision:
    """Return the precision of a configuration as the cost model knows it."""
    return "bf16" if "16" in str(config["trainer"]["precision"]) else "float32"


def gib(size: int) -> str:
    """Return bytes as GiB, or MiB where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in CPU_MESSAGES)


def in_autoencoder(error: BaseException) -> bool:
    """Whether an error was raised while the autoencoder ran."""
    return any(file.startswith("autoencoders/") for file in files_of(error))


def files_of(error: BaseException) -> set[str]:
    """Return the files of this package in the traceback of an error, such as "training/module.py"."""
    paths = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return {path.relative_to(ROOT).as_posix() for path in paths if path.is_relative_to(ROOT)}


@contextmanager
def advised(advice: Callable[[BaseException], str]) -> Iterator[None]:
    """Turn an error about memory in the block into one that says what helps.

    Args:
        advice: Returns the message for such an error.

    Raises:
        OutOfMemory: The block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()  # does nothing without a GPU
        raise OutOfMemory(advice(error)) from error


def device_memory(device: torch.device) -> int:
    """Return the bytes of memory of a device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
