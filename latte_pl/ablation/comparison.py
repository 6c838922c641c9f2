"""The results of a study side by side: measures by row and seed, paired differences, tests of claims, costs."""

import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latte_pl.ablation.intervals import (
    Estimate,
    detectable,
    differences,
    estimate,
    narrowing,
    p_value,
    paired,
    unpaired,
)
from latte_pl.ablation.measures import LOSS, MEASURES, Measure, flops_share, step_at
from latte_pl.ablation.plan_cache import load_plan
from latte_pl.ablation.study import Claim, Study
from latte_pl.ablation.trial import Trial, last_error, state_of
from latte_pl.files import read_json

if TYPE_CHECKING:
    import pandas as pd

Value = Callable[[dict[str, Any]], float | None]
"""A function of a result: the value of a measure, or None if it was not measured."""
COSTS = ("parameters", "forward_flops", "training_flops", "clips_per_second", "peak_memory")
COSTS_OF_DEVICE = ("clips_per_second", "peak_memory")
"""Costs that the device decides: they are left out if the trials ran on different devices."""


@dataclass(frozen=True)
class Condition:
    """A value that all results of a table must share.

    Attributes:
        section: Section of a result that holds the value; None for the result itself.
        key: Key of the value in the section: the budget, or the hash of a protocol.
        choices: Prefixes of settings that a row may choose for itself.
        consequences: Keys of the section that follow from these settings and may differ then.
    """

    section: str | None
    key: str
    choices: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()

    def value(self, result: dict[str, Any]) -> Any:
        """Return the value as it is shown in errors: the budget, or the first digits of a hash."""
        if self.section is None:
            return result[self.key]
        section = result[self.section]
        return section and section[self.key][:12]

    def holds(self, first: dict[str, Any], second: dict[str, Any]) -> bool:
        """Return whether two results differ in nothing but what their rows may choose."""
        if self.value(first) == self.value(second):
            return True
        may_differ = any(key.startswith(self.choices) for result in (first, second) for key in result["settings"])
        if self.section is None or not may_differ or not (first[self.section] and second[self.section]):
            return False
        return self._shared(first[self.section]) == self._shared(second[self.section])

    def _shared(self, section: dict[str, Any]) -> dict[str, Any]:
        values = section.get("stated", section)
        return {key: value for key, value in values.items() if key not in (*self.consequences, self.key, "loss")}


CONDITIONS = {
    "budgets in clips": Condition(None, "clips"),
    "held-out protocols": Condition("held_out", "hash", ("model.diffusion",), ("objective", "objective_settings")),
    "distance protocols": Condition(
        "distance", "protocol_hash", ("model.diffusion", "model.sampling"), ("sampler", "steps", "eta")
    ),
}


