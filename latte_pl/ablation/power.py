"""What a planned study needs and what it can find: size of its latent cache, and differences that its seeds resolve."""

import statistics
from pathlib import Path
from typing import Any

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.intervals import detectable_by_spread
from latte_pl.ablation.measures import MOTION
from latte_pl.ablation.study import Study
from latte_pl.cli.config import class_at

REFERENCE = "proxy"
"""The scale whose results are committed."""


def bytes_per_frame(config: dict[str, Any]) -> int:
    """Return the size of a frame of video in a latent cache: mean and log-variance in float16.

    Frames of data that are flipped at random are stored twice.

    Args:
        config: Resolved configuration of a trial.
    """
    data, autoencoder = config["data"], config["model"]["autoencoder"]
    channels, factor = class_at(autoencoder["class_path"]).latent_format(**autoencoder.get("init_args", {}))
    size = data["init_args"]["size"]
    height, width = (size, size) if isinstance(size, int) else size
    flip = data["init_args"].get("flip", getattr(class_at(data["class_path"]), "flip", False))
    return (height // factor) * (width // factor) * 2 * channels * 2 * (2 if flip else 1)


def resolvable(study: Study, num_seeds: int, root: Path) -> dict[str, float]:
    """Return the difference that so many seeds find with a probability of 80 %, by measure, from finished results.

    The spread is that of the paired differences of all rows at scale ``REFERENCE``. Loss and distance are relative to
    the baseline, because other models and data have other values; the motion accuracy is absolute.

    Args:
        study: The study.
        num_seeds: Number of seeds of the planned scale.
        root: Folder of all trials of the finished scale.

    Returns:
        Empty if the study has no such results.
    """
    if REFERENCE not in study.scales or num_seeds < 2:
        return {}
    comparison = Comparison.load(study, REFERENCE, root)
    found = {}
    for measure in comparison.measures() if comparison.all_results() else ():
        variances = []
        base = comparison.values(comparison.baseline, measure.value)
        for row in comparison.results:
            if row != comparison.baseline and comparison.comparable(measure, row):
                values = comparison.values(row, measure.value)
                paired = [values[seed] - base[seed] for seed in values.keys() & base.keys()]
                variances += [statistics.variance(paired)] if len(paired) > 1 else []
        if variances:
            unit = measure.unit if measure is MOTION else statistics.mean(base.values()) / 100.0
            found[measure.name] = detectable_by_spread(statistics.mean(variances) ** 0.5, num_seeds) / unit
    return found


def outlook(study: Study, config: dict[str, Any], latents: str | None, num_seeds: int) -> str:
    """Return the size of the latent cache and the differences that a planned study resolves, as lines of text.

    Args:
        study: The study.
        config: Resolved configuration of one of its trials.
        latents: Name of the latent cache; None if there is none.
        num_seeds: Number of seeds.
    """
    lines = []
    if latents is not None:
        size = bytes_per_frame(config)
        lines.append(
            f"latent cache {latents}: {size:,} bytes per frame of video, {size * 1e-3:,.3g} MB per 1,000 frames"
        )
    try:
        found = resolvable(study, num_seeds, study.files[0].parent / "results")
    except ValueError:  # results that cannot share a table
        found = {}
    if found:
        differences = ", ".join(
            f"{value:.3g} {'points' if name == MOTION.name else '%'} in {name}" for name, value in found.items()
        )
        lines.append(
            f"with {num_seeds} seeds and the spread of scale {REFERENCE}, a paired test finds differences of "
            f"{differences} with a probability of 80 %"
        )
    return "\n".join(lines)
