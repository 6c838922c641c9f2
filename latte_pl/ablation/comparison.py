"""A study's results side by side: readings by row and seed, differences, verdicts, costs."""

import itertools
import json
import statistics as plain_statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from latte_pl.ablation.plan import plan
from latte_pl.ablation.runner import last_error, state_of
from latte_pl.ablation.statistics import Estimate, Verdict, estimate, paired, read_at, unpaired, verdict
from latte_pl.ablation.study import Claim, Study
from latte_pl.ablation.trial import Trial

Reading = Callable[[dict[str, Any]], float | None]
LOSS, DISTANCE = "held-out loss", "video distance"


def loss(result: dict[str, Any]) -> float:
    """Return the held-out loss at the end."""
    return result["held_out"]["loss"]


def distance(result: dict[str, Any]) -> float | None:
    """Return the video distance at the end; None where it was not measured."""
    return result["distance"] and result["distance"]["value"]


def loss_at(share: float) -> Reading:
    """Return a reading of the held-out loss after this share of the training; None before the curve's first point."""
    return lambda result: _at(result, share * result["steps"])


def loss_at_flops(flops: float) -> Reading:
    """Return a reading of the held-out loss after this many training FLOPs; None before the curve's first point."""
    return lambda result: _at(result, result["steps"] * flops / result["cost"]["training_flops"])


def _at(result: dict[str, Any], step: float) -> float | None:
    curve = result["curves"]["val/loss"]
    return None if step < curve[0][0] else read_at(curve, step)


MEASURES: dict[str, Reading] = {LOSS: loss, DISTANCE: distance}


@dataclass(frozen=True)
class Kind:
    """Something that the results of a table must share.

    Attributes:
        part: Of a result; None for the budget.
        digest: Its hash.
        settings: What a row may set for itself.
        fields: What of the part follows from that.
    """

    part: str | None
    digest: str
    settings: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def shown(self, result: dict[str, Any]) -> Any:
        """Return the budget, or the hash of a protocol."""
        about = result if self.part is None else result[self.part]
        return about and (about[self.digest] if self.part is None else about[self.digest][:12])

    def differ(self, first: dict[str, Any], other: dict[str, Any]) -> bool:
        """Whether two results differ by more than what their rows chose."""
        if self.shown(first) == self.shown(other):
            return False
        rows = [result for result in (first, other) if any(key.startswith(self.settings) for key in result["settings"])]
        if self.part is None or not rows or not (first[self.part] and other[self.part]):
            return True
        left, right = (self._rest(result[self.part]) for result in (first, other))
        return left != right

    def _rest(self, about: dict[str, Any]) -> dict[str, Any]:
        about = about.get("stated", about)
        return {key: value for key, value in about.items() if key not in (*self.fields, self.digest, "loss")}


KINDS = {
    "budgets in clips": Kind(None, "clips"),
    "held-out protocols": Kind("held_out", "hash", ("model.diffusion",), ("objective", "objective_settings")),
    "distance protocols": Kind(
        "distance", "protocol_hash", ("model.diffusion", "model.sampling"), ("sampler", "steps", "eta")
    ),
}


