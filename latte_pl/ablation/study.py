"""A study: one question of the paper as a file: rows of dotted settings, a baseline, seeds and a budget of clips."""

import itertools
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

FOLDER = Path("ablations")
Side = Literal["better", "worse", "narrows"]
Overrides = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement about a row, the paper's or that of the row's own source, as something that an interval can decide.

    Attributes:
        row: The row that it is about.
        side: "better" or "worse" than the other row; "narrows": the distance to that row shrinks in training.
        at: Share of the training at which it holds; for "narrows" the early point that the end is compared with.
        text: The statement in words.
        than: The other row; empty for the baseline.
    """

    row: str
    side: Side
    at: float = 1.0
    text: str = ""
    than: str = ""

    def __post_init__(self) -> None:
        if self.side not in get_args(Side):
            raise ValueError(f"a claim's side is {self.side!r}; choose {', '.join(get_args(Side))}")
        if self.than == self.row:
            raise ValueError(f"a claim compares {self.row!r} with itself; name another row in than, or none")
        if not 0.0 < self.at <= 1.0 or (self.side == "narrows" and self.at == 1.0):
            raise ValueError(f"a claim's at is {self.at}; it is a share of training in (0, 1], below 1 for 'narrows'")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """At which size a study is run.

    Attributes:
        configs: Configurations of `latte fit`, shipped names or paths, composed from left to right.
        seeds: A row is trained once with each.
        clips: Budget: clips that every row trains on.
        protocol: Of the video distance; None leaves it out.
        overrides: Dotted settings of all rows.
        latents: A `latte encode` of the scale's data that all trials read: the name of its folder below the root.
        rows: Rows in place of the study's own, for axes that have other values at this scale.
        baseline: Their baseline.
        gpu_tflops: Sustained TFLOP/s of the device that GPU-hours are estimated for.
    """

    name: str
    configs: list[str]
    seeds: list[int]
    clips: int
    protocol: str | None = None
    overrides: Overrides
    latents: str | None = None
    rows: dict[str, Overrides] | None = None
    baseline: str | None = None
    gpu_tflops: float | None = None

    def __post_init__(self) -> None:
        if not self.configs or not self.seeds or len(set(self.seeds)) != len(self.seeds) or self.clips < 1:
            raise ValueError(
                f"scale {self.name}: configs {self.configs}, seeds {self.seeds} (each once) and clips {self.clips} "
                "must not be empty"
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what the paper says about it, and the trials that ask it again.

    Attributes:
        name: The file's.
        question: In one sentence.
        conclusion: The paper's.
        status: Where the conclusion is known from: quoted, issue, code or recalled (shown as unverified).
        claims: What the conclusion says, row by row.
        baseline: The row that the others are compared with.
        rows: Dotted settings of each row.
        prepare: Trainings that rows start from and that are no rows, each with a budget of its own under "clips";
            "{name}" in a setting of a row stands for one's folder.
        scales: By name.
        values: The paper's numbers by row, for a column of their own.
    """

    name: str
    question: str
    conclusion: str
    status: Literal["quoted", "issue", "code", "recalled", "ours"]
    claims: list[Claim]
    baseline: str
    rows: dict[str, Overrides]
    prepare: dict[str, Overrides]
    scales: dict[str, Scale]
    values: dict[str, str]

    def baseline_at(self, scale: str) -> str:
        """Return the row that the others of a scale are compared with."""
        return self.at(scale)[0].baseline or self.baseline

    def at(self, scale: str) -> tuple[Scale, dict[str, Overrides]]:
        """Return a scale and its rows.

        Raises:
            ValueError: The study has no such scale.
        """
        if scale not in self.scales:
            raise ValueError(f"{self.name} has no scale {scale!r}; it has {', '.join(self.scales)}")
        chosen = self.scales[scale]
        return chosen, self.rows if chosen.rows is None else chosen.rows


