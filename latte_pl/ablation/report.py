"""The reports of studies: Markdown, CSV, LaTeX, HTML pages, and curves for TensorBoard."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.curves import write_curves
from latte_pl.ablation.overview import overview_markdown, overview_page
from latte_pl.ablation.page import page
from latte_pl.ablation.study import Study, siblings
from latte_pl.ablation.tables import latex, markdown
from latte_pl.ablation.verdicts import Suite
from latte_pl.files import write_text


def read_suite(studies: Sequence[Study], scale: str, root: Path, seeds: list[int] | None = None) -> Suite:
    """Return the results of studies and of all others in their folders that have the scale.

    Studies with nothing to compare, and studies whose results cannot share a table, are left out.

    Args:
        studies: The studies.
        scale: Name of the scale.
        root: Folder of all trials.
        seeds: Seeds that replace those of the scale.
    """
    suite = {study.files[0].resolve(): study for chosen in studies for study in siblings(chosen, scale)}
    comparisons = []
    for study in suite.values():
        with contextlib.suppress(ValueError):
            comparison = Comparison.load(study, scale, root, seeds)
            if comparison.has_pairs():
                comparisons.append(comparison)
    return Suite(comparisons)


def write(
    study: Study,
    scale: str,
    root: Path,
    output: Path,
    seeds: list[int] | None = None,
    suite: Suite | None = None,
    overview: bool = False,
) -> bool:
    """Write all forms of a study's report and print the Markdown.

    Args:
        study: The study.
        scale: Name of the scale.
        root: Folder of all trials.
        output: Folder for the files.
        seeds: Seeds that replace those of the scale.
        suite: The studies that it is corrected with. None: those of `read_suite`.
        overview: Whether its page links to the overview of all studies, where each compares rows.

    Returns:
        Whether every trial is finished.

    Raises:
        ValueError: No trial is finished, or results cannot share a table, or there is nothing to compare.
    """
    comparison = Comparison.load(study, scale, root, seeds)
    if overview and comparison.all_results() and not comparison.has_pairs():
        raise ValueError(
            f"{study.name} has nothing to compare with its baseline at scale {scale}; run "
            f"`latte-ablate run {study.name}`"
        )
    if not comparison.all_results():
        raise ValueError(f"{study.name} has no results at scale {scale}; run `latte-ablate run {study.name}` first")
    suite = suite or read_suite([study], scale, root, seeds)
    text, table = markdown(comparison, suite), comparison.table()
    files = {"md": text, "csv": table.to_csv(index=False), "tex": latex(comparison)}
    files["html"] = page(comparison, suite, overview)
    for suffix, content in files.items():
        write_text(output / f"{study.name}.{suffix}", content)
    logs = output / "tensorboard" / study.name
    write_curves(comparison, logs)
    print(f"{text}\npage    {output / study.name}.html\ncurves  tensorboard --logdir {logs}\n")
    return not (table["failed"].any() or table["missing"].any())


def write_overview(suite: Suite, output: Path) -> None:
    """Write the overview of several studies, and print where it is.

    Args:
        suite: The studies.
        output: Folder of their reports.
    """
    write_text(output / "index.md", overview_markdown(suite))
    write_text(output / "index.html", overview_page(suite))
    print(f"overview of all studies  {output / 'index.html'}")
