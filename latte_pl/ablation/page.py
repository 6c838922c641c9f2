"""The page of a study: one HTML file with verdicts, table, curves, motion accuracy by class and animated samples."""

import base64
import html
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.measures import LOSS, MOTION, Measure
from latte_pl.ablation.notes import notes
from latte_pl.ablation.tables import (
    PUBLISHED,
    STATUS,
    answer_cells,
    claim_text,
    conclusion,
    published_rows,
    shown_rows,
    title,
)
from latte_pl.ablation.verdicts import Suite, answers, overall

TEMPLATES = Environment(loader=PackageLoader("latte_pl.ablation", "."), autoescape=True, trim_blocks=True)
SHOWN_SEEDS = 3  # seeds whose samples a page shows
GAP = 2  # pixels between the samples of an animation


def page(comparison: Comparison, suite: Suite | None = None, overview: bool = False) -> str:
    """Return the page of a study as HTML. It needs no other file.

    Args:
        comparison: The results of the study.
        suite: The studies that it belongs to.
        overview: Whether there is an overview of all studies, to link to.
    """
    table = shown_rows(comparison)
    figures = []
    for measure in comparison.measures():
        figures += [curves(comparison, measure), bars(comparison, measure)]
    return TEMPLATES.get_template("page.html").render(
        study=comparison.study,
        title=title(comparison.study.name),
        status=STATUS[comparison.study.status],
        conclusion=conclusion(comparison, suite),
        claims=_claims(comparison, suite),
        columns=list(table[0]),
        rows=[list(line.values()) for line in table],
        figures=[_svg(figure) for figure in figures if figure is not None],
        motion=motion_by_class(comparison),
        samples={row: samples(comparison, row) for row in comparison.results},
        notes=[_code(line) for line in notes(comparison, suite)],
        published=published_rows(comparison.study),
        about_published=PUBLISHED,
        overview=overview,
    )


def _claims(comparison: Comparison, suite: Suite | None) -> list[dict[str, Any]]:
    return [
        {
            "text": claim_text(part[0].test.claim),
            "verdict": overall([answer.verdict for answer in part]),
            "answers": [answer_cells(answer, suite) for answer in part],
        }
        for part in answers(comparison, suite)
        if part
    ]


# ------------------------------------------------------------------------------------------------------------ figures


def colours(comparison: Comparison) -> dict[str, Any]:
    """Return a colour for each row: grey for the baseline, colours of a palette for the others."""
    palette = itertools.cycle(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]
    return {row: "0.35" if row == comparison.baseline else next(palette) for row in comparison.results}


