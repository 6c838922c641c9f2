"""Tables and pages of a study: Markdown, CSV, LaTeX, HTML, and curves for TensorBoard."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from latte_pl.ablation.comparison import DISTANCE, LOSS, Comparison
from latte_pl.ablation.page import page
from latte_pl.ablation.statistics import Estimate
from latte_pl.ablation.study import Study
from latte_pl.metrics.record import write_atomically

STATUS = {
    "quoted": "quoted",
    "issue": "from the official repository's issues",
    "code": "from the official code",
    "recalled": "unverified",
    "ours": "a question of this repository",
}
TITLES = {
    "row": "row",
    "seeds": "seeds",
    "loss": "held-out loss",
    "loss_diff": "Δ loss",
    "loss_equal_flops_diff": "Δ loss at equal FLOPs",
    "distance": "video distance",
    "distance_diff": "Δ distance",
    "parameters": "parameters",
    "forward_flops": "GFLOP a clip",
    "clips_per_second": "clips/s",
    "peak_memory": "peak memory",
    "paper": "paper",
}


def write(study: Study, scale: str, root: Path, output: Path, seeds: list[int] | None = None) -> bool:
    """Write a study's tables and page, print the table, and say where they are.

    Args:
        study: What was asked.
        scale: Name of the scale.
        root: Folder of all trials.
        output: Folder for the files.
        seeds: In place of the scale's.

    Returns:
        Whether every trial is finished.

    Raises:
        ValueError: Nothing is finished yet, or the results must not stand in one table.
    """
    comparison = Comparison.load(study, scale, root, seeds)
    if not comparison.all_results():
        raise ValueError(f"{study.name} has no results at scale {scale}; run `latte-ablate run {study.name}` first")
    text = markdown(comparison)
    stem = output / study.name
    write_atomically(stem.with_suffix(".md"), text)
    write_atomically(stem.with_suffix(".csv"), comparison.table().to_csv(index=False))
    write_atomically(stem.with_suffix(".tex"), latex(comparison))
    write_atomically(stem.with_suffix(".html"), page(comparison, shown_table(comparison), verdict_lines(comparison)))
    from latte_pl.ablation.curves import write_curves  # tensorboard's writer takes seconds to import

    logs = output / "tensorboard" / study.name
    write_curves(comparison, logs)
    print(f"{text}\npage    {stem.with_suffix('.html')}\ncurves  tensorboard --logdir {logs}\n")
    table = comparison.table()
    return not (table["failed"].any() or table["missing"].any())


def shown_table(comparison: Comparison) -> pd.DataFrame:
    """Return the table as it is read: text cells, only columns that say something; a failed cell says FAILED."""
    table = comparison.table()
    rows = []
    for _, line in table.iterrows():
        counted = [f"{line['seeds']}"]
        if line["failed"]:
            counted.append(f"{line['failed']} FAILED: {line['error']}")
        if line["missing"]:
            counted.append(f"{line['missing']} not run")
        row: dict[str, str] = {"row": line["row"] + (" (baseline)" if line["baseline"] else "")}
        row["seeds"] = ", ".join(counted)
        for name, digits in (("loss", 4), ("loss_diff", 4), ("loss_equal_flops_diff", 4)):
            if name in table and not table[name].isna().all():
                row[name] = _value(line, name, digits)
        if line["other_objective"]:
            row["loss"] += f" ({line['other_objective']})"
        for name in ("distance", "distance_diff"):
            if not table[name].isna().all():
                row[name] = _value(line, name, 1)
        none = "FAILED" if line["failed"] and not line["seeds"] else "-"
        costs = {
            "parameters": (1e6, "{:.2f} M"),
            "forward_flops": (1e9, "{:.3f}"),
            "clips_per_second": (1.0, "{:.3g}"),
            "peak_memory": (2**20, "{:.0f} MiB"),
        }
        for name, (unit, form) in costs.items():
            row[name] = none if _missing(line[name]) else form.format(line[name] / unit)
        if (table["paper"] != "").any():
            row["paper"] = line["paper"] or "-"
        rows.append(row)
    return pd.DataFrame(rows)


def cells(shown: pd.DataFrame) -> list[list[str]]:
    """Return the lines of a table as lists of text."""
    return [[str(cell) for cell in row] for row in shown.itertuples(index=False)]


def verdict_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what each measure says about each claim, as (claim, answer)."""
    lines = []
    for claim in comparison.claims():
        answers = []
        for measure, (difference, verdict) in comparison.decide(claim).items():
            digits, other = (4, comparison.other_objective(claim.row, claim.than)) if measure == LOSS else (1, None)
            why = f"the loss of {other} is of another kind" if other else "no pair of finished trials"
            answers.append(f"{measure}: **{verdict}** ({_signed(difference, digits) or why})")
        when = f" after {claim.at:.0%} of training" if claim.at < 1.0 else ""
        about = f"{claim.row}{f' against {claim.than}' if claim.than else ''}: {claim.text or claim.side}"
        lines.append(
            (
                f"{about}{when if claim.side != 'narrows' else f' (from {claim.at:.0%} of training to its end)'}",
                "; ".join(answers),
            )
        )
    return lines


