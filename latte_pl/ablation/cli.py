"""The command `latte-ablate list | run | status | report`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from latte_pl.ablation.study import Study, find, read, shipped
from latte_pl.ablation.trial import Trial
from latte_pl.cli import Parser, quiet


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one line, `LATTE_TRACEBACK=1` shows where it came from."""
    quiet()
    options = _parser().parse_args(args)
    try:
        done = options.command(options)
    except (ValueError, OSError, RuntimeError) as error:  # submitit's are RuntimeErrors
        if os.environ.get("LATTE_TRACEBACK"):
            raise
        print(f"latte-ablate: error: {Parser.wording(str(error))}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if done else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latte-ablate", description="Run the studies of ablations/ and compare arms.")
    commands = parser.add_subparsers(required=True, metavar="list | run | status | report")

    listing = commands.add_parser("list", help="the studies, their questions and what the paper says")
    listing.set_defaults(command=list_studies)

    for name, function, text in (
        ("run", run, "train and measure what has no result yet; goes on where an earlier run was stopped"),
        ("status", status, "the state of every trial"),
        ("report", report, "tables, curves and the page of what is finished"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        command.add_argument("study", nargs="+", help="name in ablations/, or the path of a .yaml file; 'all' for all")
        command.add_argument("--scale", default="proxy", help="scale of the study (default: proxy)")
        command.add_argument("--root", type=Path, default=Path("runs/ablations"), help="folder of all trials")
        command.add_argument("--seeds", type=_seeds, help="in place of the study's: 0,1,2")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="print commands, FLOPs and hours; run nothing")
            command.add_argument("--executor", choices=("local", "slurm"), default="local")
            command.add_argument("--jobs", type=int, default=1, help="trials at a time (default: 1)")
            command.add_argument("--threads", type=int, help="CPU threads of a local trial (default: cores / jobs)")
            command.add_argument("--partition", help="of SLURM")
            command.add_argument("--gpus", type=int, default=0, help="GPUs of a trial on SLURM")
            command.add_argument("--cpus", type=int, default=1, help="CPUs of a trial on SLURM")
            command.add_argument("--mem-gb", type=float, help="memory of a trial on SLURM")
            command.add_argument("--timeout-min", type=int, default=24 * 60, help="minutes of one attempt")
        if name == "report":
            command.add_argument("--output", type=Path, help="folder of the tables (default: ROOT/reports/SCALE)")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def _studies(names: Sequence[str], scale: str | None = None) -> list[Study]:
    paths = shipped() if list(names) == ["all"] else [find(name) for name in names]
    if not paths:
        raise FileNotFoundError("no studies here; change to the folder that holds ablations/, or give a .yaml file")
    studies = [read(path) for path in paths]
    return [study for study in studies if scale in (None, *study.scales)] if list(names) == ["all"] else studies


def list_studies(options: argparse.Namespace) -> bool:
    """Print the studies."""
    for study in _studies(["all"]):
        rows = " | ".join(study.rows) or " | ".join(next(iter(study.scales.values())).rows or {})
        print(f"{study.name}\n  {study.question}\n  paper ({study.status}): {study.conclusion}\n  rows: {rows}")
        for scale in study.scales.values():
            print(f"  {scale.name}: {scale.clips:,} clips a row, seeds {', '.join(map(str, scale.seeds))}")
    return True


def run(options: argparse.Namespace) -> bool:
    """Run the trials of studies, or print what they would be."""
    from latte_pl.ablation.plan import check_models, dry_run, plan
    from latte_pl.ablation.runner import Runner, Slurm, last_error

    root = options.root
    trials: dict[str, Trial] = {}
    for study in _studies(options.study, options.scale):
        planned = plan(study, options.scale, root, options.seeds)
        check_devices(planned, options)
        check_models(study, planned)
        if options.dry_run:
            print(dry_run(study, options.scale, planned))
            continue
        keep_manifest(study, options.scale, root, [trial.hash for trial in planned])
        trials |= {trial.hash: trial for trial in planned}  # rows that studies share are trained once
    if options.dry_run:
        return True
    # seed by seed: what is there after an interruption is as balanced as it can be
    ordered = sorted(trials.values(), key=lambda trial: (trial.seed, trial.arm))
    slurm = Slurm(options.partition, options.gpus, options.cpus, options.mem_gb, options.timeout_min)
    console = Console()
    runner = Runner(ordered, root, options.executor, options.jobs, slurm, options.threads, console)
    done = runner.run()
    finished = sum(trial.result.is_file() for trial in ordered)
    failed = [trial for trial in ordered if trial.failure.is_file() and not trial.result.is_file()]
    console.print(f"{finished} of {len(ordered)} trials finished, {len(failed)} FAILED", highlight=False)
    for trial in failed:
        where = f"[{trial.path / 'log.txt'}]"
        console.print(f"  {trial.row}, seed {trial.seed}: {last_error(trial)}  {where}", soft_wrap=True, markup=False)
    return done


def status(options: argparse.Namespace) -> bool:
    """Print the state of every trial."""
    from latte_pl.ablation.plan import plan
    from latte_pl.ablation.runner import state_of, table

    root = options.root
    console = Console()
    for study in _studies(options.study, options.scale):
        planned = plan(study, options.scale, root, options.seeds)
        console.print(f"{study.name}, {options.scale}", style="bold")
        console.print(table([(trial, state_of(trial)) for trial in planned]))
        earlier = set(read_manifest(study, options.scale, root)) - {trial.hash for trial in planned}
        kept = [name for name in earlier if (root / "trials" / name / "result.json").is_file()]
        if kept:
            console.print(
                f"{len(kept)} results are of settings or seeds that are not the study's; they are kept, and not counted"
            )
    return True


def report(options: argparse.Namespace) -> bool:
    """Write tables and pages of what is finished."""
    from latte_pl.ablation.report import write

    root = options.root
    output = options.output or options.root / "reports" / options.scale
    complete = True
    for study in _studies(options.study, options.scale):
        try:
            complete &= write(study, options.scale, root, output, options.seeds)
        except ValueError as error:
            if len(options.study) == 1 and options.study != ["all"]:
                raise
            print(f"{error}\n", file=sys.stderr)
            complete = False
    return complete


def check_devices(trials: Sequence[Trial], options: argparse.Namespace) -> None:
    """Refuse a number of GPUs on SLURM that the trials do not use.

    Raises:
        ValueError: The two differ; both are named.
    """
    if options.executor != "slurm":
        return
    for trial in trials:
        trainer = trial.config["trainer"]
        used = 0 if trainer["accelerator"] == "cpu" else trainer["devices"]
        if isinstance(used, int) and used != options.gpus:
            raise ValueError(f"{trial.row} trains on {used} GPUs (trainer.devices), --gpus is {options.gpus}")


def _manifest(study: Study, scale: str, root: Path) -> Path:
    return root / "studies" / f"{study.name}.{scale}.txt"


def read_manifest(study: Study, scale: str, root: Path) -> list[str]:
    """Return the hashes of all trials that a study ever had here."""
    path = _manifest(study, scale, root)
    return path.read_text().split() if path.is_file() else []


def keep_manifest(study: Study, scale: str, root: Path, hashes: list[str]) -> None:
    """Remember the trials of a study, so that results of an edited one are never silently missing."""
    from latte_pl.metrics.record import write_atomically

    known = read_manifest(study, scale, root)
    write_atomically(_manifest(study, scale, root), "\n".join(dict.fromkeys(known + hashes)) + "\n")


if __name__ == "__main__":
    main()
