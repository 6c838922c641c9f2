"""Plans on disk: `status`, `report` and `run` plan a study again only if something changed that the plan depends on."""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latte_pl.ablation.study import Study
from latte_pl.ablation.trial import Trial

PACKAGE = Path(__file__).parents[1]


def load_plan(study: Study, scale: str, root: Path, seeds: list[int] | None = None) -> list[Trial]:
    """Return all trials of a study at a scale, from ROOT/studies if the plan there is up to date.

    A new plan is checked with `check_models` and written to ROOT/studies.

    Args:
        study: The study.
        scale: Name of the scale.
        root: Folder of all trials.
        seeds: Seeds that replace those of the scale.

    Raises:
        ValueError: A setting of the study is wrong.
    """
    study.at(scale)
    path = file_of(study, scale, root)
    stored = _read(path)
    if stored.get("digest") == _digest(study, scale, root, seeds, stored.get("modules", {})):
        return [_trial(data) for data in stored["trials"]]
    from latte_pl.ablation.plan import check_models, plan, with_points
    from latte_pl.files import write_text

    trials = plan(study, scale, root, seeds)
    check_models(study, trials)
    trials = with_points(study, scale, trials)
    modules = _modules(trials)
    hashes = [trial.hash for trial in trials]
    new = {
        "digest": _digest(study, scale, root, seeds, modules),
        "modules": modules,
        "hashes": list(dict.fromkeys([*stored.get("hashes", []), *hashes])),
        "trials": [asdict(trial) for trial in trials],
    }
    with suppress(OSError):  # results that may only be read
        write_text(path, json.dumps(new))
    return trials


def earlier_results(study: Study, scale: str, root: Path, trials: list[Trial]) -> list[str]:
    """Return the hashes of finished trials that the study had before it was edited.

    Args:
        study: The study.
        scale: Name of the scale.
        root: Folder of all trials.
        trials: The trials that the study has now.
    """
    now = {trial.hash for trial in trials}
    known = _read(file_of(study, scale, root)).get("hashes", [])
    return [name for name in known if name not in now and (root / "trials" / name / "result.json").is_file()]


def file_of(study: Study, scale: str, root: Path) -> Path:
    """Return the file that holds the plan of a study."""
    return root / "studies" / f"{study.name}.{scale}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _trial(data: dict[str, Any]) -> Trial:
    encode = data["encode"]
    return Trial(
        **data
        | {
            "encode": None if encode is None else tuple(encode),
            "commands": tuple(map(tuple, data["commands"])),
            "needs": tuple(data["needs"]),
            "points": tuple(data["points"]),
        }
    )


def _digest(study: Study, scale: str, root: Path, seeds: list[int] | None, modules: dict[str, str]) -> str:
    """Return the SHA-256 of everything that a plan depends on.

    That is the content of the study, of its config files, of all sources and shipped configurations of the package,
    and of other modules whose classes the configurations name.
    """
    chosen, _ = study.at(scale)
    names = [*chosen.configs, *([chosen.protocol] if chosen.protocol else [])]
    digest = hashlib.sha256(json.dumps([study.name, scale, str(root), seeds, names]).encode())
    own = [*study.files, *map(Path, [*names, *modules.values()])]
    for path in (*own, *_sources()):
        digest.update(path.name.encode())
        with suppress(OSError):  # the name of a shipped file, which is among the sources
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources() -> Iterator[Path]:
    for pattern in ("*.py", "*.yaml"):
        yield from sorted(PACKAGE.rglob(pattern))


def _modules(trials: list[Trial]) -> dict[str, str]:
    """Return the source files of the classes outside the package that the configurations name, by module."""
    names = {path.rpartition(".")[0] for trial in trials for path in _class_paths(trial.config)}
    modules = {name: sys.modules[name] for name in sorted(names) if name in sys.modules}
    files = {name: getattr(module, "__file__", None) for name, module in modules.items()}
    return {name: file for name, file in files.items() if file and not name.startswith("latte_pl.")}


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(path := config.get("class_path"), str):
            yield path
        for value in config.values():
            yield from _class_paths(value)
