"""A study small enough for a test (16 x 24 pixels straight into a two-block model), and results without training."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from runs import write_config

from latte_pl.ablation.plan import plan
from latte_pl.ablation.plan_cache import load_plan
from latte_pl.ablation.study import Study, read
from latte_pl.ablation.trial import Trial
from latte_pl.files import read_json

SHIPPED = sorted((Path(__file__).parents[2] / "ablations").glob("*.yaml"))
ROOT = Path("runs/ablations")
ROWS = {"uniform": {}, "compression": {"model.net.patch_embed": "compression", "model.net.temporal_stride": 2}}


@functools.cache
def shipped_trials(path: Path, scale: str) -> list[Trial]:
    """Return the trials of a shipped study."""
    return plan(read(path), scale, ROOT)


def write_study(folder: Path, rows: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a study of 16 steps per row and its configuration, and return its path."""
    scale = {
        "configs": [write_config(folder)],
        "overrides": {"checkpoints.every_n_steps": 1},
        "seeds": [0],
        "clips": 64,
        **changes.pop("scale", {}),
    }
    study = {
        "question": "Is it?",
        "conclusion": "it is",
        "status": "quoted",
        "claims": [{"row": "compression", "side": "worse"}] if rows is None else [],
        "baseline": "uniform",
        "rows": ROWS if rows is None else rows,
        "scales": {"proxy": scale},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path


def trials_of(folder: Path, name: str = "study") -> list[Trial]:
    """Return the trials of the study in a folder; their own folders are below it."""
    return load_plan(read(folder / f"{name}.yaml"), "proxy", folder / ROOT)


def study_in(folder: Path, **options: Any) -> tuple[Study, list[Trial]]:
    """Write a study into a folder and return it with its trials."""
    return read(write_study(folder, **options)), trials_of(folder)


def start(folder: Path, *args: str, **options: Any) -> subprocess.Popen:
    """Start `latte-ablate ... --root` in a process of its own and keep its output; ``preexec_fn`` runs there first."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment.pop("PL_GLOBAL_SEED", None)
    first = options.pop("preexec_fn", None)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a shell ignore it, and pass that on
        if first is not None:
            first()

    return subprocess.Popen(
        [sys.executable, "-m", "latte_pl.ablation.cli", *args, "--root", str(folder / ROOT)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its signals do not reach pytest
        preexec_fn=prepare,
        **options,
    )


def result_of(trial: Trial) -> dict[str, Any]:
    """Read the result of a trial."""
    return read_json(trial.result)


def fabricate(
    trial: Trial,
    loss: float,
    distance: float | None = None,
    motion: float | None = None,
    flops: float = 1e9,
    **changes: Any,
) -> None:
    """Write a result as a training would, with a held-out loss that falls in a straight line from twice its end."""
    points = [(step, 2.0 * loss - loss * step / trial.steps) for step in range(4, trial.steps + 1, 4)]
    result: dict[str, Any] = {
        "hash": trial.hash,
        "row": trial.row,
        "seed": trial.seed,
        "scale": trial.scale,
        "steps": trial.steps,
        "clips": trial.clips,
        "commands": [list(command) for command in trial.commands],
        "settings": trial.expected,
        "axes": {"variant": "interleaved", "depth": 2},
        "held_out": {
            "loss": loss,
            "hash": "f" * 64,
            "clips": 6,
            "data": "Shapes",
            "interval": 3,
            "objective": "GaussianDiffusion",
        },
        "curves": {"val/loss": points},
        "distance": None,
        "cost": {
            "parameters": 1000,
            "forward_flops": flops,
            "training_flops": 3 * flops * trial.clips,
            "clips_per_second": 10.0,
            "peak_memory": 2**30,
            "device": "a processor",
            "threads": 1,
        },
        "git_commit": "abc",
    }
    if distance is not None:
        stated = {"num_generated": 256, "sampler": "ddim", "steps": 2, "guidance": 1.0}
        result["distance"] = {
            "metric": "toy_video_distance",
            "value": distance,
            "protocol": "toy-256-8f",
            "protocol_hash": "e" * 64,
            "stated": stated,
        }
    if motion is not None:
        by_class = {"left": motion + 0.1, "right": motion - 0.1}
        result["motion"] = {"value": motion, "chance": 0.5, "clips": 256, "by_class": by_class}
        result["curves"]["val/motion_accuracy"] = [(step, motion * step / trial.steps) for step in (8, trial.steps)]
    trial.path.mkdir(parents=True, exist_ok=True)
    trial.result.write_text(json.dumps(result | changes))
