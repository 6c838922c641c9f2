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
    if not math.isfinite(held_out[-1][1]):
        raise ValueError(f"the held-out loss is {held_out[-1][1]} at the last step")
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
        "held_out": built["held_out"] | {"loss": held_out[-1][1]},
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
    if len(trial.commands) > 1:
        records = sorted((trial.path / "test").glob("*.json"), key=lambda path: path.stat().st_mtime)
        if not records:
            raise ValueError(f"{trial.folder} has no record of its video distance")
        record = Record.read(records[-1])
        metric, score = next(iter(record.scores.items()))
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


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a run that a comparison needs, by tag: (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in CURVES if tag in tags}


def _json(trial: Trial, name: str) -> dict[str, Any]:
    path = trial.path / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: the training did not come to its end")
    return json.loads(path.read_text())