def find(name: str) -> Path:
    """Return the file of a study: a path, or a name below ``ablations`` here or beside the package.

    Raises:
        FileNotFoundError: There is none; those that exist are listed.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise FileNotFoundError(f"no study {name}")
    for path in _files():
        if path.stem == name:
            return path
    raise FileNotFoundError(f"no study {name}; there are {', '.join(p.stem for p in _files()) or 'none here'}")


def shipped() -> list[Path]:
    """Return the files of all studies."""
    return _files()


def _files() -> list[Path]:
    for folder in (FOLDER, Path(__file__).parents[2] / FOLDER):
        if found := sorted(folder.glob("*.yaml")):
            return found
    return []


def read(path: Path | str) -> Study:
    """Read a study.

    Raises:
        ValueError: A key is unknown, missing or has a wrong value; the file and the key are named.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _build(path.stem, data)
    except (TypeError, AttributeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _build(name: str, data: Any) -> Study:
    if not isinstance(data, dict):
        raise ValueError("a study is a mapping of keys")
    known = {f.name for f in fields(Study)} - {"name"} | {"grid"}
    _only(known, data, "")
    _need(("question", "conclusion", "status", "baseline", "scales"), data, "")
    rows = {row: dict(settings or {}) for row, settings in (data.get("rows") or {}).items()} | _grid(data.get("grid"))
    prepare = {row: dict(settings or {}) for row, settings in (data.get("prepare") or {}).items()}
    scales = {}
    for scale, settings in data["scales"].items():
        _only({f.name for f in fields(Scale)} - {"name"}, settings, f"scale {scale}: ")
        _need(("configs", "seeds", "clips"), settings, f"scale {scale}: ")
        other = settings.get("rows")
        other = None if other is None else {row: dict(values or {}) for row, values in other.items()}
        scales[scale] = Scale(**{"overrides": {}} | settings | {"name": scale, "rows": other})
    claims = [Claim(**claim) for claim in data.get("claims") or []]
    every = set(rows).union(*(scale.rows or {} for scale in scales.values()))
    if strays := [row for claim in claims for row in (claim.row, claim.than) if row and row not in every]:
        raise ValueError(f"claims about {', '.join(strays)}, which no scale trains; the rows are {', '.join(every)}")
    if len(data.get("rows") or {}) + len(_grid(data.get("grid"))) > len(rows):
        raise ValueError("rows and grid name the same row")
    for scale in scales.values():
        named = rows if scale.rows is None else scale.rows
        baseline = scale.baseline or data["baseline"]
        if baseline not in named:
            raise ValueError(f"baseline {baseline!r} is no row of scale {scale.name}; they are {', '.join(named)}")
        for settings in named.values():
            for reference in references(settings):
                if reference not in prepare:
                    raise ValueError(f"{{{reference}}} names nothing that prepare trains: {', '.join(prepare) or '-'}")
    for settings in prepare.values():
        if started := references(settings):
            raise ValueError(f"a training under prepare starts from {', '.join(started)}; only rows start from others")
    status = data["status"]
    if status not in ("quoted", "issue", "code", "recalled", "ours"):
        raise ValueError(f"status is {status!r}; choose quoted, issue, code, recalled or ours")
    return Study(
        name=name,
        question=data["question"],
        conclusion=data["conclusion"],
        status=status,
        claims=claims,
        baseline=data["baseline"],
        rows=rows,
        prepare=prepare,
        scales=scales,
        values={row: str(value) for row, value in (data.get("values") or {}).items()},
    )


def _grid(grid: dict[str, list[Any]] | None) -> dict[str, Overrides]:
    """Cross axes: a row for every combination, named after the last part of each setting."""
    if not grid:
        return {}
    rows = {}
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        rows[", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())] = settings
    return rows


def references(settings: Overrides) -> list[str]:
    """Return the names in braces among the values of settings."""
    return [name for value in settings.values() if isinstance(value, str) for name in re.findall(r"{(\w+)}", value)]


def _only(known: set[str], data: dict[str, Any], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise ValueError(f"{where}unknown {', '.join(unknown)}; the keys are {', '.join(sorted(known))}")


def _need(keys: tuple[str, ...], data: dict[str, Any], where: str) -> None:
    if missing := [key for key in keys if key not in data]:
        raise ValueError(f"{where}missing {', '.join(missing)}")
