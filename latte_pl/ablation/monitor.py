"""The callback of a trial: compares the built model with the row, stops diverged trainings, and records costs."""

import hashlib
import inspect
import itertools
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torchmetrics import MeanMetric

from latte_pl.ablation.identity import SETTINGS_WITHOUT_EFFECT
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.files import read_json, write_json, write_text
from latte_pl.metrics.protocol import canonical_json
from latte_pl.nn import Latte
from latte_pl.profiling.cost import count_cost
from latte_pl.training.checkpoints import digest
from latte_pl.training.module import HELD_OUT_SEED, LatteModule

MISSING = object()


class TrialMonitor(Callback):
    """Check that the built model matches its row, stop a diverged training, and record what the training costs.

    Writes ``built.json`` (design axes, held-out protocol, parameters, FLOPs, initial weights) when training starts,
    ``progress.json`` about once a second, and ``cost.json`` (clips per second, peak memory) when training ends. Logs
    the held-out loss at the steps of ``points.json``, if the folder has such a file.

    Args:
        expected: Settings of the row by dotted name, as JSON.
        folder: Folder of the trial.
    """

    def __init__(self, expected: str, folder: str) -> None:
        self.expected: dict[str, Any] = json.loads(expected)
        self.folder = Path(folder)
        self._starts: list[float] = []  # times at which batches started
        self._written = 0.0
        self._peak = 0
        self._points: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the built model and data with the row, and write what was built.

        Raises:
            ValueError: They differ.
        """
        assert isinstance(pl_module, LatteModule)
        data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
        check(self.expected, pl_module, data)
        points = self.folder / "points.json"
        self._points = set(json.loads(points.read_text())) if points.is_file() else set()
        axes = axes_of(pl_module, data)  # on all ranks, because sharded weights are gathered
        initial: dict[str, int] | None = initial_values(net_of(pl_module))
        if not trainer.is_global_zero:
            return
        path = self.folder / "built.json"
        if trainer.ckpt_path and path.is_file():  # a resumed training has other weights
            initial = read_json(path).get("initial")
        cost = count_cost(net_of(pl_module), data.num_images)
        built = {
            "axes": axes,
            "held_out": held_out(pl_module, data),
            "parameters": cost.num_parameters,
            "forward_flops": cost.forward_flops,
            "initial": initial,
        }
        write_json(path, built)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record the time, and reset the peak memory, which sampling may have raised."""
        self._starts.append(time.monotonic())
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Record the peak memory of forward and backward pass."""
        device = trainer.strategy.root_device
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()
        self._peak = max(self._peak, peak)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop a diverged training, log the held-out loss of a step that is due, and write the progress.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        now = time.monotonic()
        # reading the loss of a GPU waits for the GPU
        loss = float(outputs["loss"]) if trainer.strategy.root_device.type == "cpu" or batch_idx % 50 == 0 else 0.0
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {trainer.global_step}")
        if trainer.global_step in self._points and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            assert isinstance(pl_module, LatteModule)
            self._log_held_out_loss(trainer, pl_module)
        if trainer.is_global_zero and (now - self._written > 1.0 or trainer.global_step == trainer.max_steps):
            self._written = now
            progress = {"step": trainer.global_step, "clips_per_second": self._speed(trainer)}
            write_text(self.folder / "progress.json", json.dumps(progress))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the costs, unless this process has not trained a step."""
        if not trainer.is_global_zero or not self._starts:
            return
        path = self.folder / "cost.json"
        before = read_json(path) if path.is_file() else {}  # of the part before an interruption
        device = trainer.strategy.root_device
        cost = {
            "clips_per_second": self._speed(trainer) or before.get("clips_per_second"),
            "peak_memory": max(self._peak, before.get("peak_memory", 0)),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "threads": torch.get_num_threads(),
        }
        write_json(path, cost)

    @torch.no_grad()
    def _log_held_out_loss(self, trainer: Trainer, module: LatteModule) -> None:
        """Log the held-out loss, computed on the batches that the trainer validates on."""
        mean = MeanMetric(nan_strategy=float("nan")).to(module.device)
        for batch in itertools.islice(trainer.val_dataloaders, trainer.num_val_batches[0]):  # type: ignore[arg-type]
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                mean.update(*module.held_out_loss(batch))
        value = float(mean.compute())
        for logger in trainer.loggers:
            logger.log_metrics({"val/loss": value}, step=trainer.global_step)

    def _speed(self, trainer: Trainer) -> float | None:
        """Return clips per second from the median time between steps, so that validation and sampling do not count."""
        gaps = [later - earlier for earlier, later in zip(self._starts[5:], self._starts[6:])]
        if not gaps:
            return None
        clips = trainer.datamodule.global_batch_size / trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        return round(clips / median(gaps), 2)