@dataclass
class Comparison:
    """The results of a study at a scale.

    Attributes:
        study: What was asked.
        scale: Name of the scale.
        baseline: The row that the others are compared with.
        trials: All arms, finished or not.
        results: Of the finished ones, by row and seed.
        errors: Last error line of the failed ones, by row and seed.
    """

    study: Study
    scale: str
    baseline: str
    trials: list[Trial]
    results: dict[str, dict[int, dict[str, Any]]]
    errors: dict[str, dict[int, str]]

    @classmethod
    def load(cls, study: Study, scale: str, root: Path | str, seeds: list[int] | None = None) -> "Comparison":
        """Read the results of a study.

        Args:
            study: What was asked.
            scale: Name of the scale.
            root: Folder of all trials.
            seeds: In place of the scale's.

        Raises:
            ValueError: Results of different scales, budgets or protocols lie under the study's name.
        """
        arms = [trial for trial in plan(study, scale, Path(root), seeds) if trial.arm]
        results: dict[str, dict[int, dict[str, Any]]] = {trial.row: {} for trial in arms}
        errors: dict[str, dict[int, str]] = {trial.row: {} for trial in arms}
        for trial in arms:
            if trial.result.is_file():
                result = json.loads(trial.result.read_text(encoding="utf-8"))
                if result["hash"] != trial.hash:
                    raise ValueError(f"{trial.result} is of trial {result['hash']}; it was moved there")
                results[trial.row][trial.seed] = result
            elif state_of(trial) == "FAILED":
                errors[trial.row][trial.seed] = last_error(trial)
        comparison = cls(study, scale, study.baseline_at(scale), arms, results, errors)
        comparison.refuse_mixtures()
        return comparison

    def all_results(self) -> list[dict[str, Any]]:
        """Return all results, row by row."""
        return [result for row in self.results.values() for result in row.values()]

    def refuse_mixtures(self) -> None:
        """Refuse results that must not stand in one table.

        A row may choose an objective and a sampler of its own; all else that a number depends on is shared. Scales
        cannot mix: a result is found by the hash of the scale's own trial.

        Raises:
            ValueError: Two results differ in budget, held-out protocol or distance protocol; both are named.
        """
        for first, other in itertools.combinations(self.all_results(), 2):
            for name, kind in KINDS.items():
                if kind.differ(first, other):
                    pairs = "; ".join(
                        f"{result['row']}, seed {result['seed']}: {kind.shown(result)}" for result in (first, other)
                    )
                    raise ValueError(f"{self.study.name}: one table cannot mix {name} ({pairs})")

    def other_objective(self, row: str, than: str = "") -> str | None:
        """Return the name of a row's objective where its loss is of another kind than the baseline's, or ``than``'s."""
        names = (row, than or self.baseline)
        own, base = (next((r["held_out"] for r in self.results[name].values()), None) for name in names)
        return None if own is None or base is None or own["hash"] == base["hash"] else own.get("objective")

    def values(self, row: str, reading: Reading) -> dict[int, float]:
        """Return a reading of every finished trial of a row, by seed."""
        read = {seed: reading(result) for seed, result in self.results[row].items()}
        return {seed: value for seed, value in read.items() if value is not None}

    def mean(self, row: str, reading: Reading) -> Estimate | None:
        """Return a row's mean over seeds."""
        return estimate(list(self.values(row, reading).values()))

    def difference(self, row: str, reading: Reading, than: str = "") -> Estimate | None:
        """Return a row's paired difference to the baseline, or to ``than``; None where the losses are of two kinds."""
        if reading is not distance and self.other_objective(row, than):
            return None
        return paired(self.values(row, reading), self.values(than or self.baseline, reading))

    def narrowing(self, row: str, early: Reading, late: Reading, than: str = "") -> Estimate | None:
        """Return by how much a row's distance to another shrinks from an early to a late reading, seed by seed."""
        if self.other_objective(row, than):
            return None
        gaps = []
        for reading in (early, late):
            own, base = self.values(row, reading), self.values(than or self.baseline, reading)
            gaps.append({seed: abs(own[seed] - base[seed]) for seed in own.keys() & base.keys()})
        return paired(*gaps)

    def equal_flops(self) -> float | None:
        """Return the training FLOPs of the cheapest row; None when all rows cost the same within 1 %."""
        flops = [result["cost"]["training_flops"] for result in self.all_results()]
        return min(flops) if flops and max(flops) > 1.01 * min(flops) else None

    def measured(self, measure: str) -> bool:
        """Whether any trial has this measure."""
        return any(MEASURES[measure](result) is not None for result in self.all_results())

    def pairing_gain(self, measure: str) -> list[float]:
        """Return for each row how many times narrower the paired interval is than that of unpaired runs."""
        gains = []
        for row in self.results:
            ours = self.difference(row, MEASURES[measure])
            sides = [list(self.values(name, MEASURES[measure]).values()) for name in (row, self.baseline)]
            other = unpaired(*sides)
            if row != self.baseline and ours and ours.half and other and other.half:
                gains.append(other.half / ours.half)
        return gains

    def decide(self, claim: Claim) -> dict[str, tuple[Estimate | None, Verdict]]:
        """Return each measure's estimate and verdict on a claim; early points have the held-out loss alone."""
        if claim.side == "narrows":
            shrinks = self.narrowing(claim.row, loss_at(claim.at), loss, claim.than)
            return {LOSS: (shrinks, verdict(shrinks, claim.side))}
        if claim.at < 1.0:
            early = self.difference(claim.row, loss_at(claim.at), claim.than)
            return {LOSS: (early, verdict(early, claim.side))}
        known = {name: reading for name, reading in MEASURES.items() if self.measured(name)}
        found = {name: self.difference(claim.row, reading, claim.than) for name, reading in known.items()}
        return {name: (difference, verdict(difference, claim.side)) for name, difference in found.items()}

    def claims(self) -> list[Claim]:
        """Return the claims about rows of this scale."""
        return [c for c in self.study.claims if c.row in self.results and (c.than or c.row) in self.results]

    def table(self) -> pd.DataFrame:
        """Return a line a row: means, half widths of 95 % intervals, paired differences, costs."""
        budget = self.equal_flops()
        lines = []
        for row, results in self.results.items():
            wanted = [trial for trial in self.trials if trial.row == row]
            failed = self.errors[row]
            line: dict[str, Any] = {
                "row": row,
                "baseline": row == self.baseline,
                "other_objective": self.other_objective(row) or "",
                "seeds": len(results),
                "failed": len(failed),
                "missing": len(wanted) - len(results) - len(failed),
                "error": "; ".join(sorted(set(failed.values()))),
            }
            readings: dict[str, Reading] = {"loss": loss, "distance": distance}
            if budget is not None:
                readings["loss_equal_flops"] = loss_at_flops(budget)
            for name, reading in readings.items():
                line |= _spread(name, self.mean(row, reading))
                line |= _spread(f"{name}_diff", None if row == self.baseline else self.difference(row, reading))
            costs = [result["cost"] for result in results.values()]
            for name in ("parameters", "forward_flops", "training_flops", "clips_per_second", "peak_memory"):
                known = [cost[name] for cost in costs if cost.get(name) is not None]
                line[name] = plain_statistics.median(known) if known else None
            line["paper"] = self.study.values.get(row, "")
            lines.append(line)
        return pd.DataFrame(lines)


def _spread(name: str, value: Estimate | None) -> dict[str, float | None]:
    return {name: value and value.mean, f"{name}_half": value and value.half, f"{name}_n": value and value.n}
