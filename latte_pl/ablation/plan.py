"""From a study to its trials: resolved configurations, hashes and command lines."""

import dataclasses
import functools
import json
import shlex
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte_pl.ablation.identity import hash_of, settings_of
from latte_pl.ablation.measures import flops_share, step_at
from latte_pl.ablation.study import Scale, Settings, Study, references
from latte_pl.ablation.trial import Trial
from latte_pl.cli.config import flatten, resolve
from latte_pl.metrics.protocol import EvaluationProtocol, canonical_json

if TYPE_CHECKING:
    from latte_pl.profiling.cost import Cost


def plan(study: Study, scale_name: str, root: Path, seeds: list[int] | None = None) -> list[Trial]:
    """Return all trials of a study at a scale: seed by seed, each after the trials that it starts from.

    Args:
        study: The study.
        scale_name: Name of the scale.
        root: Folder of all trials.
        seeds: Seeds that replace those of the scale.

    Raises:
        ValueError: A setting is wrong, a budget is not a whole number of steps, or two rows are the same training.
    """
    scale, rows = study.at(scale_name)
    trial = functools.partial(_trial, study, scale, root, functools.cache(resolve))  # every seed resolves to the same
    needed = {name for settings in rows.values() for name in references(settings)}
    trials: list[Trial] = []
    for seed in seeds or scale.seeds:
        prepared = {
            name: trial(name, settings, seed, {}, arm=False)
            for name, settings in study.prepare.items()
            if name in needed
        }
        arms = [trial(name, settings, seed, prepared, arm=True) for name, settings in rows.items()]
        by_hash: dict[str, str] = {}
        for arm in arms:
            if arm.hash in by_hash:
                raise ValueError(f"{study.name}: rows {by_hash[arm.hash]!r} and {arm.row!r} are the same training")
            by_hash[arm.hash] = arm.row
        trials += [*prepared.values(), *arms]
    return trials


def check_models(study: Study, trials: list[Trial]) -> None:
    """Check that denoiser, objective and sampling of every row fit together, before anything is trained.

    Raises:
        ValueError: They do not fit.
    """
    from latte_pl.training.weights import outline

    for trial in {canonical_json(trial.config["model"]): trial for trial in trials}.values():
        try:
            outline(trial.config)
        except (ValueError, ArgumentError) as error:
            raise ValueError(f"{study.name}, row {trial.row}: {_cause(error)}") from error


def with_points(study: Study, scale_name: str, trials: list[Trial]) -> list[Trial]:
    """Return trials with the steps at which the tables need a held-out loss besides the regular ones.

    Those are the steps at which a row has cost as much as the whole training of the cheapest row, and the early points
    of claims.

    Args:
        study: The study.
        scale_name: Name of the scale.
        trials: Its trials.
    """
    scale, _ = study.at(scale_name)
    arms = [trial for trial in trials if trial.arm]
    flops = [_training_flops(cost, trial) for cost, trial in zip(_costs(arms), arms)]
    points = {}
    for trial, own in zip(arms, flops):
        claims = [
            claim for claim in study.claims if trial.row in (claim.row, claim.than or scale.baseline or study.baseline)
        ]
        shares = {flops_share(own, min(flops)), *(claim.at for claim in claims)}
        _, interval = _steps(trial.clips, trial.config["data"]["init_args"]["global_batch_size"], scale.points)
        steps = {step_at(share, trial.steps) for share in shares}
        points[trial.hash] = tuple(sorted(step for step in steps if step % interval))
    return [dataclasses.replace(trial, points=points.get(trial.hash, ())) for trial in trials]


def _costs(trials: list[Trial]) -> list["Cost"]:
    """Return the cost of the denoiser of each trial, counted once for equal denoisers."""
    from latte_pl.profiling.cost import count_cost
    from latte_pl.training.weights import outline

    costs: dict[str, Cost] = {}
    keys = []
    for trial in trials:
        num_images = trial.config["data"]["init_args"]["num_images"]
        keys.append(canonical_json({"net": trial.config["model"]["net"], "num_images": num_images}))
        if keys[-1] not in costs:
            costs[keys[-1]] = count_cost(outline(trial.config), num_images)
    return [costs[key] for key in keys]