def curves(comparison: Comparison, measure: Measure) -> Figure | None:
    """Draw a measure against training steps: mean and range over the seeds of each row; None if there is no curve."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    lowest, highest = np.inf, -np.inf
    for row, colour in colours(comparison).items():
        found = [dict(result["curves"].get(measure.curve, ())) for result in comparison.results[row].values()]
        steps = sorted(set.intersection(*map(set, found))) if found else []
        if not steps or not comparison.comparable(measure, row):
            continue
        values = np.array([[curve[step] for step in steps] for curve in found]) / measure.unit  # (seeds, points)
        axes.plot(
            steps, values.mean(axis=0), color=colour, label=row, linewidth=1.6, marker="." if len(steps) < 9 else ""
        )
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        late = values[:, len(steps) // 8 :]  # the first values of a loss would hide all others
        lowest, highest = min(lowest, values.min()), max(highest, late.max())
    if not axes.lines:
        return None
    margin = 0.05 * (highest - lowest) or 1.0
    unit = f" ({measure.suffix.strip()})" if measure.suffix else ""
    axes.set(xlabel="optimizer steps", ylabel=measure.name + unit, ylim=(lowest - margin, highest + margin))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def bars(comparison: Comparison, measure: Measure) -> Figure | None:
    """Draw the paired difference of each row to the baseline with its interval; None for a single row.

    A dot is one seed.
    """
    rows = [row for row in comparison.results if row != comparison.baseline]
    if not rows:
        return None
    figure = Figure(figsize=(5.2, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    palette = colours(comparison)
    base = comparison.values(comparison.baseline, measure.value)
    for place, row in enumerate(rows):
        difference = comparison.difference(row, measure.value) if comparison.comparable(measure, row) else None
        if difference is None:
            other = comparison.other_objective(row) if measure is LOSS else None
            reason = f" the loss of {other} is not comparable" if other else " no pair of finished trials"
            axes.text(0.02, place, reason, va="center", color="0.4", transform=axes.get_yaxis_transform())
            continue
        mean, half = difference.mean / measure.unit, difference.half and difference.half / measure.unit
        axes.barh(place, mean, xerr=half, color=palette[row], alpha=0.6, height=0.6, capsize=4)
        own = comparison.values(row, measure.value)
        points = [(own[seed] - base[seed]) / measure.unit for seed in sorted(own.keys() & base.keys())]
        axes.plot(points, [place] * len(points), "o", color="black", markersize=3)
    axes.axvline(0, color="0.35", linewidth=1)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row at the top; rows without a bar count too
    better = "right" if measure.higher_is_better else "left"
    unit = f"{measure.suffix_of_difference.strip()}; " if measure.suffix_of_difference else ""
    axes.set_xlabel(f"Δ {measure.name} ({unit}{better} is better)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "latte_pl", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]


# ------------------------------------------------------------------------------------------------- motion and samples


def motion_by_class(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Return the motion accuracy of each row by class, mean over seeds; rows without it are left out."""
    found = {}
    for row, results in comparison.results.items():
        parts = [result["motion"]["by_class"] for result in results.values() if MOTION.value(result) is not None]
        if parts:
            found[row] = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    return found


@dataclass(frozen=True)
class Samples:
    """The samples of a trial: one animation, and what each of its tiles shows.

    Attributes:
        seed: Seed of the trial.
        data: The animation (GIF) in base64.
        aspect: Width of a tile over its height.
        zoom: Width of the animation over that of a tile, in percent.
        tiles: Label of each tile, and its place: percent of the animation's free width and height.
    """

    seed: int
    data: str
    aspect: float
    zoom: float
    tiles: list[tuple[str, float, float]]


def samples(comparison: Comparison, row: str) -> list[Samples]:
    """Return the samples of the first seeds of a row that have some."""
    found: list[Samples] = []
    for seed, result in sorted(comparison.results[row].items()):
        path = comparison.samples(row, seed)
        if path is not None and len(found) < SHOWN_SEEDS:
            found.append(_samples(path, result))
    return found


def _samples(path: Path, result: dict[str, Any]) -> Samples:
    from PIL import Image

    with Image.open(path) as animation:
        image = animation.convert("RGB")
    width, height = image.size
    tile_height, tile_width = result["held_out"].get("size") or (height - 2 * GAP, height - 2 * GAP)
    columns, rows = (width - GAP) // (tile_width + GAP), (height - GAP) // (tile_height + GAP)
    names = list((result.get("motion") or {}).get("by_class", {}))
    tiles = []
    for n in range(columns * rows):
        x, y = GAP + n % columns * (tile_width + GAP), GAP + n // columns * (tile_height + GAP)
        if np.asarray(image)[y : y + tile_height, x : x + tile_width].min() == 255:
            continue  # a white place at the end of the last line
        label = names[n % len(names)] if names else ""
        tiles.append((label, 100.0 * x / max(width - tile_width, 1), 100.0 * y / max(height - tile_height, 1)))
    data = base64.b64encode(path.read_bytes()).decode()
    return Samples(result["seed"], data, tile_width / tile_height, 100.0 * width / tile_width, tiles)


def _code(text: str) -> str:
    return re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(text))
