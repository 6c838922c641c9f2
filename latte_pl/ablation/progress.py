"""The table of trials that `latte-ablate run` and `latte-ablate status` print."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from latte_pl.ablation.trial import Trial, last_error, progress_of

COLOURS = {"finished": "green", "FAILED": "red", "running": "cyan"}


def table(rows: Sequence[tuple[Trial, str]]) -> Table:
    """Return a table of trials with their states."""
    shown = Table("row", "seed", "state", "step", "clips/s", "left", box=None, pad_edge=False)
    for trial, state in rows:
        progress = progress_of(trial)
        step, speed = progress.get("step", 0), progress.get("clips_per_second")
        left = ""
        if state.startswith("running") and speed:
            left = f"{(1 - step / trial.steps) * trial.clips / speed / 60:.1f} min"
        colour = COLOURS.get(state.split(",")[0])
        name = escape(trial.row if trial.arm else f"({trial.row})")
        cells = (f"{step}/{trial.steps}" if step else "", f"{speed:.0f}" if speed else "", left)
        shown.add_row(name, str(trial.seed), f"[{colour}]{state}[/]" if colour else state, *cells)
        if state == "FAILED":
            shown.add_row("", "", f"[red]{escape(last_error(trial))}[/]")
    return shown
