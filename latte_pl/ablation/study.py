"""Studies: one question as a YAML file with rows of settings, a baseline, claims, and the scales at which it is run."""

import contextlib
import itertools
import re
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from latte_pl.ablation.measures import MEASURES

Side = Literal["better", "worse", "narrows"]
Status = Literal["quoted", "issue", "code", "recalled", "ours"]
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about a row that a confidence interval can decide.

    Attributes:
        row: The row that the claim is about.
        side: "better" or "worse" than the other row; "narrows" if the difference to the other row shrinks during
            training.
        at: Share of the training after which the claim holds. For "narrows": the early point to compare the end with.
        text: The claim in words.
        than: The other row. Empty for the baseline.
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
            raise ValueError(f"a claim compares {self.row!r} with itself; set than to another row, or remove it")
        if not 0.0 < self.at <= 1.0 or (self.side == "narrows" and self.at == 1.0):
            raise ValueError(f"a claim's at is {self.at}; it must lie in (0, 1], and below 1 for side 'narrows'")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a trained model is: a condition that the baseline must meet with every seed before claims have verdicts.

    Attributes:
        measure: A key of ``MEASURES``.
        at_least: Smallest value at the end of training, for a measure where higher is better.
        at_most: Largest value at the end of training, for a measure where lower is better.
    """

    measure: str
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ValueError(f"trained.measure is {self.measure!r}; choose {', '.join(MEASURES)}")
        bound, other = ("at_least", "at_most") if MEASURES[self.measure].higher_is_better else ("at_most", "at_least")
        if not isinstance(getattr(self, bound), int | float) or getattr(self, other) is not None:
            raise ValueError(f"trained by {self.measure} needs the number {bound}, and no {other}")

    def met_by(self, value: float | None) -> bool:
        """Return whether a value of the measure meets the condition; a value that was not measured does not."""
        if value is None:
            return False
        return value >= self.at_least if self.at_least is not None else value <= self.at_most  # type: ignore[operator]

    def __str__(self) -> str:
        measure = MEASURES[self.measure]
        bound, word = (self.at_least, "at least") if measure.higher_is_better else (self.at_most, "at most")
        return f"{measure.name} of {word} {measure.shown(bound)}"  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size at which a study is run.

    Attributes:
        name: Name of the scale.
        configs: Config files of `latte fit`, as shipped names or paths, composed from left to right.
        seeds: Every row is trained once with each seed.
        clips: Training budget of every row, in clips.
        protocol: Evaluation protocol of the video distance and the motion accuracy. None: they are not measured.
        points: About how often the held-out loss is measured during a training.
        trained: Condition below which claims have no verdicts. None: every model counts as trained.
        overrides: Settings of all rows, by dotted name.
        latents: Name of a latent cache under ROOT/latents that all trials read. It is encoded before the first trial.
        rows: Rows that replace the study's rows at this scale.
        baseline: Baseline that replaces the study's baseline at this scale.
        gpu_tflops: Sustained TFLOP/s of one GPU, for the estimate of GPU-hours.
    """

    name: str
    configs: list[str]
    seeds: list[int]
    clips: int
    protocol: str | None = None
    points: int = 16
    trained: Trained | None = None
    overrides: Settings
    latents: str | None = None
    rows: dict[str, Settings] | None = None
    baseline: str | None = None
    gpu_tflops: float | None = None

    def __post_init__(self) -> None:
        if not self.configs or not self.seeds or len(set(self.seeds)) != len(self.seeds) or self.clips < 1:
            raise ValueError(
                f"scale {self.name} has configs={self.configs}, seeds={self.seeds} and clips={self.clips}; it needs at "
                "least one config, distinct seeds and a positive number of clips"
            )
        if self.points < 2:
            raise ValueError(f"scale {self.name} has points={self.points}; it must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, the published answer, and the trainings that answer it again.

    Attributes:
        name: Name of the study, from its file.
        question: The question in one sentence.
        conclusion: What the paper concludes.
        status: Source of the conclusion: the paper ("quoted"), an issue of the official repository ("issue"), the
            official code ("code"), memory ("recalled", shown as unverified), or no paper ("ours").
        claims: The conclusion, row by row.
        baseline: The row that the others are compared with.
        rows: Settings of each row, by dotted name.
        prepare: Trainings that rows start from and that are not rows themselves. "clips" among their settings is their
            own budget. "{name}" in a setting of a row is replaced by the folder of that training.
        scales: Scales by name.
        published: Systems of the table of published values (`latte_pl.metrics.paper_values`) that the study is about,
            by the name of the row that they are.
        files: The files that the study was read from.
    """

    name: str
    question: str
    conclusion: str
    status: Status
    claims: list[Claim]
    baseline: str
    rows: dict[str, Settings]
    prepare: dict[str, Settings]
    scales: dict[str, Scale]
    published: dict[str, str]
    files: tuple[Path, ...] = ()

    def baseline_at(self, scale: str) -> str:
        """Return the baseline of a scale."""
        return self.at(scale)[0].baseline or self.baseline

    def at(self, scale: str) -> tuple[Scale, dict[str, Settings]]:
        """Return a scale and its rows.

        Raises:
            ValueError: The study has no such scale.
        """
        if scale not in self.scales:
            raise ValueError(f"{self.name} has no scale {scale!r}; choose {', '.join(self.scales)}")
        chosen = self.scales[scale]
        return chosen, self.rows if chosen.rows is None else chosen.rows


# ------------------------------------------------------------------------------------------------------------- files


def folders() -> list[Path]:
    """Return the folders with study files, in order of precedence.

    These are ``ablations`` in the working directory, ``ablations`` in the repository of the package, and the studies
    inside the installed package.
    """
    package = Path(str(resources.files("latte_pl")))
    return [Path("ablations"), package.parent / "ablations", package / "studies"]


def available() -> list[Path]:
    """Return the study files of the first folder that has any."""
    return next((found for folder in folders() if (found := sorted(folder.glob("*.yaml")))), [])


def find(name: str) -> Path:
    """Return the file of a study.

    Args:
        name: Name of a study, or the path of a YAML file.

    Raises:
        FileNotFoundError: There is no such study.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise FileNotFoundError(f"no study file {name}")
    path = _first(f"{name}.yaml", folders())
    if path is None:
        names = sorted({path.stem for folder in folders() for path in folder.glob("*.yaml")})
        raise FileNotFoundError(f"no study {name}; choose {', '.join(names)}, or give the path of a .yaml file")
    return path


def _first(name: str, places: list[Path]) -> Path | None:
    return next((path for folder in places if (path := folder / name).is_file()), None)


def read(path: Path | str) -> Study:
    """Read a study and the scales that it names.

    Raises:
        ValueError: A key is unknown or missing, or has a wrong value.
    """
    path = Path(path)
    try:
        data = _load(path)
        if not isinstance(data, dict):
            raise ValueError("a study must be a mapping of keys")
        scales, files = _scales(data.pop("scales", None), path.parent)
        return _study(path.stem, data, scales, (path, *files))
    except (TypeError, AttributeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def siblings(study: Study, scale: str) -> list[Study]:
    """Return the suite of a study: all studies in its folder that have a scale, the study itself included."""
    suite = [study]
    for path in sorted(study.files[0].parent.glob("*.yaml")):
        with contextlib.suppress(ValueError):  # another YAML file
            if path != study.files[0] and scale in (other := read(path)).scales:
                suite.append(other)
    return sorted(suite, key=lambda study: study.name)


def _load(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def _scales(data: Any, folder: Path) -> tuple[dict[str, Scale], list[Path]]:
    """Read the scales of a study.

    A scale without "configs" is read from ``scales/NAME.yaml``, beside the study or among the shipped studies. The
    study's own keys replace keys of that file.
    """
    if not data:
        raise ValueError("missing scales")
    known = {field.name for field in fields(Scale)} - {"name"}
    scales, files = {}, []
    for name, own in (dict.fromkeys(data) if isinstance(data, list) else data).items():
        settings = dict(own or {})
        if "configs" not in settings:
            places = [place / "scales" for place in (folder, *folders())]
            path = _first(f"{name}.yaml", places)
            if path is None:
                names = sorted({path.stem for place in places for path in place.glob("*.yaml")})
                raise ValueError(f"scale {name} has no configs, and there is no scales/{name}.yaml among {names}")
            settings = _load(path) | settings
            files.append(path)
        _check_keys(settings, known, ("configs", "seeds", "clips"), f"scale {name}: ")
        if (trained := settings.get("trained")) is not None:
            _check_keys(trained, {field.name for field in fields(Trained)}, ("measure",), f"scale {name}: trained: ")
            settings["trained"] = Trained(**trained)
        rows = settings.get("rows")
        settings["rows"] = None if rows is None else _rows(rows)
        scales[name] = Scale(**{"overrides": {}} | settings | {"name": name})
    return scales, files


def _study(name: str, data: dict[str, Any], scales: dict[str, Scale], files: tuple[Path, ...]) -> Study:
    known = {field.name for field in fields(Study)} - {"name", "files", "scales"} | {"grid"}
    _check_keys(data, known, ("question", "conclusion", "status", "baseline"), "")
    listed, crossed = _rows(data.get("rows")), _grid(data.get("grid"))
    if both := listed.keys() & crossed.keys():
        raise ValueError(f"rows and grid both define {', '.join(both)}")
    rows = listed | crossed
    prepare = _rows(data.get("prepare"))
    claims = [Claim(**claim) for claim in data.get("claims") or []]
    trained = set(rows).union(*(scale.rows or {} for scale in scales.values()))
    if unknown := [row for claim in claims for row in (claim.row, claim.than) if row and row not in trained]:
        raise ValueError(f"claims name {', '.join(unknown)}, which no scale trains; the rows are {', '.join(trained)}")
    for scale in scales.values():
        at_scale = rows if scale.rows is None else scale.rows
        baseline = scale.baseline or data["baseline"]
        if baseline not in at_scale:
            raise ValueError(f"baseline {baseline!r} is not a row of scale {scale.name}; choose {', '.join(at_scale)}")
        for settings in at_scale.values():
            for reference in references(settings):
                if reference not in prepare:
                    raise ValueError(f"{{{reference}}} is not a training under prepare: {', '.join(prepare) or 'none'}")
    for settings in prepare.values():
        if started := references(settings):
            raise ValueError(f"a training under prepare starts from {', '.join(started)}; only rows can do that")
    if data["status"] not in get_args(Status):
        raise ValueError(f"status is {data['status']!r}; choose {', '.join(get_args(Status))}")
    return Study(
        name=name,
        question=data["question"],
        conclusion=data["conclusion"],
        status=data["status"],
        claims=claims,
        baseline=data["baseline"],
        rows=rows,
        prepare=prepare,
        scales=scales,
        published={row: str(system) for row, system in (data.get("published") or {}).items()},
        files=files,
    )


def references(settings: Settings) -> list[str]:
    """Return the names in braces among the values of settings: the trainings that a row starts from."""
    return [name for value in settings.values() if isinstance(value, str) for name in re.findall(r"{(\w+)}", value)]


def _rows(data: dict[str, Settings | None] | None) -> dict[str, Settings]:
    return {row: dict(settings or {}) for row, settings in (data or {}).items()}


def _grid(grid: dict[str, list[Any]] | None) -> dict[str, Settings]:
    """Return a row for every combination of the values of a grid, named after the last part of each setting."""
    if not grid:
        return {}
    rows = {}
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values))
        rows[", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())] = settings
    return rows


def _check_keys(data: dict[str, Any], known: set[str], required: tuple[str, ...], where: str) -> None:
    if unknown := sorted(set(data) - known):
        raise ValueError(f"{where}unknown {', '.join(unknown)}; the keys are {', '.join(sorted(known))}")
    if missing := [key for key in required if key not in data]:
        raise ValueError(f"{where}missing {', '.join(missing)}")
