"""The result of a finished trial, collected from the files of its training."""

import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latte_pl.ablation.trial import Trial
from latte_pl.files import read_json, write_json
from latte_pl.metrics.record import Record, git_commit, versions

CURVES = ("val/loss", "train/loss", "val/toy_video_distance", "val/motion_accuracy", "val/fvd")


def collect(trial: Trial, wall_time_s: float) -> dict[str, Any]:
    """Collect the result of a trial from the files of its training, and write it.

    Args:
        trial: The trial, trained and measured.
        wall_time_s: Duration of its commands in seconds.

    Raises:
        ValueError: A file is missing, or a measured value is not finite.
    """
    built = _json(trial, "built.json")
    curves = read_curves(trial.path)
    held_out = curves.get("val/loss", [])
    if not held_out or held_out[-1][0] != trial.steps:
        raise ValueError(f"{trial.folder} has no held-out loss at its last step {trial.steps}")
    for step, value in held_out:
        if not math.isfinite(value):
            raise ValueError(f"the held-out loss is {value} at step {step}")
    average = read_average(trial)
    distance, motion = read_distance(trial)
    loss = average["sigma_rels"][f"{average['best']:g}"] if average else held_out[-1][1]
    result: dict[str, Any] = {
        "hash": trial.hash,
        "row": trial.row,
        "seed": trial.seed,
        "scale": trial.scale,
        "steps": trial.steps,
        "clips": trial.clips,
        "commands": [list(command) for command in trial.commands],
        "settings": trial.expected,
        "axes": built["axes"],
        "held_out": built["held_out"] | {"loss": loss},
        "curves": curves,
        "initial": built["initial"],
        "distance": distance,
        "motion": motion,
        "cost": {
            "parameters": built["parameters"],
            "forward_flops": built["forward_flops"],
            "training_flops": 3 * built["forward_flops"] * trial.clips,
            **_json(trial, "cost.json"),
        },
        "wall_time_s": round(wall_time_s, 1),
        "git_commit": git_commit(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if average:
        result["post_hoc_ema"] = average
    write_json(trial.result, result)
    return result


def read_average(trial: Trial) -> dict[str, Any] | None:
    """Return the held-out losses that `latte average` measured; None if the trial keeps no EMA snapshots.

    Raises:
        ValueError: They are missing, of another step than the last one, or not finite.
    """
    if all(command[0] != "average" for command in trial.commands):
        return None
    found = _json(trial, "averages/sigma_rels.json")
    loss = found["sigma_rels"][f"{found['best']:g}"]
    if found["step"] != trial.steps:
        raise ValueError(f"{trial.folder} has averages of step {found['step']}, not of its last step {trial.steps}")
    if not math.isfinite(loss):
        raise ValueError(f"the held-out loss is {loss} at the best sigma_rel")
    return found


def read_distance(trial: Trial) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the video distance and the motion accuracy that `latte test` measured.

    Both are None if the scale has no protocol. The motion accuracy is None, too, if the classes are not motions.

    Raises:
        ValueError: The record is missing, or the value is not finite.
    """
    if all(command[0] != "test" for command in trial.commands):
        return None, None
    records = sorted((trial.path / "test").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        raise ValueError(f"{trial.folder} has no record of its video distance")
    record = Record.read(records[-1])
    metric, score = next(iter(record.scores.items()))
    if not math.isfinite(score.value):
        raise ValueError(f"the {metric.replace('_', ' ')} is {score.value}")
    distance = {
        "metric": metric,
        "value": score.value,
        "interval": list(score.interval) if score.interval else None,
        "label": score.label,
        "protocol": record.protocol.name,
        "protocol_hash": record.protocol.hash,
        "stated": asdict(record.protocol),
    }
    return distance, record.about.get("motion")


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run as (step, value) by TensorBoard tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # a training that was interrupted logs its last steps again; the later value counts
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1}, purge_orphaned_data=False)
    events.Reload()
    tags = set(events.Tags()["scalars"])
    by_step = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in CURVES if tag in tags}
    return {tag: sorted(curve.items()) for tag, curve in by_step.items()}


def _json(trial: Trial, name: str) -> dict[str, Any]:
    path = trial.path / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: the trial did not run to its end")
    return read_json(path)
