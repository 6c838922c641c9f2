"""A study as text: the table of its rows, the verdicts on its claims, Markdown and LaTeX."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.measures import LOSS, Measure
from latte_pl.ablation.notes import notes
from latte_pl.ablation.study import Claim, Study
from latte_pl.ablation.verdicts import Answer, Overall, Suite, answers, overall

STATUS = {
    "quoted": "quoted",
    "issue": "from the official repository's issues",
    "code": "from the official code",
    "recalled": "unverified",
    "ours": "a question of this repository",
}
COSTS = {
    "shared_start": ("same start", 0.01, "{:.0f} %"),
    "parameters": ("parameters", 1e6, "{:.2f} M"),
    "forward_flops": ("GFLOP per clip", 1e9, "{:.3f}"),
    "clips_per_second": ("clips/s", 1.0, "{:.3g}"),
    "peak_memory": ("peak memory", 2**20, "{:.0f} MiB"),
}
"""Further columns of the table of rows: title, unit and format."""
COUNTS: dict[Overall, tuple[str, str]] = {
    "agrees": ("agrees", "agree"),
    "disagrees": ("disagrees", "disagree"),
    "mixed": ("has measures that contradict each other", "have measures that contradict each other"),
    "undecided": ("is undecided", "are undecided"),
    "too early to say": ("is too early to say", "are too early to say"),
    "not measured": ("was not measured", "were not measured"),
}
"""Verdicts in a sentence about one claim, and about several."""


PUBLISHED = "Published values, of other models, data and trainings than those above:"


def title(name: str) -> str:
    """Return the title of a study from its name."""
    return name.replace("_", " ").capitalize()


# ------------------------------------------------------------------------------------------------------------- rows


def shown_rows(comparison: Comparison) -> list[dict[str, str]]:
    """Return the table of rows as text cells under their titles, without empty columns. A failed cell says FAILED."""
    table = comparison.table()
    rows = []
    for _, line in table.iterrows():
        row = {"row": line["row"] + (" (baseline)" if line["baseline"] else ""), "seeds": _seeds(line)}
        for measure in comparison.measures():
            row[measure.name] = _value(line, measure.key, measure)
            if measure is LOSS and line["other_objective"]:
                row[measure.name] += f" ({line['other_objective']})"
            if not table[f"{measure.key}_diff"].isna().all():
                row[f"Δ {measure.short}"] = _difference(line, measure.key, measure)
            if measure is LOSS and comparison.cheapest() is not None:
                row["Δ loss at equal FLOPs"] = _at_equal_flops(line, comparison)
        for name, (label, unit, form) in COSTS.items():
            if not table[name].isna().all():
                row[label] = _empty(line) if pd.isna(line[name]) else form.format(line[name] / unit)
        rows.append(row)
    return rows


def published_rows(study: Study) -> list[dict[str, str]]:
    """Return what others published about the systems of a study, one line per value, as text cells under their titles.

    Raises:
        ValueError: There is no published value of a system.
    """
    from latte_pl.metrics import paper_values

    rows = []
    for row, system in study.published.items():
        found = [value for value in paper_values() if value.system == system]
        if not found:
            raise ValueError(f"study {study.name}: there are no published values of {system}")
        rows += [
            {"row": row, "data": value.dataset or "-", "metric": value.metric.replace("_", ", "), "value": value.text()}
            for value in found
        ]
    return rows


def _seeds(line: Any) -> str:
    parts = [f"{line['seeds']}"]
    if line["failed"]:
        parts.append(f"{line['failed']} FAILED: {line['error']}")
    if line["missing"]:
        parts.append(f"{line['missing']} not run")
    return ", ".join(parts)


def _value(line: Any, name: str, measure: Measure) -> str:
    return _empty(line) if pd.isna(line[name]) else measure.shown(line[name], _half(line, name))


def _difference(line: Any, name: str, measure: Measure) -> str:
    name = f"{name}_diff"
    if pd.isna(line[name]):
        return _empty(line)
    fewer = f" (n = {int(line[f'{name}_n'])})" if line[f"{name}_n"] < line["seeds"] else ""
    return measure.shown_difference(line[name], _half(line, name)) + fewer


def _at_equal_flops(line: Any, comparison: Comparison) -> str:
    """Return the difference at equal FLOPs, or which row was not measured at its step."""
    if line["baseline"] or line["other_objective"] or not pd.isna(line["loss_at_equal_flops_diff"]):
        return _difference(line, "loss_at_equal_flops", LOSS)
    for row, name in ((line["row"], ""), (comparison.baseline, "baseline ")):
        if comparison.results[row] and not comparison.values(row, comparison.loss_at_equal_flops):
            return f"{name}not measured (step {comparison.equal_flops_step(row)})"
    return _empty(line)


def _half(line: Any, name: str) -> float | None:
    return None if pd.isna(line[f"{name}_half"]) else line[f"{name}_half"]


def _empty(line: Any) -> str:
    return "FAILED" if line["failed"] and not line["seeds"] else "-"


# ----------------------------------------------------------------------------------------------------------- verdicts


def claim_text(claim: Claim) -> str:
    """Return a claim in words."""
    text = f"{claim.row}{f' against {claim.than}' if claim.than else ''}: {claim.text or claim.side}"
    if claim.side == "narrows":
        return f"{text} (from {claim.at:.0%} of training to its end)"
    return f"{text} after {claim.at:.0%} of training" if claim.at < 1.0 else text


def answer_cells(answer: Answer, suite: Suite | None) -> dict[str, str]:
    """Return an answer as text cells under their titles.

    Args:
        answer: The answer.
        suite: The suite that its p-values are corrected for; without other studies, the column is left out.
    """
    test = answer.test
    cells = {"measure": test.measure.name, "difference": test.why, "p": "-", "p (page)": "-", "p (suite)": "-"}
    cells["detectable"] = "-"
    if test.difference is not None:
        half, n = test.difference.half, test.difference.n
        alone = " (one seed)" if half is None else f" (n = {n})"
        cells["difference"] = test.measure.shown_difference(test.difference.mean, half) + alone
        cells |= {"p": _p(test.p), "p (page)": _p(answer.p_page), "p (suite)": _p(answer.p_suite)}
        if test.detectable is not None:
            cells["detectable"] = test.measure.shown_difference(test.detectable).lstrip("+")
    if suite is None or len(suite.comparisons) < 2:
        del cells["p (suite)"]
    return cells | {"verdict": answer.verdict}


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict_rows(comparison: Comparison, suite: Suite | None = None) -> list[dict[str, str]]:
    """Return the verdicts on all claims as rows of text cells, one for each claim and measure."""
    rows = []
    for part in answers(comparison, suite):
        for answer in part:
            cells = answer_cells(answer, suite)
            rows.append({"claim": claim_text(answer.test.claim)} | cells | {"verdict": f"**{cells['verdict']}**"})
    return rows


def conclusion(comparison: Comparison, suite: Suite | None = None) -> str:
    """Return one sentence: how many claims agree, disagree or are undecided, or why it is too early to say."""
    if reason := comparison.untrained():
        return f"Too early to say: {reason}."
    found = [overall([answer.verdict for answer in part]) for part in answers(comparison, suite)]
    if not found:
        return "No claim is about the rows of this scale."
    return f"Of {len(found)} claim{'s' if len(found) > 1 else ''}, {counts(found)}."


def counts(verdicts: Sequence[Overall]) -> str:
    """Return how often each verdict was given, as part of a sentence about claims."""
    numbers = {verdict: verdicts.count(verdict) for verdict in COUNTS if verdict in verdicts}
    return ", ".join(f"{number} {COUNTS[verdict][number > 1]}" for verdict, number in numbers.items())


# ---------------------------------------------------------------------------------------------------------- documents


def markdown_table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Return rows of text cells as lines of a Markdown table."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
    return [head, "|" + "---|" * len(rows[0]), *body]


def markdown(comparison: Comparison, suite: Suite | None = None) -> str:
    """Return a study as Markdown: question, conclusion, table, verdicts, and what the numbers depend on."""
    study = comparison.study
    verdicts = verdict_rows(comparison, suite)
    lines = [
        f"# {title(study.name)}",
        "",
        study.question,
        "",
        f"The paper: {study.conclusion} ({STATUS[study.status]}).",
        "",
        f"Here: {conclusion(comparison, suite)}",
        "",
        *markdown_table(shown_rows(comparison)),
        "",
        *([*markdown_table(verdicts), ""] if verdicts else []),
        "\n\n".join(notes(comparison, suite)),
        *(["", PUBLISHED, "", *markdown_table(published)] if (published := published_rows(study)) else []),
    ]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    """Return the table of rows as LaTeX (booktabs)."""
    table = pd.DataFrame(shown_rows(comparison))
    text = table.to_latex(index=False, escape=True, column_format="l" + "r" * (len(table.columns) - 1))
    text = text.replace("±", r"$\pm$").replace("Δ", r"$\Delta$")
    return f"% {' '.join(comparison.study.question.split())}\n{text}"
