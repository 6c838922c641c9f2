"""A trial: one (row, seed) cell of a study, as commands and files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and its measurement.

    Attributes:
        row: Of the study, or of what it prepares.
        seed: Of the training.
        hash: Names the trial: SHA-256 of configuration, seed, budget and protocol, shortened.
        folder: Where it trains and leaves its result.
        encode: Arguments of `latte` that make the latents it reads; None where it reads videos.
        commands: Arguments of `latte`, in order: fit, average where averages are kept, test.
        needs: Hashes of the trials that have to be finished before.
        arm: Whether it is a row of the table; else others start from it.
        scale: Name of the scale.
        steps: Optimizer steps.
        clips: Clips seen.
        expected: Settings that the row states, to be read back from what was built.
        config: The resolved configuration.
    """

    row: str
    seed: int
    hash: str
    folder: str
    encode: tuple[str, ...] | None
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...]
    arm: bool
    scale: str
    steps: int
    clips: int
    expected: dict[str, Any]
    config: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    @property
    def result(self) -> Path:
        """Where the result is, once there is one."""
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        """Where the last error is, if the last attempt failed."""
        return self.path / "failure.json"
