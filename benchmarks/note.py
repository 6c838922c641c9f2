"""Timing, and the notes in which the benchmarks store their results."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from latte_pl.metrics.record import git_commit


def add_arguments(parser: argparse.ArgumentParser, device: bool = False) -> None:
    """Add the arguments of all benchmarks: where to write the note, and what it says about the machine."""
    parser.add_argument("--note", type=Path, help="Markdown file to write the results to; they are always printed")
    parser.add_argument("--hardware", default=platform.processor() or platform.machine(), help="hardware, for the note")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    if device:
        parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])


def environment(args: argparse.Namespace) -> str:
    """Return the line of a note that describes hardware, software and commit."""
    return (
        f"Hardware: {args.hardware}, {torch.get_num_threads()} threads. Python {platform.python_version()}, torch "
        f"{torch.__version__}. Commit {git_commit()[:7] or 'unknown'}."
    )


def write(lines: Sequence[str], path: Path | None) -> None:
    """Print a note, and write it if there is a path."""
    text = "\n".join(lines) + "\n"
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def clock(device: str) -> float:
    """Return a time in seconds.

    With one thread it is the CPU time of the process, which other processes on the machine affect least.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def clock_name(device: str) -> str:
    """Return which time `clock` measures: "CPU" or "wall-clock"."""
    return "CPU" if device == "cpu" and torch.get_num_threads() == 1 else "wall-clock"


def seconds(function: Callable[[], object], device: str) -> float:
    """Return the time that one call takes."""
    start = clock(device)
    function()
    return clock(device) - start


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(numerator, denominator))
