"""Measure how long a trial of a study takes to start: forked from a server, and in new processes.

    python benchmarks/trial_start.py

A trial here is one optimizer step and one held-out loss of the proxy model on two clips, so that nearly all of its time
is that of starting: imports, configuration, building model and data. Both ways take turns. The first round, in which
the server imports everything, does not count. Times are wall-clock seconds, so other work on the machine adds to them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import note

from latte_pl.ablation import local
from latte_pl.ablation.plan_cache import load_plan
from latte_pl.ablation.study import read
from latte_pl.ablation.trial import Trial

STUDY = """
question: How long does a trial take to start?
conclusion: none
status: ours
baseline: one step
rows: {one step: {}}
scales:
  start:
    configs: [data/shapes.yaml, model/proxy.yaml, experiment/ablation_proxy.yaml]
    overrides:
      data.num_videos: 64
      data.val_clips: 2
      data.global_batch_size: 2
      samples.num_samples: 1
      model.sampling.steps: 1
      distance.every_n_steps: 0
    seeds: [0]
    clips: 2
"""


def seconds(trial: Trial, threads: int, fork: bool) -> float:
    """Return the duration of a trial, whose result is deleted."""
    start = time.perf_counter()
    with patch.object(local, "may_fork", return_value=fork):
        job = local.LocalJob(trial, threads)
    while not job.done():
        time.sleep(0.02)
    taken = time.perf_counter() - start
    if not trial.result.is_file():
        raise RuntimeError(f"the trial failed: {(trial.path / 'log.txt').read_text()}")
    for path in sorted(trial.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return taken


def main() -> None:
    """Print a note with the times of both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    note.add_arguments(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "start.yaml"
        study.write_text(STUDY)
        (trial,) = load_plan(read(study), "start", Path(folder))
        rounds = [[seconds(trial, args.threads, fork) for fork in (False, True)] for _ in range(args.rounds + 1)][1:]
    new, forked = zip(*rounds)
    note.write(
        [
            "# Time that a trial of a study takes to start",
            "",
            note.environment(args),
            f"Command: `python benchmarks/trial_start.py --rounds {args.rounds} --threads {args.threads}`",
            "",
            "Wall-clock seconds of a trial of one optimizer step and one held-out loss; median and range.",
            "",
            "| | seconds | range |",
            "|---|---|---|",
            *(
                f"| {name} | {statistics.median(times):.1f} | {min(times):.1f} to {max(times):.1f} |"
                for name, times in (("new processes", new), ("forked from a server", forked))
            ),
            "",
            f"Ratio: {note.median_ratio(new, forked):.1f} (median of the rounds).",
        ],
        args.note,
    )


if __name__ == "__main__":
    main()
