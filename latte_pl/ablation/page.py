"""One HTML page a study, without any file beside it: table, verdicts, curves, bars with intervals, moving samples."""

import base64
import html
import io
import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from latte_pl.ablation.comparison import MEASURES, Comparison

TEMPLATES = Environment(loader=PackageLoader("latte_pl.ablation", "."), autoescape=True, trim_blocks=True)


def page(comparison: Comparison, shown: pd.DataFrame, verdicts: list[tuple[str, str]]) -> str:
    """Return the page of a study.

    Args:
        comparison: The results.
        shown: The table as text cells.
        verdicts: Claims and what the measures say about them.
    """
    from latte_pl.ablation.report import STATUS, TITLES, cells, origin

    strips = []
    for row in comparison.results:
        for seed in sorted(comparison.results[row]):
            path = samples_of(comparison, row, seed)
            if path is not None:
                strips.append((row, seed, base64.b64encode(path.read_bytes()).decode()))
                break
    figures = [_svg(loss_curves(comparison))]
    figures += [_svg(bars(comparison, measure)) for measure in MEASURES if comparison.measured(measure)]
    return TEMPLATES.get_template("page.html").render(
        study=comparison.study,
        title=comparison.study.name.replace("_", " ").capitalize(),
        status=STATUS[comparison.study.status],
        columns=[TITLES[str(name)] for name in shown],
        rows=cells(shown),
        verdicts=[(claim, _bold(answer)) for claim, answer in verdicts],
        figures=figures,
        strips=strips,
        origin=[_code(line) for line in origin(comparison) if line],
    )


def samples_of(comparison: Comparison, row: str, seed: int) -> Path | None:
    """Return the animation of a trial's last samples, if it is still there."""
    folder = next(trial.path for trial in comparison.trials if (trial.row, trial.seed) == (row, seed))
    found = sorted((folder / "samples").glob("step=*.gif"))
    return found[-1] if found else None


def colours(comparison: Comparison) -> dict[str, Any]:
    """Return a colour a row: grey for the baseline, one of a palette for each other."""
    palette = itertools.cycle(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    return {row: "0.35" if row == comparison.baseline else next(palette) for row in comparison.results}


def loss_curves(comparison: Comparison) -> Figure:
    """Draw the held-out loss against iterations: the mean over seeds, and the range of the seeds."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    lowest, highest = np.inf, 0.0
    for row, colour in colours(comparison).items():
        curves = [result["curves"]["val/loss"] for result in comparison.results[row].values()]
        if not curves or comparison.other_objective(row):
            continue
        values = np.array([[value for _, value in curve] for curve in curves])  # (seeds, points)
        steps = [step for step, _ in curves[0]]
        axes.plot(steps, values.mean(axis=0), color=colour, label=row, linewidth=1.6)
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        lowest, highest = min(lowest, values.min()), max(highest, values[:, len(steps) // 8 :].max())
    axes.set(xlabel="iterations", ylabel="held-out loss", ylim=(0.97 * lowest, 1.03 * highest))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def bars(comparison: Comparison, measure: str) -> Figure:
    """Draw the paired difference of every row to the baseline, with its interval and the seeds."""
    rows = [row for row in comparison.results if row != comparison.baseline]
    reading = MEASURES[measure]
    figure = Figure(figsize=(7.2, 0.9 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    palette = colours(comparison)
    base = comparison.values(comparison.baseline, reading)
    for place, row in enumerate(rows):
        difference = comparison.difference(row, reading)
        if difference is None:
            other = comparison.other_objective(row)
            reason = f" the loss of {other} is of another kind" if other else " no pair of finished trials"
            axes.text(0.02, place, reason, va="center", color="0.4", transform=axes.get_yaxis_transform())
            continue
        axes.barh(place, difference.mean, xerr=difference.half, color=palette[row], alpha=0.6, height=0.6, capsize=4)
        own = comparison.values(row, reading)
        points = [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
        axes.plot(points, [place] * len(points), "o", color="black", markersize=3)
    axes.axvline(0, color="0.35", linewidth=1)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top, rows without a bar too
    axes.set_xlabel(f"{measure}: difference to {comparison.baseline} (right is worse)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "latte_pl", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r'<b class="\1">\1</b>', html.escape(text))


def _code(text: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))
