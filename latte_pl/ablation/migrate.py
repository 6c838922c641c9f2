"""Moves results of earlier versions to the names of today.

A trial is named by a hash of its settings. If settings, metrics or protocols are renamed, its name changes. Here the
earlier name of every trial is computed from its configuration of today, by the inverse of the renames.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latte_pl.ablation.identity import hash_of
from latte_pl.ablation.plan import identity, plan
from latte_pl.ablation.plan_cache import file_of
from latte_pl.ablation.study import Study
from latte_pl.ablation.trial import Trial, held, lock_of
from latte_pl.files import read_json, write_json, write_text
from latte_pl.metrics.protocol import EvaluationProtocol, canonical_json
from latte_pl.training.renames import KEYS, VALUES

NAMES = {
    "embedded_video_distance": "toy_video_distance",
    "embedded_kernel_distance": "toy_kernel_distance",
    "val/embedded_video_distance": "val/toy_video_distance",
    "embedded-256-8f": "toy-256-8f",
    "embedded-2048-16f": "toy-2048-16f",
    "codec": "autoencoder",
    "average": "post_hoc_ema",
    "lengths": "sigma_rels",
}
"""Metrics, curves, protocols and keys of results: earlier name, name of today."""
REMOVED_SETTINGS: dict[str, Any] = {}
"""Settings that identities of earlier versions contain and that no longer exist, with their value."""


def migrate(studies: Iterable[Study], root: Path) -> str:
    """Move the trials of studies from their earlier names to those of today.

    Other folders stay as they are, among them trials whose protocol now states something else: they have to be
    measured again. A second call finds nothing to move. No folder is overwritten.

    Args:
        studies: The studies.
        root: Folder of all trials.

    Returns:
        A line for each trial that was moved or kept, and a summary.
    """
    results = [read_json(path) for path in (root / "trials").glob("*/result.json")]
    seeds = {result["seed"] for result in results}
    roots = {_root(result["commands"]) for result in results}
    lines, num_moved = [], 0
    for study in studies:
        for scale in study.scales.values():
            everything = sorted(seeds | set(scale.seeds))
            trials = plan(study, scale.name, root, everything)
            commands = {
                (place, trial.hash): trial.commands
                for place in roots
                for trial in plan(study, scale.name, place, everything)
            }
            names = earlier_names(study, scale.name, trials)
            for trial in trials:
                earlier = root / "trials" / names[trial.hash]
                if earlier == trial.path or not earlier.is_dir():
                    continue
                about = f"{earlier.name} -> {trial.hash}  {study.name}, {scale.name}: {trial.row}, seed {trial.seed}"
                if held(earlier):
                    lines.append(f"kept   {about} (it is running)")
                elif trial.path.exists():
                    lines.append(f"kept   {about} (a folder of this name exists)")
                else:
                    _move(trial, earlier, commands)
                    num_moved += 1
                    lines.append(f"moved  {about}")
            _move_manifest(file_of(study, scale.name, root), names)
    return "\n".join([*lines, f"{num_moved} trials moved, {len(lines) - num_moved} kept"])


def earlier_names(study: Study, scale: str, trials: list[Trial]) -> dict[str, str]:
    """Return the name that each trial had in version 0.1.0, by its name of today.

    Args:
        study: The study.
        scale: Name of the scale.
        trials: The trials, each after those that it starts from.
    """
    names: dict[str, str] = {}
    for trial in trials:
        chosen = study.at(scale)[0]
        protocol = chosen.protocol if trial.arm else None
        starts = [names[need] for need in trial.needs]
        whole = identity(trial.config, trial.seed, trial.steps, trial.clips, chosen.points, protocol, starts)
        settings = {_earlier_key(key): _earlier_value(value) for key, value in whole["settings"].items()}
        stated = _renamed(whole["protocol"], {today: earlier for earlier, today in NAMES.items()})
        names[trial.hash] = hash_of(whole | {"settings": settings | REMOVED_SETTINGS, "protocol": stated})
    return names


def _earlier_key(key: str) -> str:
    for earlier, today in KEYS.items():
        if key == today or key.startswith(f"{today}."):
            return earlier + key.removeprefix(today)
    return key


def _earlier_value(value: Any) -> Any:
    return {today: earlier for earlier, today in VALUES.items()}.get(value, value) if isinstance(value, str) else value


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Replace keys and whole strings in nested lists and dictionaries."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def _move(trial: Trial, earlier: Path, commands: dict[tuple[Path, str], Any]) -> None:
    """Rewrite the result of a trial under the names of today, then rename its folder."""
    file = earlier / "result.json"
    if file.is_file():
        result = read_json(file)
        own = commands[_root(result["commands"]), trial.hash]
        write_json(file, migrated(result, trial) | {"commands": [list(part) for part in own]})
    os.rename(earlier, trial.path)
    lock_of(earlier).unlink(missing_ok=True)


def migrated(result: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the result of an earlier version under the names of today; its commands are left as they are.

    Args:
        result: The result.
        trial: The trial.
    """
    new = {NAMES.get(key, key): value for key, value in result.items()}
    for key in ("held_out", "distance", "curves", "post_hoc_ema"):
        if key in new:
            new[key] = _renamed(new[key], NAMES)
    protocol = {key: value for key, value in new["held_out"].items() if key not in ("hash", "loss")}
    new["held_out"]["hash"] = hashlib.sha256(canonical_json(protocol).encode()).hexdigest()
    if new["distance"] is not None:
        stated = EvaluationProtocol.from_dict(new["distance"]["stated"], trial.hash)
        new["distance"]["protocol_hash"] = stated.hash
    return new | {"hash": trial.hash, "row": trial.row, "settings": trial.expected}


def _root(commands: list[list[str]]) -> Path:
    """Return the folder of all trials in which a trial was trained, from its `latte fit` command."""
    flag = "--trainer.default_root_dir="
    folders = [Path(part.removeprefix(flag)) for part in commands[0] if part.startswith(flag)]
    return folders[0].parent if folders else Path("runs/ablations")


def _move_manifest(plan_file: Path, names: dict[str, str]) -> None:
    """Move the names in the manifest of an earlier version (a text file) into the plan file of today."""
    manifest = plan_file.with_suffix(".txt")
    if not manifest.is_file():
        return
    today = {earlier: name for name, earlier in names.items()}
    stored = read_json(plan_file) if plan_file.is_file() else {}
    hashes = [today.get(name, name) for name in manifest.read_text().split()]
    write_text(plan_file, json.dumps(stored | {"hashes": list(dict.fromkeys([*stored.get("hashes", []), *hashes]))}))
    manifest.unlink()