@dataclass
class Comparison:
    """The results of a study at a scale.

    Attributes:
        study: The study.
        scale: Name of the scale.
        baseline: The row that the others are compared with.
        trials: The trials of all rows, finished or not.
        results: Results of the finished trials, by row and seed.
        errors: Errors of the failed trials, by row and seed.
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
            study: The study.
            scale: Name of the scale.
            root: Folder of all trials.
            seeds: Seeds that replace those of the scale.

        Raises:
            ValueError: Results have different budgets or protocols, or lie in the folder of another trial.
        """
        arms = [trial for trial in load_plan(study, scale, Path(root), seeds) if trial.arm]
        results: dict[str, dict[int, dict[str, Any]]] = {trial.row: {} for trial in arms}
        errors: dict[str, dict[int, str]] = {trial.row: {} for trial in arms}
        for trial in arms:
            if trial.result.is_file():
                result = read_json(trial.result)
                if result["hash"] != trial.hash:
                    raise ValueError(f"{trial.result} is the result of trial {result['hash']}; move it back")
                results[trial.row][trial.seed] = result
            elif state_of(trial) == "FAILED":
                errors[trial.row][trial.seed] = last_error(trial)
        comparison = cls(study, scale, study.baseline_at(scale), arms, results, errors)
        comparison.check_conditions()
        return comparison

    def check_conditions(self) -> None:
        """Check that all results may share a table.

        Rows may choose their objective and sampler; all else that a number depends on must agree.

        Raises:
            ValueError: Two results differ in budget, held-out protocol or distance protocol.
        """
        for first, second in itertools.combinations(self.all_results(), 2):
            for name, condition in CONDITIONS.items():
                if not condition.holds(first, second):
                    values = "; ".join(
                        f"{result['row']}, seed {result['seed']}: {condition.value(result)}"
                        for result in (first, second)
                    )
                    raise ValueError(
                        f"{self.study.name}: results with different {name} cannot share a table ({values})"
                    )

    def all_results(self) -> list[dict[str, Any]]:
        """Return all results, row by row."""
        return [result for row in self.results.values() for result in row.values()]

    def has_pairs(self) -> bool:
        """Return whether there is something to compare: finished trials of the baseline and of another row."""
        others = any(results for row, results in self.results.items() if row != self.baseline)
        return bool(self.results[self.baseline]) and (others or len(self.results) == 1)

    def baseline_hashes(self) -> set[str]:
        """Return the names of the finished trials of the baseline."""
        return {result["hash"] for result in self.results[self.baseline].values()}

    def samples(self, row: str, seed: int) -> Path | None:
        """Return the newest GIF of a trial's samples; None if there is none."""
        folder = next(trial.path for trial in self.trials if (trial.row, trial.seed) == (row, seed))
        found = sorted((folder / "samples").glob("step=*.gif"))
        return found[-1] if found else None

    # -------------------------------------------------------------------------------------------------- measures

    def measures(self) -> list[Measure]:
        """Return the measures that any result has."""
        return [measure for measure in MEASURES.values() if measure.measured(self.all_results())]

    def values(self, row: str, value: Value) -> dict[int, float]:
        """Return the values of a row by seed, for the seeds that have one.

        Args:
            row: The row.
            value: Function of a result, such as ``LOSS.value`` or ``LOSS.at(step)``.
        """
        values = {seed: value(result) for seed, result in self.results[row].items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, row: str, value: Value) -> Estimate | None:
        """Return the mean over the seeds of a row."""
        return estimate(list(self.values(row, value).values()))

    def other_objective(self, row: str, than: str = "") -> str | None:
        """Return the objective of a row if its loss is not comparable with that of another row.

        Args:
            row: The row.
            than: The other row. Empty for the baseline.
        """
        names = (row, than or self.baseline)
        own, other = (next((r["held_out"] for r in self.results[name].values()), None) for name in names)
        return None if own is None or other is None or own["hash"] == other["hash"] else own.get("objective")

    def comparable(self, measure: Measure, row: str, than: str = "") -> bool:
        """Return whether a measure of two rows can be compared: losses of different objectives cannot."""
        return measure is not LOSS or self.other_objective(row, than) is None

    def difference(self, row: str, value: Value, than: str = "") -> Estimate | None:
        """Return the mean difference of a row to another row, paired by seed.

        Args:
            row: The row.
            value: Function of a result.
            than: The other row. Empty for the baseline.
        """
        return paired(self.values(row, value), self.values(than or self.baseline, value))

    def pairing_gain(self, measure: Measure) -> list[float]:
        """Return, for each row but the baseline, the width of the unpaired interval over that of the paired one."""
        gains = []
        for row in self.results:
            if row == self.baseline or not self.comparable(measure, row):
                continue
            ours = self.difference(row, measure.value)
            other = unpaired(*(list(self.values(name, measure.value).values()) for name in (row, self.baseline)))
            if ours and ours.half and other and other.half:
                gains.append(other.half / ours.half)
        return gains

    # ----------------------------------------------------------------------------------------------- equal FLOPs

    def cheapest(self) -> float | None:
        """Return the training FLOPs of the cheapest row; None if all rows cost the same within 1 %."""
        flops = [result["cost"]["training_flops"] for result in self.all_results()]
        return min(flops) if flops and max(flops) > 1.01 * min(flops) else None

    def equal_flops_step(self, row: str) -> int | None:
        """Return the step at which the training of a row has cost as much as that of the cheapest row.

        Returns:
            The nearest whole step; None if all rows cost the same, or the row has no result.
        """
        result = next(iter(self.results[row].values()), None)
        return None if result is None or self.cheapest() is None else self._equal_flops_step(result)

    def _equal_flops_step(self, result: dict[str, Any]) -> int:
        cheapest = self.cheapest()
        assert cheapest is not None
        return step_at(flops_share(result["cost"]["training_flops"], cheapest), result["steps"])

    def loss_at_equal_flops(self, result: dict[str, Any]) -> float | None:
        """Return the held-out loss at the step of equal FLOPs; None if it was not measured exactly there.

        There must be a cheapest row.
        """
        step = self._equal_flops_step(result)
        return LOSS.value(result) if step == result["steps"] else LOSS.at(step)(result)

    # ------------------------------------------------------------------------------------ what the rows of a seed share

    def shared_start(self, row: str) -> float | None:
        """Return the share of the random initial values of a row that equal those of the baseline, mean over seeds.

        A parameter is shared if both models have one of the same name, shape and values. Constant parameters, such as
        zero biases, do not count. None if it was not recorded.
        """
        shares = []
        for seed, result in self.results[row].items():
            base = self.results[self.baseline].get(seed, {}).get("initial")
            if base is not None and (own := result.get("initial")):
                shares.append(sum(size for key, size in own.items() if key in base) / sum(own.values()))
        return statistics.mean(shares) if shares else None

    # ---------------------------------------------------------------------------------------------------- claims

    def untrained(self) -> str:
        """Return why the models of this study have not learnt their task yet; empty if they have.

        The scale says what a trained model is. Every finished seed of the baseline must meet this condition.
        """
        condition = self.study.at(self.scale)[0].trained
        if condition is None:
            return ""
        measure = MEASURES[condition.measure]
        values = {seed: measure.value(result) for seed, result in sorted(self.results[self.baseline].items())}
        if values and all(condition.met_by(value) for value in values.values()):
            return ""
        found = ", ".join(
            f"{'not measured' if value is None else measure.shown(value)} (seed {seed})"
            for seed, value in values.items()
        )
        return f"{self.baseline} must have a {condition} with every seed, but has {found or 'no result'}"

    def claims(self) -> list[Claim]:
        """Return the claims about rows of this scale."""
        return [c for c in self.study.claims if c.row in self.results and (c.than or c.row) in self.results]

    def tests(self, claim: Claim) -> list["ClaimTest"]:
        """Return a test of a claim for every measure: at the end of training, or at the early point of the claim.

        Measures without a curve at an early point are left out, except for the held-out loss.
        """
        step = step_at(claim.at, next((result["steps"] for result in self.all_results()), 0))
        tests = []
        for measure in self.measures():
            early = measure.at(step)
            if claim.at == 1.0:
                tests.append(self._test(claim, measure, measure.value))
            elif measure is LOSS or any(early(result) is not None for result in self.all_results()):
                tests.append(self._test(claim, measure, early, step))
        return tests

    def _test(self, claim: Claim, measure: Measure, value: Value, step: int = 0) -> "ClaimTest":
        """Test a claim by a measure.

        Args:
            claim: The claim.
            measure: The measure.
            value: The value of a result at the end of training, or at an early step.
            step: The early step, which "narrows" compares with the last one; 0 for the end.
        """
        other = claim.than or self.baseline
        if not self.comparable(measure, claim.row, claim.than):
            why = f"the loss of {self.other_objective(claim.row, claim.than)} is not comparable"
            return ClaimTest(claim, measure, why=why)
        sides = [self.values(row, value) for row in (claim.row, other)]
        if claim.side == "narrows":
            sides += [self.values(row, lambda r: measure.at(r["steps"])(r)) for row in (claim.row, other)]
        seeds = sorted(set.intersection(*(set(side) for side in sides)))
        if not seeds:
            finished = all(self.results[row] for row in (claim.row, other))
            why = f"not measured at step {step}" if step and finished else "no pair of finished trials"
            return ClaimTest(claim, measure, why=why)
        found, *late = [differences(sides[n], sides[n + 1], seeds) for n in range(0, len(sides), 2)]
        if late:
            found, p = narrowing(found, late[0])
            sign = 1.0
        else:
            p = p_value(found)
            sign = 1.0 if (claim.side == "better") == measure.higher_is_better else -1.0
        difference = estimate(found)
        assert difference is not None
        pairs = [[self.results[row][seed]["hash"] for row in (claim.row, other)] for seed in seeds]
        key = json.dumps([measure.key, step, bool(late), pairs])
        return ClaimTest(claim, measure, difference, p, detectable(found), sign * difference.mean > 0.0, key)

    # ----------------------------------------------------------------------------------------------------- table

    def devices(self) -> list[str]:
        """Return the devices that the trials ran on, with their number of CPU threads."""
        costs = [result["cost"] for result in self.all_results()]
        return sorted({f"{cost['device']}, {cost['threads']} thread(s)" for cost in costs})

    def table(self) -> "pd.DataFrame":
        """Return one line per row: means, half widths of 95 % intervals, paired differences, costs."""
        import pandas as pd

        columns: dict[str, tuple[Measure, Value]] = {m.key: (m, m.value) for m in self.measures()}
        if self.cheapest() is not None:
            columns["loss_at_equal_flops"] = (LOSS, self.loss_at_equal_flops)
        lines = []
        for row, results in self.results.items():
            failed = self.errors[row]
            line: dict[str, Any] = {
                "row": row,
                "baseline": row == self.baseline,
                "other_objective": self.other_objective(row) or "",
                "seeds": len(results),
                "failed": len(failed),
                "missing": sum(trial.row == row for trial in self.trials) - len(results) - len(failed),
                "error": "; ".join(sorted(set(failed.values()))),
            }
            for name, (measure, value) in columns.items():
                compared = row != self.baseline and self.comparable(measure, row)
                line |= _columns(name, self.mean(row, value))
                line |= _columns(f"{name}_diff", self.difference(row, value) if compared else None)
            line["equal_flops_step"] = self.equal_flops_step(row)
            line["shared_start"] = None if row == self.baseline else self.shared_start(row)
            for name in COSTS:
                costs = [result["cost"].get(name) for result in results.values()]
                if name in COSTS_OF_DEVICE and len(self.devices()) > 1:
                    costs = []
                known = [cost for cost in costs if cost is not None]
                line[name] = statistics.median(known) if known else None
            lines.append(line)
        return pd.DataFrame(lines)


@dataclass(frozen=True)
class ClaimTest:
    """A test of a claim by one measure.

    Attributes:
        claim: The claim.
        measure: The measure.
        difference: Difference of the row to the other row, paired by seed. For "narrows": the absolute early difference
            minus the absolute late one. None if it was not measured.
        p: p-value of the hypothesis that the difference is 0; None for fewer than two seeds.
        detectable: Smallest difference that these seeds would have found with a probability of 80 %, by their spread.
        favours: Whether the difference has the sign that the claim says.
        key: Names the hypothesis: claims of several studies about the same trials have the same test.
        why: Why it was not measured.
    """

    claim: Claim
    measure: Measure
    difference: Estimate | None = None
    p: float | None = None
    detectable: float | None = None
    favours: bool = False
    key: str = ""
    why: str = ""


def _columns(name: str, value: Estimate | None) -> dict[str, float | None]:
    return {name: value and value.mean, f"{name}_half": value and value.half, f"{name}_n": value and value.n}
