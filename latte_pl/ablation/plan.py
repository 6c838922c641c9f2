"""From a study to its trials: commands, each named by a hash of all that its result depends on."""

import functools
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from latte_pl.ablation.study import Scale, Study, references
from latte_pl.ablation.trial import Trial
from latte_pl.cli import flat, resolve
from latte_pl.metrics.protocol import Protocol, canonical_json
from latte_pl.nn import Latte

POINTS = 16  # held-out losses along a training
# settings that change where data lie or how fast things go, not what is trained
FREE = (
    *("model.compile", "model.net.init_args.activation_checkpointing"),
    *("data.init_args.num_workers", "data.init_args.cache_dir", "data.init_args.latents"),
)
# settings made after the first committed results, at the value that all trainings had before: no part of their names
LATER = (("model.net.init_args.spatial_position", "absolute"),)
TRAINER = (
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches"),
)


def plan(study: Study, scale_name: str, root: Path, seeds: list[int] | None = None) -> list[Trial]:
    """Return all trials of a study at a scale, seed by seed, what others start from first.

    Args:
        study: The study.
        scale_name: Name of the scale.
        root: Folder of all trials.
        seeds: In place of the scale's.

    Raises:
        ValueError: A setting is wrong, a row changes the batch so that the budget is no whole number of steps, or two
            rows are the same.
    """
    scale, rows = study.at(scale_name)
    trials: list[Trial] = []
    for seed in seeds or scale.seeds:
        made: dict[str, Trial] = {}
        for name, settings in study.prepare.items():
            if any(name in references(row) for row in rows.values()):
                made[name] = _trial(study, scale, name, settings, seed, root, {}, arm=False)
        arms = [_trial(study, scale, name, settings, seed, root, made, arm=True) for name, settings in rows.items()]
        named: dict[str, str] = {}
        for arm in arms:
            if arm.hash in named:
                raise ValueError(f"{study.name}: rows {named[arm.hash]!r} and {arm.row!r} are the same training")
            named[arm.hash] = arm.row
        trials += [*made.values(), *arms]
    return trials


def check_models(study: Study, trials: list[Trial]) -> None:
    """Refuse, before anything is trained, rows whose denoiser, objective and sampling do not fit together.

    Raises:
        ValueError: They do not; study and row are named.
    """
    from latte_pl.training.weights import outline

    for trial in {canonical_json(trial.config["model"]): trial for trial in trials}.values():
        try:
            outline(trial.config)
        except ValueError as error:
            raise ValueError(f"{study.name}, row {trial.row}: {error}") from error