def _peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    """Return the name of the processor, or "cpu" if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def held_out(module: LatteModule, data: VideoDataModule) -> dict[str, Any]:
    """Return the protocol of the held-out loss: all that the loss depends on except the denoiser."""
    diffusion = module.diffusion
    arguments = {name: getattr(diffusion, name) for name in _arguments(type(diffusion))}
    protocol = {
        "data": type(data).__name__,
        "size": list(data.size),
        "num_frames": data.num_frames,
        "interval": data.val_interval,
        "clips": min(data.val_clips, len(data.dataset("val"))),
        "autoencoder": module.autoencoder.fingerprint(),
        "objective": type(diffusion).__name__,
        # weights of the training loss do not enter the held-out loss
        "objective_settings": {
            name: value
            for name, value in arguments.items()
            if isinstance(value, str | int | float) and name not in diffusion.training_weights
        },
        "weights": "ema",
        "seed": HELD_OUT_SEED,
    }
    return protocol | {"hash": hashlib.sha256(canonical_json(protocol).encode()).hexdigest()}


def initial_values(net: Latte) -> dict[str, int]:
    """Return the number of values of each randomly initialised parameter, by a hash of its name and values.

    Two models share an initial parameter if both have its hash. Constant parameters, such as zero biases, are left out.
    """
    values = {}
    for name, parameter in net.named_parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # of sharded weights
        tensor = whole.detach().cpu()
        if bool((tensor != tensor.flatten()[0]).any()):
            values[digest({name: tensor})[:12]] = tensor.numel()
    return values


# ------------------------------------------------------------------------------------------- settings of a built model


def axes_of(module: LatteModule, data: VideoDataModule) -> dict[str, Any]:
    """Return the options of the built denoiser and the settings of the data."""
    settings = {
        name: getattr(data, name)
        for name in _arguments(type(data))
        if hasattr(data, name) and f"data.init_args.{name}" not in SETTINGS_WITHOUT_EFFECT
    }
    plain = {name: value for name, value in settings.items() if isinstance(value, str | int | float | list | tuple)}
    return net_of(module).read_back() | plain


def _arguments(component: type) -> list[str]:
    """Return the names of the constructor arguments of a class, those of its base classes included."""
    names: dict[str, None] = {}
    for base in component.__mro__:
        initialize = vars(base).get("__init__")
        if initialize is None or base.__module__.startswith(("lightning", "torch", "builtins")):
            continue
        parameters = list(inspect.signature(initialize).parameters.values())[1:]
        names |= {p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def net_of(module: LatteModule) -> Latte:
    """Return the denoiser of a module.

    Raises:
        ValueError: The denoiser is not `latte_pl.nn.Latte`, the only one whose options can be read back.
    """
    if not isinstance(module.net, Latte):
        raise ValueError(f"model.net is {type(module.net).__name__}; rows of studies need latte_pl.nn.Latte")
    return module.net


def check(expected: dict[str, Any], module: LatteModule, data: VideoDataModule) -> None:
    """Check that model and data are built as a row says.

    Args:
        expected: Settings by dotted name, such as "model.net.init_args.variant".
        module: The built module.
        data: The built datamodule.

    Raises:
        ValueError: A setting differs, or cannot be read back.
    """
    for key, value in _leaves(expected):
        found = read_back(key, module, data)
        if not _matches(value, found):
            shown = found if _is_plain(found) else type(found).__name__
            raise ValueError(f"the row sets {key} to {value!r}, but the built value is {shown!r}; the trial is refused")


def _leaves(expected: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield settings by name. Those of a component ({"class_path", "init_args"}) are yielded one by one."""
    for key, value in expected.items():
        if isinstance(value, dict) and "class_path" in value:
            yield key, value["class_path"]
            yield from _leaves({f"{key}.{name}": part for name, part in value.get("init_args", {}).items()})
        else:
            yield key.removesuffix(".class_path"), value


def read_back(key: str, module: LatteModule, data: VideoDataModule) -> Any:
    """Return the value of a setting, read from the built module or datamodule.

    Args:
        key: Dotted name of the setting.
        module: The built module.
        data: The built datamodule.

    Raises:
        ValueError: The setting cannot be read back.
    """
    root, *names = [part for part in key.split(".") if part != "init_args"]
    found: Any = {"model": module, "data": data}.get(root)
    if root == "model" and len(names) == 2 and names[0] == "net":
        found, names = net_of(module).read_back(), names[1:]
    for name in names:
        found = found.get(name, MISSING) if isinstance(found, dict) else getattr(found, name, MISSING)
        if found is MISSING:
            raise ValueError(f"the row sets {key}, which cannot be read back from the built model; set it in the scale")
    return found


def _matches(wanted: Any, found: Any) -> bool:
    """Return whether a built value matches a setting. None matches any value, because it leaves the choice open."""
    if wanted is None:
        return True
    if not _is_plain(found):
        return isinstance(wanted, str) and wanted.rpartition(".")[2] == type(found).__name__
    if isinstance(found, list | tuple):
        # one number stands for a square
        square = len(found) == 2 and found[0] == found[1] == wanted
        return square or (isinstance(wanted, list | tuple) and list(wanted) == list(found))
    return bool(wanted == found)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | list | tuple | dict)
