"""What the numbers of a study depend on, in sentences: seeds, tests, protocols, commit, hardware, command."""

import math
from typing import Any

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.measures import MEASURES
from latte_pl.ablation.verdicts import Suite, answers


def notes(comparison: Comparison, suite: Suite | None = None) -> list[str]:
    """Return what the numbers of a study mean and depend on, as paragraphs of Markdown.

    Args:
        comparison: The results of the study.
        suite: The studies that it belongs to.
    """
    paragraphs = [
        _means(comparison),
        _shared(comparison),
        _trained(comparison),
        _tests(comparison, suite),
        _baseline(comparison, suite),
        _equal_flops(comparison),
        _measurement(comparison),
        _pairing(comparison),
        _made(comparison),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def _means(comparison: Comparison) -> str:
    better = [f"{measure.name} ({_better(measure)})" for measure in comparison.measures()]
    return (
        "Means over seeds with 95 % confidence intervals (Student's t). Differences Δ to the baseline are paired by "
        f"seed. Measures: {', '.join(better)}."
    )


def _better(measure: Any) -> str:
    return f"{'higher' if measure.higher_is_better else 'lower'} is better"


def _shared(comparison: Comparison) -> str:
    shares = {row: comparison.shared_start(row) for row in comparison.results if row != comparison.baseline}
    stated = [f"{row} {share:.0%}" for row, share in shares.items() if share is not None]
    start = f" Share of a row's random initial values that equal the baseline's: {', '.join(stated)}." if stated else ""
    return (
        "What the rows of a seed share: the order of clips, timesteps and noise are functions of seed and clip alone; "
        f"an initial parameter is shared by rows in which it has the same name and shape.{start}"
    )


def _trained(comparison: Comparison) -> str:
    condition = comparison.study.at(comparison.scale)[0].trained
    if condition is None:
        return (
            "This scale does not say when a model is trained, so verdicts may be about models that have not learnt "
            "their task."
        )
    return f"Claims have verdicts if every seed of the baseline is trained: {condition}."


def _tests(comparison: Comparison, suite: Suite | None) -> str:
    found = [answer for part in answers(comparison, suite) for answer in part if answer.p_page is not None]
    if not found:
        return ""
    page = len({answer.test.key for answer in found})
    text = (
        "Tests: p is that of a two-sided paired t-test over the seeds, without correction. p (page) is corrected for "
        f"the {page} tests of this page by Holm's method, which also holds for tests that depend on each other. A "
        "verdict needs p (page) < 0.05. "
    )
    if suite is not None and len(suite.comparisons) > 1:
        text += (
            f"p (suite) is corrected for the {len(suite.p_values)} tests of {len(suite.comparisons)} studies at this "
            "scale. "
        )
    text += (
        "Detectable is the smallest difference that a test of so many seeds with this spread finds with a probability "
        "of 80 %, before the correction."
    )
    if any(answer.test.claim.side == "narrows" for answer in found):
        text += (
            " A claim that a difference narrows is tested on signed mean differences: shown is the absolute early "
            "difference minus the absolute late one, and p is the larger one of the tests of early - late and early + "
            "late."
        )
    return text


def _baseline(comparison: Comparison, suite: Suite | None) -> str:
    others = suite.sharing_baseline(comparison) if suite is not None else []
    if not others:
        return ""
    return (
        f"{len(others)} other {'studies compare' if len(others) > 1 else 'study compares'} with the same trials of the "
        "baseline. If the baseline happens to be good or bad with these seeds, the verdicts of all of them move "
        "together. More rows do not help against this; more seeds do."
    )


def _equal_flops(comparison: Comparison) -> str:
    steps = {row: comparison.equal_flops_step(row) for row in comparison.results}
    stated = [f"{row} {step:,}" for row, step in steps.items() if step is not None]
    if not stated:
        return ""
    decays = any(trial.config["model"].get("lr_schedule", "constant") != "constant" for trial in comparison.trials)
    return (
        "Equal FLOPs: each row at the step (the nearest whole one) at which its training has cost as much as the whole "
        f"training of the cheapest row: {', '.join(stated)}. Values are measured exactly there, not interpolated."
        + (" The learning rate falls late in a training, which a row measured before has not had." if decays else "")
    )


def _measurement(comparison: Comparison) -> str:
    results = comparison.all_results()
    first = next(iter(comparison.results[comparison.baseline].values()), results[0])
    seeds = sorted({result["seed"] for result in results})
    about = [
        f"Scale {comparison.scale}: {first['clips']:,} clips per row, seeds {', '.join(map(str, seeds))}.",
        _held_out(first["held_out"]),
    ]
    if first["distance"]:
        about.append(_distance(first["distance"]))
    if motion := first.get("motion"):
        about.append(
            f"Motion accuracy: share of the same {motion['clips']} samples that move as labelled, by a tracker (chance "
            f"{motion['chance']:.1%})."
        )
    if any(comparison.other_objective(row) for row in comparison.results):
        about.append(
            "The loss of a row with another objective, which is named beside it, is not comparable; the other measures "
            "are."
        )
    for row, own in comparison.results.items():
        about += _differences(row, list(own.values()), first)
    return " ".join(about)


def _pairing(comparison: Comparison) -> str:
    gains = [
        f"{math.exp(sum(map(math.log, values)) / len(values)):.2f} for the {measure.name}"
        for measure in MEASURES.values()
        if (values := comparison.pairing_gain(measure))
    ]
    if not gains:
        return ""
    return (
        f"Width of the unpaired interval over that of the paired one: {', '.join(gains)} (geometric mean over rows; "
        "pairing helps if it is above 1)."
    )


def _made(comparison: Comparison) -> str:
    commits = sorted({_short(result["git_commit"]) for result in comparison.all_results()})
    devices = comparison.devices()
    mixed = " Clips/s and peak memory are left out, because the trials ran on different devices."
    return (
        f"Commit {', '.join(commits)}; {'; '.join(devices)}; `latte-ablate run {comparison.study.name} --scale "
        f"{comparison.scale}`.{mixed if len(devices) > 1 else ''}"
    )


def _held_out(held_out: dict[str, Any]) -> str:
    return (
        f"Held-out loss: {held_out['clips']} clips of {held_out['data']} at interval {held_out['interval']}, "
        f"{held_out['objective']}, EMA weights, fixed timesteps and noise (protocol {held_out['hash'][:12]})."
    )


def _distance(measured: dict[str, Any]) -> str:
    stated = measured["stated"]
    return (
        f"Video distance: {measured['metric'].replace('_', ' ')} of {stated['num_generated']} samples "
        f"({stated['sampler']}, {stated['steps']} steps, guidance {stated['guidance']:g}), protocol "
        f"{measured['protocol']} ({measured['protocol_hash'][:12]})."
    )


def _differences(row: str, results: list[dict[str, Any]], first: dict[str, Any]) -> list[str]:
    """Return what differs in the measurement of a row: its sampler, and the choice of an EMA length."""
    lines = []
    stated = next((result["distance"]["stated"] for result in results if result["distance"]), None)
    base = first["distance"] and first["distance"]["stated"]
    if stated and base and any(stated.get(key) != base.get(key) for key in ("sampler", "steps", "eta")):
        lines.append(f"{row}: samples of {stated['sampler']}, {stated['steps']} steps.")
    averages = [result["post_hoc_ema"] for result in results if "post_hoc_ema" in result]
    if averages:
        chosen = ", ".join(str(average["best"]) for average in averages)
        ema = sum(average["ema"] for average in averages) / len(averages)
        lines.append(
            f"{row}: EMA lengths (sigma_rel) {chosen}, chosen by the held-out loss that is shown (EMA of the training: "
            f"{ema:.4f})."
        )
    return lines


def _short(commit: str) -> str:
    """Return the first digits of a commit, and whether files had been changed."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "") or "unknown"