def _trial(
    study: Study,
    scale: Scale,
    row: str,
    settings: dict[str, Any],
    seed: int,
    root: Path,
    made: dict[str, Trial],
    arm: bool,
) -> Trial:
    settings = dict(settings)
    budget = scale.clips if arm else int(settings.pop("clips", scale.clips))
    needs = [made[name] for name in references(settings)]
    configs = [part for config in scale.configs for part in ("-c", config)]
    own = [f"--{key}={_text(value)}" for key, value in (scale.overrides | settings).items()]
    resolved = _resolve(("fit", *configs, *own))
    batch = resolved["data"]["init_args"]["global_batch_size"]
    if budget % batch:
        raise ValueError(
            f"{study.name}, row {row}: {budget} clips are no whole number of steps of {batch}; change clips"
        )
    steps = budget // batch
    protocol = Protocol.stated(scale.protocol) if arm and scale.protocol else None
    identity = {
        "settings": _identity(resolved),
        "seed": seed,
        "steps": steps,
        "clips": budget,
        "points": POINTS,
        "protocol": protocol,
        "starts": [trial.hash for trial in needs],
    }
    digest = hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]
    folder = root / "trials" / digest
    read = {key.replace(".init_args", ""): value for key, value in flat(resolved).items()}
    stated = {key: value for key, value in settings.items() if not references({"": value})}
    expected = {key: read.get(key.replace(".init_args", ""), value) for key, value in stated.items()}
    watch = {
        "class_path": "latte_pl.ablation.watch.Watch",
        "init_args": {"expected": json.dumps(expected), "folder": str(folder)},
    }
    where = {trial.row: trial.folder for trial in needs}
    own = [f"--{key}={_filled(_text(value), where)}" for key, value in settings.items()]
    own = [f"--{key}={_text(value)}" for key, value in scale.overrides.items()] + own
    latents = [f"--data.latents={root / 'latents' / scale.latents}"] if scale.latents else []
    every = next(n for n in range(max(1, steps // POINTS), steps + 1) if steps % n == 0)
    if steps // every < min(steps, POINTS // 2):
        raise ValueError(
            f"{study.name}, row {row}: {steps} steps cannot be cut into about {POINTS} equal parts, after which the "
            "held-out loss is measured; choose clips so that they can"
        )
    fit = (
        *("fit", *configs, *own, *latents),
        f"--seed_everything={seed}",
        f"--trainer.max_steps={steps}",
        f"--trainer.val_check_interval={every}",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder.parent}",
        f"--name={digest}",
        f"--trainer.callbacks+={json.dumps(watch)}",
    )
    commands = [fit]
    encode = None
    if scale.latents:
        shared = [f"--{key}={_text(value)}" for key, value in scale.overrides.items()]
        shared = [arg for arg in shared if arg.startswith(("--data.", "--model.codec"))]
        encode = ("encode", *configs, *shared, "--output", str(root / "latents" / scale.latents))
    trained = folder
    if arm and resolved["model"]["average_every"]:
        commands.append(("average", *_trainer_of(resolved), "--run", str(folder)))
        trained = folder / "averages" / "best.safetensors"
    if arm and scale.protocol:
        commands.append(("test", *_trainer_of(resolved), "--ckpt_path", str(trained), "--protocol", scale.protocol))
    return Trial(
        row=row,
        seed=seed,
        hash=digest,
        folder=str(folder),
        encode=encode,
        commands=tuple(commands),
        needs=tuple(trial.hash for trial in needs),
        arm=arm,
        scale=scale.name,
        steps=steps,
        clips=budget,
        expected=expected,
        config=resolved,
    )


def _filled(text: str, where: dict[str, str]) -> str:
    for name, folder in where.items():
        text = text.replace(f"{{{name}}}", folder)
    return text


def _trainer_of(resolved: dict[str, Any]) -> list[str]:
    """Return the trainer's settings that sampling shares with training."""
    shared = ("accelerator", "devices", "precision", "strategy")
    return [
        f"--trainer.{key}={_text(resolved['trainer'][key])}" for key in shared if resolved["trainer"][key] is not None
    ]


@functools.lru_cache(maxsize=1024)
def _resolve(args: tuple[str, ...]) -> dict[str, Any]:
    return resolve(args)


def _identity(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return what a training depends on; a setting that is off, or as it was before, counts as one not made (yet)."""
    chosen = {name: resolved[name] for name in ("model", "data")}
    settings = {key: value for key, value in flat(chosen).items() if value and not key.startswith(FREE)}
    settings = {key: value for key, value in settings.items() if (key, value) not in LATER}
    if settings.get("model.net.init_args.conditioning") != "text":  # a width of captions that nobody reads
        settings = {key: value for key, value in settings.items() if ".text_" not in key}
    return settings | {f"trainer.{key}": resolved["trainer"][key] for key in TRAINER if resolved["trainer"][key]}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def dry_run(study: Study, scale_name: str, trials: list[Trial]) -> str:
    """Return the command of every trial, with the FLOPs and hours to expect; nothing is allocated.

    Hours are of the denoiser's training alone, at the rate that the scale states; the codec's share is that of no
    latent cache, and sampling for the distance comes on top.
    """
    from latte_pl.training.cost import count_cost
    from latte_pl.training.weights import outline

    scale, _ = study.at(scale_name)
    lines = [f"{study.name}, {scale.name}: {study.question}"]
    total = 0.0
    counted: dict[str, Any] = {}
    for command in {trial.encode: None for trial in trials if trial.encode}:
        lines.append("  " + _shell(command))
    for trial in trials:
        config = trial.config
        key = canonical_json({"net": config["model"]["net"], "images": config["data"]["init_args"]["num_images"]})
        if key not in counted:
            net = outline(config)
            assert isinstance(net, Latte)
            counted[key] = count_cost(net, config["data"]["init_args"]["num_images"])
        cost = counted[key]
        flops = 3.0 * cost.forward_flops * trial.clips
        total += flops
        about = f"{cost.num_parameters / 1e6:.2f} M parameters, {cost.forward_flops / 1e9:.2f} GFLOP a clip forward"
        about += f", {flops / 1e15:.3g} PFLOP in all"
        if scale.gpu_tflops:
            about += f", {flops / scale.gpu_tflops / 1e12 / 3600:,.0f} GPU-hours"
        lines.append(f"{trial.row}, seed {trial.seed} ({trial.hash}): {trial.clips:,} clips, {about}")
        lines += ["  " + _shell(command) for command in trial.commands]
    hours = (
        f", {total / scale.gpu_tflops / 1e12 / 3600:,.0f} GPU-hours at {scale.gpu_tflops:g} TFLOP/s"
        if scale.gpu_tflops
        else ""
    )
    lines.append(f"{len(trials)} trials, {total / 1e15:,.3g} PFLOP{hours}")
    return "\n".join(lines)


def _shell(command: tuple[str, ...]) -> str:
    return shlex.join(("latte", *command))