def _training_flops(cost: "Cost", trial: Trial) -> float:
    """Return the FLOPs of a training: three times those of its forward passes."""
    return 3.0 * cost.forward_flops * trial.clips


def _trial(
    study: Study,
    scale: Scale,
    root: Path,
    resolve: Callable[[tuple[str, ...]], dict[str, Any]],
    row: str,
    settings: Settings,
    seed: int,
    prepared: dict[str, Trial],
    arm: bool,
) -> Trial:
    """Plan one trial.

    Args:
        study: The study.
        scale: The scale.
        root: Folder of all trials.
        resolve: Resolves arguments of `latte fit` to the complete configuration.
        row: Name of the row, or of the training under ``prepare``.
        settings: Its settings by dotted name.
        seed: Seed of the training.
        prepared: Trials that rows may start from, by name.
        arm: Whether the trial is a row.
    """
    settings = dict(settings)
    clips = scale.clips if arm else int(settings.pop("clips", scale.clips))
    starts = {name: prepared[name] for name in references(settings)}
    configs = tuple(part for config in scale.configs for part in ("-c", config))
    try:
        config = resolve(("fit", *configs, *_flags(scale.overrides | settings)))
        steps, interval = _steps(clips, config["data"]["init_args"]["global_batch_size"], scale.points)
    except (ValueError, ArgumentError) as error:
        chosen = ", ".join(f"{key}={_text(value)}" for key, value in settings.items())
        where = f"row {row} ({chosen})" if chosen else f"row {row}"
        raise ValueError(f"{study.name}, {where}: {_cause(error)}") from error
    protocol = scale.protocol if arm else None
    starts_from = [trial.hash for trial in starts.values()]
    name = hash_of(identity(config, seed, steps, clips, scale.points, protocol, starts_from))
    folder = root / "trials" / name
    expected = _expected(settings, config)
    filled = {key: _filled(value, starts) for key, value in settings.items()}
    latents = root / "latents" / scale.latents if scale.latents else None
    monitor = {
        "class_path": "latte_pl.ablation.monitor.TrialMonitor",
        "init_args": {"expected": json.dumps(expected), "folder": str(folder)},
    }
    fit = (
        *("fit", *configs, *_flags(scale.overrides), *_flags(filled)),
        *(() if latents is None else (f"--data.latents={latents}",)),
        f"--seed_everything={seed}",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={interval}",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder.parent}",
        f"--name={name}",
        f"--trainer.callbacks+={json.dumps(monitor)}",
    )
    return Trial(
        row=row,
        seed=seed,
        hash=name,
        folder=str(folder),
        encode=None if latents is None else _encode(configs, scale.overrides, latents),
        commands=(fit, *_measurements(config, folder, arm, protocol)),
        needs=tuple(trial.hash for trial in starts.values()),
        arm=arm,
        scale=scale.name,
        steps=steps,
        clips=clips,
        expected=expected,
        config=config,
    )


def identity(
    config: dict[str, Any], seed: int, steps: int, clips: int, points: int, protocol: str | None, starts: list[str]
) -> dict[str, Any]:
    """Return all that the result of a trial depends on.

    Args:
        config: The resolved configuration.
        seed: Seed of the training.
        steps: Number of optimizer steps.
        clips: Number of training clips.
        points: About how often the held-out loss is measured.
        protocol: Evaluation protocol of the video distance, or None.
        starts: Hashes of the trials that it starts from.
    """
    return {
        "settings": settings_of(config),
        "seed": seed,
        "steps": steps,
        "clips": clips,
        "points": points,
        "protocol": EvaluationProtocol.stated(protocol) if protocol else None,
        "starts": starts,
    }


def _cause(error: BaseException | None) -> str:
    """Return the first message of one line among an error and its causes; the parser wraps messages in longer ones."""
    message = str(error)
    while error is not None and "\n" in str(error):
        error = error.__cause__ or error.__context__
    return str(error or message)


