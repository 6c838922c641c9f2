"""Result records: a value with all that made it, as JSON; and tables of records that may stand side by side."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from latte_pl.metrics.frechet import Interval, Score
from latte_pl.metrics.protocol import Protocol

PACKAGES = ("latte_pl", "torch", "torchvision", "lightning", "torchmetrics", "diffusers", "clean-fid", "numpy", "scipy")


@dataclass(frozen=True)
class Record:
    """One evaluation's result.

    Attributes:
        model: what was evaluated: a checkpoint's or a folder's name.
        scores: values by metric, with label and interval.
        protocol: all of its keys; weights kind, sampler and seed are among them.
        wall_time_s: seconds of the evaluation.
        git_commit: with "-dirty" when files were changed; "" outside a repository.
        versions: of the packages and of Python.
        created: UTC, ISO 8601.
        about: what else is known, such as the weights' hash, the device and the batch size.
    """

    model: str
    scores: dict[str, Score]
    protocol: Protocol
    wall_time_s: float
    git_commit: str
    versions: dict[str, str]
    created: str
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls, model: str, scores: dict[str, Score], protocol: Protocol, wall_time_s: float, **about: Any
    ) -> "Record":
        """Return the record of a result that was just obtained, here and now."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(model, scores, protocol, wall_time_s, git_commit(), versions(), created, about)

    def write(self, path: Path | str) -> None:
        """Write JSON, atomically."""
        protocol = self.protocol
        data = asdict(self) | {
            "scores": {name: _score_to_dict(score) for name, score in self.scores.items()},
            "protocol": protocol.to_dict(),
            "protocol_hash": protocol.hash,
            "weights": protocol.weights,
            "sampler": protocol.sampler,
            "seed": protocol.seed,
        }
        write_atomically(Path(path), json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Read a record.

        Raises:
            ValueError: it is no record, or its protocol is not the one that its hash names.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            protocol = Protocol.from_dict(data["protocol"], str(path))
            scores = {
                name: Score(s["value"], s["label"], Interval(**s["interval"]) if s["interval"] else None)
                for name, s in data["scores"].items()
            }
            stated = data["protocol_hash"]
            rest = {k: data[k] for k in ("wall_time_s", "git_commit", "versions", "created", "about")}
            record = cls(data["model"], scores, protocol, **rest)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no result record ({type(error).__name__}: {error})") from error
        if protocol.hash != stated:
            raise ValueError(f"{path} was altered: its protocol has hash {protocol.hash}, the record says {stated}")
        return record


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row a record, with the columns of each metric: value, ``_low``, ``_high``, ``_label``.

    Raises:
        ValueError: there are no records, or two of them have different protocols, which it names.
    """
    if not records:
        raise ValueError("a table needs at least one record")
    first = records[0].protocol
    for record in records[1:]:
        if record.protocol.hash != first.hash:
            other = record.protocol
            keys = differing(first.to_dict(), other.to_dict())
            raise ValueError(
                f"{records[0].model} ({first.name}, {first.hash[:12]}) and {record.model} ({other.name}, "
                f"{other.hash[:12]}) were measured differently and can't share a table: {keys}"
            )
    rows = []
    for record in records:
        row: dict[str, Any] = {"model": record.model}
        for name, score in record.scores.items():
            low, high = (score.interval.low, score.interval.high) if score.interval else (None, None)
            row |= {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_label": score.label}
        row |= {"protocol": first.name, "protocol_hash": first.hash, "created": record.created}
        rows.append(row)
    return pd.DataFrame(rows)


def text(records: Sequence[Record]) -> str:
    """Return a table for a terminal: the protocol, then one line a record with values, intervals and "smoke".

    Raises:
        ValueError: as ``table``.
    """
    table(records)  # refuses what must not stand side by side
    protocol = records[0].protocol
    size = f"{protocol.num_frames} x {protocol.height} x {protocol.width}"
    made = f"{protocol.sampler}, {protocol.steps} steps, guidance {protocol.guidance:g}, labels {protocol.labels}"
    samples = "finished videos" if protocol.weights == "files" else f"{protocol.weights} weights, {made}"
    rows = [["model", *protocol.metrics]]
    rows += [[record.model, *(_cell(record.scores[name]) for name in protocol.metrics)] for record in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{protocol.name} ({protocol.hash[:12]}): {protocol.num_real} real clips of {protocol.dataset} "
        f"({protocol.split}), {protocol.num_generated} generated, {size}",
        f"{samples}, seed {protocol.seed}, precision {protocol.precision}",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows),
    ]
    if any(score.label == "smoke" for record in records for score in record.scores.values()):
        lines += ["", "smoke: fewer clips than features, so the value only shows that the code runs"]
    return "\n".join(lines)


def compare(records: list[str]) -> None:
    """Print the records of several models side by side; records of different protocols are refused.

    Args:
        records: Files that `latte test` or `latte evaluate` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is no record, or two of them were measured differently.
    """
    print(text([Record.read(path) for path in records]))


def differing(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return the keys in which two dictionaries differ, with both values, as one line."""
    keys = [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key) and key != "name"]
    return ", ".join(f"{key} {first.get(key)!r} / {second.get(key)!r}" for key in keys)


def git_commit() -> str:
    """Return the commit of the package's repository, "-dirty" added when files were changed, "" if there is none."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a value may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a text file such that a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _cell(score: Score) -> str:
    interval = f" [{score.interval.low:.5g}, {score.interval.high:.5g}]" if score.interval else ""
    return f"{score.value:.5g}{interval}{' smoke' if score.label == 'smoke' else ''}"


def _score_to_dict(score: Score) -> dict[str, Any]:
    return score._asdict() | {"interval": score.interval._asdict() if score.interval else None}
