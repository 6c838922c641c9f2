"""Train a model; an interrupted run resumes when the same command runs again."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from latte_pl.cli.config import LatteCLI, ParsedCLI, flatten, plain
from latte_pl.nn import Latte
from latte_pl.profiling.advice import TrainingStep, advised, device_memory, gib
from latte_pl.training import weights
from latte_pl.training.callbacks import RunSummary, StepProgressBar, Throughput
from latte_pl.training.checkpoints import AtomicCheckpointIO, checkpoints, newest_intact
from latte_pl.training.module import LatteModule
from latte_pl.training.precision import allow_tf32, slow_bf16
from latte_pl.training.preemption import EXIT_STATUS, StopOnSignal
from latte_pl.training.slurm import cluster_environments
from latte_pl.training.tensorboard import TensorBoardPages

MAY_CHANGE = (
    "model.sampling",
    "model.compile",
    "model.net.init_args.activation_checkpointing",
    "model.pretrained.source",  # read once, when the run was new
    "data.init_args.num_workers",
    "data.init_args.val_clips",
    "data.init_args.cache_dir",
    "data.init_args.latents",  # checked against autoencoder and data when it is opened
)
"""Settings that may differ when a run resumes: they do not change what is trained."""


class FitCLI(LatteCLI):
    """Build model, data and trainer of a named run, which resumes from its newest checkpoint."""

    stop: StopOnSignal
    """Stops the training at a signal."""
    resume: str | None = None
    """The checkpoint that training resumes from."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer of the run."""
        config, chosen = self.config, self.config_init["trainer"]
        root, folder = run_folder(config.trainer.default_root_dir, config.name)
        self.resume = resume_from(folder, config.ckpt_path, plain(self.parser, config))
        kwargs["default_root_dir"] = str(folder)
        if chosen["logger"] is None:
            # points that were logged after the checkpoint belong to steps that are trained again
            purge = weights.step_of(self.resume) + 1 if self.resume else 0
            kwargs["logger"] = TensorBoardLogger(
                str(root), name=config.name, version="", default_hp_metric=False, purge_step=purge
            )
        self.stop = StopOnSignal()
        progress = [] if config.trainer.enable_progress_bar is False else [StepProgressBar()]
        own = [Throughput(), RunSummary(), TensorBoardPages(), self.stop, *progress]
        kwargs["callbacks"] = [*as_list(chosen["callbacks"]), *own]
        environment = cluster_environments(chosen["accelerator"], chosen["devices"], chosen["num_nodes"])
        kwargs["plugins"] = [*as_list(chosen["plugins"]), AtomicCheckpointIO(), *environment]
        if isinstance(every := chosen["val_check_interval"], int):  # optimizer steps here, batches in Lightning
            kwargs["val_check_interval"] = every * (chosen["accumulate_grad_batches"] or 1)
        trainer = super().instantiate_trainer(**kwargs)
        allow_tf32(trainer)
        return trainer


def main(args: Sequence[str]) -> None:
    """Run `latte fit`."""
    cli = FitCLI("fit", args, "Train a model. An interrupted run resumes when the same command runs again.")
    if cli.resume is not None and 0 <= cli.trainer.max_steps <= (step := weights.step_of(cli.resume)):
        if cli.trainer.is_global_zero:
            print(
                f"{cli.trainer.default_root_dir} is finished: {cli.resume} has step {step} and trainer.max_steps is "
                f"{cli.trainer.max_steps}; raise trainer.max_steps to train further, or choose another --name"
            )
        return
    table = initial_weights(cli.model, cli.config.seed_everything, resuming=cli.resume is not None)
    if table and cli.trainer.is_global_zero:
        print(table)
    takes = training_step(cli)
    if cli.trainer.is_global_zero:
        print(slow_bf16(cli.trainer) + summary(cli, takes))
    with advised(takes.advice):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.resume)
    if cli.stop.stopped is not None and cli.trainer.is_global_zero:
        print(f"\nstopped by {cli.stop.stopped.name} at step {cli.trainer.global_step}; the same command resumes")
        sys.exit(EXIT_STATUS)


def training_step(cli: FitCLI) -> TrainingStep:
    """Return what decides the memory of a step of the run."""
    trainer = cli.trainer
    return TrainingStep(
        plain(cli.parser, cli.config),
        trainer.world_size,
        trainer.accumulate_grad_batches,
        sharded=isinstance(trainer.strategy, ModelParallelStrategy),
    )


