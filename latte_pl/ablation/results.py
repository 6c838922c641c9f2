"""Results of trials: collected where they ran, read back for tables."""

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latte_pl.ablation.trial import Trial
from latte_pl.metrics.record import Record, git_commit, versions, write_atomically

CURVES = ("val/loss", "train/loss", "val/embedded_video_distance", "val/fvd")


def collect(trial: Trial, wall_time_s: float) -> dict[str, Any]:
    """Gather all that a finished trial left behind into its result, and write that.

    Raises:
        ValueError: Something that it should have left is missing.
    """
    built = _json(trial, "built.json")
    curves = read_curves(trial.path)
    held_out = curves.get("val/loss", [])
    if not held_out or held_out[-1][0] != trial.steps:
        raise ValueError(f"{trial.folder} has no held-out loss at its last step {trial.steps}")
    for step, value in held_out:
        if not math.isfinite(value):
            raise ValueError(f"the held-out loss is {value} at step {step}")
    average = averaged(trial)
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
        "held_out": built["held_out"]
        | {"loss": average["lengths"][f"{average['best']:g}"] if average else held_out[-1][1]},
        "curves": curves,
        "distance": None,
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
        result["average"] = average
    if any(command[0] == "test" for command in trial.commands):
        records = sorted((trial.path / "test").glob("*.json"), key=lambda path: path.stat().st_mtime)
        if not records:
            raise ValueError(f"{trial.folder} has no record of its video distance")
        record = Record.read(records[-1])
        metric, score = next(iter(record.scores.items()))
        if not math.isfinite(score.value):
            raise ValueError(f"the {metric.replace('_', ' ')} is {score.value}")
        result["distance"] = {
            "metric": metric,
            "value": score.value,
            "interval": list(score.interval) if score.interval else None,
            "label": score.label,
            "protocol": record.protocol.name,
            "protocol_hash": record.protocol.hash,
            "stated": asdict(record.protocol),
        }
    write_atomically(trial.result, json.dumps(result, indent=1))
    return result


def averaged(trial: Trial) -> dict[str, Any] | None:
    """Return what `latte average` measured of a trial's lengths; None where it keeps no averages.

    Raises:
        ValueError: It is missing, or of another step than the last.
    """
    if all(command[0] != "average" for command in trial.commands):
        return None
    found = _json(trial, "averages/lengths.json")
    best = found["lengths"][f"{found['best']:g}"]
    if found["step"] != trial.steps:
        raise ValueError(f"{trial.folder} has averages of step {found['step']}, not of its last step {trial.steps}")
    if not math.isfinite(best):
        raise ValueError(f"the held-out loss is {best} at the best length of an average")
    return found


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run that a comparison needs, by tag: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    # a training that began anew has logged its first steps twice; the later value of a step counts
    by_step = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in CURVES if tag in tags}
    return {tag: sorted(curve.items()) for tag, curve in by_step.items()}


def _json(trial: Trial, name: str) -> dict[str, Any]:
    path = trial.path / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: the trial did not come to its end")
    return json.loads(path.read_text())