def markdown(comparison: Comparison) -> str:
    """Return the study as Markdown: question, table, verdicts, and what the numbers depend on."""
    study = comparison.study
    shown = shown_table(comparison)
    lines = [
        f"# {study.name.replace('_', ' ').capitalize()}",
        "",
        study.question,
        "",
        f"The paper: {study.conclusion} ({STATUS[study.status]}).",
        "",
        "| " + " | ".join(TITLES[str(name)] for name in shown) + " |",
        "|" + "---|" * len(shown.columns),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells(shown)),
        "",
        *(f"- {claim}. {answer}" for claim, answer in verdict_lines(comparison)),
        "",
        *origin(comparison),
    ]
    return "\n".join(lines) + "\n"


def origin(comparison: Comparison) -> list[str]:
    """Return what the numbers depend on: budget, protocols, commit, hardware, command."""
    results = comparison.all_results()
    first = next(iter(comparison.results[comparison.baseline].values()), results[0])
    held_out = first["held_out"]
    commits = sorted({_short(result["git_commit"]) for result in results})
    devices = sorted({f"{result['cost']['device']}, {result['cost']['threads']} thread(s)" for result in results})
    seeds = sorted({result["seed"] for result in results})
    lines = [
        "Means over seeds with 95 % intervals (Student's t); differences Δ to the baseline are paired by seed, since "
        "the arms of a seed share initial weights, data order, timesteps and noise. Lower is better.",
        "",
        f"Scale {comparison.scale}: {first['clips']:,} clips a row, seeds {', '.join(map(str, seeds))}. Held-out loss: "
        f"{held_out['clips']} clips of {held_out['data']} at interval {held_out['interval']}, {held_out['objective']}, "
        f"averaged weights, fixed timesteps and noise (protocol {held_out['hash'][:12]}).",
    ]
    if first["distance"]:
        measured = first["distance"]
        stated = measured["stated"]
        lines[-1] += (
            f" Video distance: {measured['metric'].replace('_', ' ')} of {stated['num_generated']} samples "
            f"({stated['sampler']}, {stated['steps']} steps, guidance {stated['guidance']:g}), protocol "
            f"{measured['protocol']} ({measured['protocol_hash'][:12]})."
        )
    if any(comparison.other_objective(row) for row in comparison.results):
        lines[-1] += (
            " The loss of a row with another objective, named beside it, is of another kind: the distance alone "
            "compares it."
        )
    for row, own in comparison.results.items():
        stated = next((result["distance"]["stated"] for result in own.values() if result["distance"]), None)
        base = first["distance"] and first["distance"]["stated"]
        if stated and base and any(stated.get(key) != base.get(key) for key in ("sampler", "steps", "eta")):
            lines[-1] += f" {row}: samples of {stated['sampler']}, {stated['steps']} steps."
        averages = [result["average"] for result in own.values() if "average" in result]
        if averages:
            lengths = ", ".join(str(average["best"]) for average in averages)
            plain = sum(average["ema"] for average in averages) / len(averages)
            lines[-1] += (
                f" {row}: lengths of the average {lengths}, chosen by the held-out loss that is shown (without the "
                f"choice {plain:.4f})."
            )
    gains = {measure: comparison.pairing_gain(measure) for measure in (LOSS, DISTANCE)}
    told = [
        f"{math.exp(sum(map(math.log, values)) / len(values)):.2f} for the {name}"
        for name, values in gains.items()
        if values
    ]
    if told:
        lines.append(
            f"Width of the interval of unpaired runs over that of the paired ones: {', '.join(told)} (geometric mean "
            "over rows; above 1 pairing narrows)."
        )
    lines.append(
        f"Commit {', '.join(commits)}; {'; '.join(devices)}; `latte-ablate run {comparison.study.name} --scale "
        f"{comparison.scale}`."
    )
    return lines


def _short(commit: str) -> str:
    """Return the first digits of a commit, and whether files were changed."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "") or "unknown"


def latex(comparison: Comparison) -> str:
    """Return the table as LaTeX (booktabs)."""
    shown = shown_table(comparison).rename(columns=TITLES)
    body = [r" & ".join(_escape(cell) for cell in row) + r" \\" for row in cells(shown)]
    head = r" & ".join(_escape(str(name)) for name in shown.columns) + r" \\"
    return "\n".join(
        [
            f"% {' '.join(comparison.study.question.split())}",
            r"\begin{tabular}{l" + "r" * (len(shown.columns) - 1) + "}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _escape(text: str) -> str:
    names = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
    }
    return "".join(names.get(sign, f"\\{sign}" if sign in "&%_#${}" else sign) for sign in text)


def _value(line: Any, name: str, digits: int) -> str:
    value, half = line[name], line[f"{name}_half"]
    if _missing(value):
        return "FAILED" if line["failed"] and not line["seeds"] else "-"
    sign = "+" if name.endswith("diff") else ""
    spread = "" if _missing(half) else f" ± {half:.{digits}f}"
    fewer = f" (n = {int(line[f'{name}_n'])})" if sign and line[f"{name}_n"] < line["seeds"] else ""
    return f"{value:{sign}.{digits}f}{spread}{fewer}"


def _signed(difference: Estimate | None, digits: int) -> str:
    if difference is None:
        return ""
    spread = f" ± {difference.half:.{digits}f}" if difference.half is not None else ", one seed"
    return f"{difference.mean:+.{digits}f}{spread}, n = {difference.n}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
