"""Records: scores with their protocol and origin, as JSON files, and tables of records of one protocol."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte_pl.files import read_json, write_json
from latte_pl.metrics.paper import published_values
from latte_pl.metrics.protocol import EvaluationProtocol
from latte_pl.metrics.scoring import Interval, Score

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("latte_pl", "torch", "torchvision", "lightning", "diffusers", "clean-fid", "numpy", "scipy")


@dataclass(frozen=True)
class Record:
    """The result of one evaluation."""

    model: str
    """What was evaluated: the path of a checkpoint or of a folder of videos."""
    scores: dict[str, Score]
    """Scores by metric."""
    protocol: EvaluationProtocol
    """The protocol of the scores."""
    wall_time_s: float
    """Duration of the evaluation in seconds."""
    git_commit: str
    """Commit of the package, with "-dirty" if files were modified; "" outside a git repository."""
    versions: dict[str, str]
    """Versions of Python and of the packages."""
    created: str
    """Time of the evaluation: UTC, ISO 8601."""
    about: dict[str, Any] = field(default_factory=dict)
    """Further facts, such as the hash of the weights, the device and the batch size."""

    @classmethod
    def make(
        cls, model: str, scores: dict[str, Score], protocol: EvaluationProtocol, wall_time_s: float, **about: Any
    ) -> "Record":
        """Build a record, adding commit, versions and time."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(model, scores, protocol, wall_time_s, git_commit(), versions(), created, about)

    def write(self, path: Path | str) -> None:
        """Write the record as a JSON file with a digest of its content, atomically."""
        protocol = self.protocol
        data = asdict(self) | {
            "scores": {name: _score_to_dict(score) for name, score in self.scores.items()},
            "protocol": protocol.to_dict(),
            "protocol_hash": protocol.hash,
            "weights": protocol.weights,
            "sampler": protocol.sampler,
            "seed": protocol.seed,
        }
        write_json(path, data, indent=2)

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Read a record.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a record, or it does not match its digest or the hash of its protocol.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no record {path}")
        try:
            data = read_json(path)
            protocol = EvaluationProtocol.from_dict(data["protocol"], str(path))
            scores = {
                name: Score(s["value"], s["label"], Interval(**s["interval"]) if s["interval"] else None)
                for name, s in data["scores"].items()
            }
            stated = data["protocol_hash"]
            rest = {k: data[k] for k in ("wall_time_s", "git_commit", "versions", "created", "about")}
            record = cls(data["model"], scores, protocol, **rest)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a record of an evaluation ({type(error).__name__}: {error})") from error
        if protocol.hash != stated:
            raise ValueError(f"{path} was modified: its protocol has hash {protocol.hash}, the record states {stated}")
        return record


def table(records: Sequence[Record]) -> "pd.DataFrame":
    """Return a table with one row a record and, for each metric NAME, columns NAME, NAME_low, NAME_high, NAME_label.

    Raises:
        ValueError: There are no records, or their protocols differ.
    """
    import pandas as pd

    protocol = _common_protocol(records)
    rows = []
    for record in records:
        row: dict[str, Any] = {"model": record.model}
        for name, score in record.scores.items():
            low, high = (score.interval.low, score.interval.high) if score.interval else (None, None)
            row |= {name: score.value, f"{name}_low": low, f"{name}_high": high, f"{name}_label": score.label}
        row |= {"protocol": protocol.name, "protocol_hash": protocol.hash, "created": record.created}
        rows.append(row)
    return pd.DataFrame(rows)


def text(records: Sequence[Record], published: bool = False) -> str:
    """Return a table for the terminal: the protocol, then a line a record with values, intervals and labels.

    Args:
        records: Records of one protocol.
        published: Whether to add lines of the published values of the dataset, in a column of their own.

    Raises:
        ValueError: There are no records, or their protocols differ.
    """
    protocol = _common_protocol(records)
    size = f"{protocol.num_frames} x {protocol.height} x {protocol.width}"
    made = f"{protocol.sampler}, {protocol.steps} steps, guidance {protocol.guidance:g}, labels {protocol.labels}"
    samples = "finished videos" if protocol.weights == "files" else f"{protocol.weights} weights, {made}"
    values = published_values(protocol) if published else []
    rows = [["model", *protocol.metrics, *(["published"] if values else [])]]
    rows += [[record.model, *(_cell(record.scores[name]) for name in protocol.metrics)] for record in records]
    rows += [[value.system, *("" for _ in protocol.metrics), value.text()] for value in values]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines = [
        f"{protocol.name} ({protocol.hash[:12]}): {protocol.num_real} real clips of {protocol.dataset} "
        f"({protocol.split}), {protocol.num_generated} generated, {size}",
        f"{samples}, seed {protocol.seed}, precision {protocol.precision}, {_files(protocol)}",
        "",
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows),
    ]
    found = [score for record in records for score in record.scores.values()]
    if values:
        lines += ["", "published: values of others, whose protocol is not the one above unless they say so; see status"]
    if interval := next((score.interval for score in found if score.interval), None):
        lines += [
            "",
            f"[low, high]: {interval.level:.0%} interval ({interval.method}) of the value at these numbers of clips",
        ]
    if any(score.label == "smoke" for score in found):
        lines += [
            "",
            "smoke: there are not more distinct clips than features, so the value only shows that the code runs",
        ]
    return "\n".join(lines)


def _files(protocol: EvaluationProtocol) -> str:
    """Return the lossy steps of a protocol in words."""
    jpeg = f", all frames through jpeg q{protocol.jpeg_quality}" if protocol.jpeg_quality else ""
    return ("no lossy files" if protocol.generated_codec == "none" else protocol.generated_codec) + jpeg


def differing(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return the keys in which two dictionaries differ, except ``name``, with both values, as one line."""
    keys = [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key) and key != "name"]
    return ", ".join(f"{key} {first.get(key)!r} / {second.get(key)!r}" for key in keys)


def git_commit() -> str:
    """Return the commit of the package's repository, with "-dirty" if files were modified; "" outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score may depend on; "" for a missing package."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _common_protocol(records: Sequence[Record]) -> EvaluationProtocol:
    """Return the protocol of the records.

    Raises:
        ValueError: There are no records, or their protocols differ.
    """
    if not records:
        raise ValueError("a table needs at least one record")
    first = records[0].protocol
    for record in records[1:]:
        other = record.protocol
        if other.hash != first.hash:
            raise ValueError(
                f"{records[0].model} ({first.name}, {first.hash[:12]}) and {record.model} ({other.name}, "
                f"{other.hash[:12]}) have different protocols and cannot share a table: "
                f"{differing(first.to_dict(), other.to_dict())}"
            )
    return first


def _cell(score: Score) -> str:
    interval = f" [{score.interval.low:.5g}, {score.interval.high:.5g}]" if score.interval else ""
    return f"{score.value:.5g}{interval}{' smoke' if score.label == 'smoke' else ''}"


def _score_to_dict(score: Score) -> dict[str, Any]:
    return score._asdict() | {"interval": score.interval._asdict() if score.interval else None}