def summary(cli: FitCLI, step: TrainingStep) -> str:
    """Return what a run will take: parameters, clips of a step, steps, memory, and the folder of its results."""
    trainer = cli.trainer
    parts = [f"{trainer.world_size} devices"] if trainer.world_size > 1 else []
    parts += [f"{step.accumulate} accumulated batches"] if step.accumulate > 1 else []
    steps = "until it is stopped" if trainer.max_steps < 0 else f"{trainer.max_steps:,}"
    done = f", of which {weights.step_of(cli.resume):,} are done" if cli.resume else ""
    device = trainer.strategy.root_device
    try:
        expected = f"about {gib(step.memory())}"
    except Exception as error:  # a denoiser of the user may do what cannot be counted; it can be trained nevertheless
        expected = f"unknown ({type(error).__name__})"
    rows = {
        "parameters": f"{sum(p.numel() for p in cli.model.net.parameters()):,}",
        "clips a step": f"{step.global_batch_size}" + (f" ({', '.join(parts)})" if parts else ""),
        "steps": steps + done,
        "memory": f"{expected} for a step of {step.batch_size} clips, besides the autoencoder; the device has "
        f"{gib(device_memory(device))}",
        "results": trainer.default_root_dir,
    }
    return "\n".join(f"{name:<13}{value}" for name, value in rows.items()) + "\n"


def initial_weights(model: LatteModule, seed: int, resuming: bool) -> str:
    """Draw the initial weights of a new run from its seed, or load them from the model that it starts from.

    Returns:
        A table of what was loaded; empty if nothing was.
    """
    model.init_weights(int(seed))
    net, start = model.net, model.pretrained
    if start is None or resuming:
        return ""
    from latte_pl.interop import TextToVideo, load_dit

    table: Any = "all weights of the diffusers model; the null caption is the embedding of an empty prompt"
    if isinstance(net, TextToVideo):
        net.load(start.source)
        net.set_null_caption(model.text_encoder.tokens("")[-1:])  # the last token of T5's empty prompt
    else:
        assert isinstance(net, Latte)
        table = load_dit(net, start.source, labels=start.labels, temporal=start.temporal)
    model.reset_ema()
    return f"\nstart from {start.source}\n{table}\n"


def as_list(value: Any) -> list[Any]:
    """Convert None, a single value or a list to a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def run_folder(default_root_dir: str | None, name: str) -> tuple[Path, Path]:
    """Return the folder of all runs, and that of the run.

    Raises:
        ValueError: The name leads outside of the folder of all runs.
    """
    root = Path(default_root_dir or "runs")
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"name is {name!r}; it must name a folder inside {root}")
    return root, root / name


def resume_from(folder: Path, ckpt_path: str | None, config: dict[str, Any]) -> str | None:
    """Return the checkpoint that training resumes from: the run's own newest, else the given one, else None.

    Args:
        folder: The run's folder.
        ckpt_path: A checkpoint or run that a new run starts from.
        config: Resolved configuration.

    Raises:
        ValueError: The checkpoint cannot be resumed, or the folder holds a run with other settings.
    """
    start, done = weights.intact(ckpt_path) if ckpt_path else None, checkpoints(folder / "checkpoints")
    newest = newest_intact(folder / "checkpoints")
    if done and newest is None:
        raise ValueError(f"all checkpoints in {folder} are damaged; delete the folder to train from the start")
    done = done[: done.index(newest) + 1] if newest is not None else []
    if start is not None and start.suffix in (".safetensors", ".pt"):
        raise ValueError(f"{start} contains only weights; resuming needs a run's folder or a full checkpoint")
    if start is not None and start.resolve() in [path.resolve() for path in done[:-1]]:
        raise ValueError(
            f"{folder} was trained further, to {done[-1].name}; choose another --name to start from {start.name}"
        )
    if done:
        check_unchanged(folder, done[-1], config)
        return str(done[-1])
    if start is not None:
        old = weights.read_config(start)
        sizes = [c["data"]["init_args"]["global_batch_size"] for c in (old, config)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{start} was trained with data.global_batch_size {sizes[0]}, this run has {sizes[1]}; set the same "
                "value, because step N has to be the same clips in both runs"
            )
        every = [c["model"].get("ema_snapshot_every", 0) for c in (old, config)]
        if bool(every[0]) != bool(every[1]):
            raise ValueError(
                f"{start} was trained with model.ema_snapshot_every {every[0]}, this run has {every[1]}; both or "
                "neither must save snapshots"
            )
    return str(start) if start else None


def check_unchanged(folder: Path, checkpoint: Path, config: dict[str, Any]) -> None:
    """Refuse to resume a run from its checkpoint with other settings.

    Raises:
        ValueError: A setting of model, data or seed differs; both values are named.
    """
    old = weights.read_config(checkpoint)
    before, now = (flatten({name: part.get(name) for name in weights.USED}) for part in (old, config))
    if now.keys() - before.keys():
        before = flatten(with_defaults(old))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not name.startswith(MAY_CHANGE):
            raise ValueError(
                f"{folder} holds a run with {name}={before.get(name)}, this command has {name}={now.get(name)}; choose "
                "another --name, or delete the folder"
            )


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of newer settings to the configuration of an earlier version, if it can still be parsed."""
    old = {name: config[name] for name in weights.USED if name in config}
    try:
        cli = ParsedCLI("fit", ["--config", json.dumps(old)], "")
    except Exception:  # a setting of the earlier version does not exist any more
        return old
    new = plain(cli.parser, cli.config)
    return {name: new.get(name) for name in weights.USED}