def _steps(clips: int, batch: int, points: int) -> tuple[int, int]:
    """Return the number of optimizer steps, and the number of steps between two measurements of the held-out loss."""
    if clips % batch:
        raise ValueError(f"{clips} clips are not a whole number of steps of {batch} clips; change clips")
    steps = clips // batch
    interval = next(n for n in range(max(1, steps // points), steps + 1) if steps % n == 0)
    if steps // interval < min(steps, points // 2):
        raise ValueError(
            f"{steps} steps cannot be divided into about {points} equal parts, after which the held-out loss is "
            "measured; change clips"
        )
    return steps, interval


def _expected(settings: Settings, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a row with the values that the configuration resolved them to."""
    resolved = {key.replace(".init_args", ""): value for key, value in flatten(config).items()}
    own = {key: value for key, value in settings.items() if not references({key: value})}
    return {key: resolved.get(key.replace(".init_args", ""), value) for key, value in own.items()}


def _measurements(config: dict[str, Any], folder: Path, arm: bool, protocol: str | None) -> list[tuple[str, ...]]:
    """Return the commands that measure a trained row: post-hoc EMA, if it keeps snapshots, and the video distance."""
    commands: list[tuple[str, ...]] = []
    weights, trainer = str(folder), config["trainer"]
    if arm and config["model"]["ema_snapshot_every"]:
        shared = {name: trainer[name] for name in ("accelerator", "devices", "precision")}
        flags = [part for name, value in shared.items() if value is not None for part in (f"--{name}", _text(value))]
        commands.append(("average", str(folder), *flags))
        weights = str(folder / "averages" / "best.safetensors")
    if protocol:
        shared = {name: trainer[name] for name in ("accelerator", "devices", "precision", "strategy")}
        flags = _flags({f"trainer.{name}": value for name, value in shared.items() if value is not None})
        commands.append(("test", *flags, "--ckpt_path", weights, "--protocol", protocol))
    return commands


def _encode(configs: tuple[str, ...], overrides: Settings, latents: Path) -> tuple[str, ...]:
    """Return the arguments of `latte` that encode the latent cache of a scale."""
    shared = {key: value for key, value in overrides.items() if key.startswith(("data.", "model.autoencoder"))}
    return ("encode", *configs, *_flags(shared), "--output", str(latents))


def _filled(value: Any, starts: dict[str, Trial]) -> Any:
    """Replace the names in braces by the folders of the trials that a row starts from."""
    if isinstance(value, str):
        for name, trial in starts.items():
            value = value.replace(f"{{{name}}}", trial.folder)
    return value


def _flags(settings: Settings) -> list[str]:
    return [f"--{key}={_text(value)}" for key, value in settings.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def dry_run(study: Study, scale_name: str, trials: list[Trial]) -> str:
    """Return the commands of every trial with an estimate of FLOPs and GPU-hours. No memory is allocated.

    The estimate covers the training of the denoiser at the scale's ``gpu_tflops``. The autoencoder and the sampling of
    the video distance are not included.
    """
    scale, _ = study.at(scale_name)
    lines = [f"{study.name}, {scale.name}: {study.question}"]
    lines += ["  " + _shell(command) for command in {trial.encode: None for trial in trials if trial.encode}]
    total = 0.0
    for trial, cost in zip(trials, _costs(trials)):
        flops = _training_flops(cost, trial)
        total += flops
        about = (
            f"{cost.num_parameters / 1e6:.2f} M parameters, {cost.forward_flops / 1e9:.2f} GFLOP per clip (forward), "
            f"{flops / 1e15:.3g} PFLOP in total{_hours(flops, scale)}"
        )
        lines.append(f"{trial.row}, seed {trial.seed} ({trial.hash}): {trial.clips:,} clips, {about}")
        lines += ["  " + _shell(command) for command in trial.commands]
    rate = f" at {scale.gpu_tflops:g} TFLOP/s" if scale.gpu_tflops else ""
    lines.append(f"{len(trials)} trials, {total / 1e15:,.3g} PFLOP{_hours(total, scale)}{rate}")
    return "\n".join(lines)


def _hours(flops: float, scale: Scale) -> str:
    return f", {flops / scale.gpu_tflops / 1e12 / 3600:,.0f} GPU-hours" if scale.gpu_tflops else ""


def _shell(command: tuple[str, ...]) -> str:
    return shlex.join(("latte", *command))
