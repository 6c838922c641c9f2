"""The command `latte-ablate list | run | status | report | migrate`."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latte_pl.ablation.plan_cache import earlier_results, load_plan
from latte_pl.ablation.study import Study, available, find, read, siblings
from latte_pl.ablation.trial import Trial, last_error, state_of


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line. A user's mistake ends with one line; `LATTE_TRACEBACK=1` shows the traceback."""
    options = _parser().parse_args(args)
    try:
        succeeded = options.command(options)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError, RuntimeError) as error:  # submitit raises RuntimeErrors
        if os.environ.get("LATTE_TRACEBACK"):
            raise
        print(f"latte-ablate: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if succeeded else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latte-ablate", description="Run ablation studies and compare their rows.")
    commands = parser.add_subparsers(required=True, metavar="list | run | status | report | migrate")

    text = "print the studies, their questions and what the paper concludes"
    commands.add_parser("list", help=text, description=text).set_defaults(command=list_studies)

    for name, function, text in (
        ("run", run, "train and measure all trials without a result; interrupted trials resume"),
        ("status", status, "print the state of every trial"),
        ("report", report, "write tables, curves and a page of the finished trials"),
        ("migrate", migrate, "rename results of earlier versions of latte_pl, whose settings had other names"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(command=function)
        everything = name == "migrate"
        command.add_argument(
            "study",
            nargs="*" if everything else "+",
            default=["all"],
            help="name of a study, path of a .yaml file, or 'all'" + (" (default)" if everything else ""),
        )
        command.add_argument("--root", type=Path, default=Path("runs/ablations"), help="folder of all trials")
        if name == "migrate":
            continue
        command.add_argument("--scale", help="scale of the study (default: proxy, or the only one that the study has)")
        command.add_argument("--seeds", type=_seeds, help="seeds that replace those of the scale, such as 0,1,2")
        if name == "report":
            command.add_argument("--output", type=Path, help="folder of the report (default: ROOT/reports/SCALE)")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="print commands, FLOPs and hours; run nothing")
            command.add_argument("--executor", choices=("local", "slurm"), default="local", help="(default: local)")
            command.add_argument("--jobs", type=int, default=1, help="number of trials at a time (default: 1)")
            command.add_argument("--threads", type=int, help="CPU threads per local trial (default: cores / jobs)")
            command.add_argument("--partition", help="SLURM partition")
            command.add_argument("--gpus", type=int, default=0, help="GPUs per trial on SLURM (default: 0)")
            command.add_argument("--cpus", type=int, default=1, help="CPUs per trial on SLURM (default: 1)")
            command.add_argument("--mem-gb", type=float, help="memory per trial on SLURM, in GB")
            command.add_argument(
                "--timeout-min", type=int, default=24 * 60, help="time limit of a SLURM job, in minutes (default: 1440)"
            )
    return parser


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def _chosen(options: argparse.Namespace) -> list[Study]:
    """Read the studies of a command, and set its scale unless it is given."""
    if options.scale is None and list(options.study) != ["all"]:
        scales = [list(study.scales) for study in _studies(options.study)]
        only = {names[0] if len(names) == 1 else "proxy" for names in scales}
        options.scale = only.pop() if len(only) == 1 else "proxy"
    options.scale = options.scale or "proxy"
    return _studies(options.study, options.scale)


def _studies(names: Sequence[str], scale: str | None = None) -> list[Study]:
    """Read studies by name; "all" stands for those that have the scale."""
    if list(names) != ["all"]:
        return [read(find(name)) for name in names]
    studies = [study for study in map(read, available()) if scale in (None, *study.scales)]
    if not studies:
        raise FileNotFoundError("no studies found; give the path of a .yaml file, or a --scale that a study has")
    return studies


def list_studies(options: argparse.Namespace) -> bool:
    """Print the studies."""
    for study in _studies(["all"]):
        rows = " | ".join(study.rows) or " | ".join(next(iter(study.scales.values())).rows or {})
        print(f"{study.name}\n  {study.question}\n  paper ({study.status}): {study.conclusion}\n  rows: {rows}")
        for scale in study.scales.values():
            print(f"  {scale.name}: {scale.clips:,} clips per row, seeds {', '.join(map(str, scale.seeds))}")
    return True


def run(options: argparse.Namespace) -> bool:
    """Run the trials of studies, or print their commands."""
    trials: dict[str, Trial] = {}
    studies = _chosen(options)
    for study in studies:
        if options.dry_run:
            from latte_pl.ablation.plan import check_models, dry_run, plan
            from latte_pl.ablation.power import outlook

            planned = plan(study, options.scale, options.root, options.seeds)
            check_models(study, planned)
            check_gpus(planned, options)
            print(dry_run(study, options.scale, planned))
            scale, _ = study.at(options.scale)
            print(outlook(study, planned[0].config, scale.latents, len(options.seeds or scale.seeds)))
            continue
        planned = load_plan(study, options.scale, options.root, options.seeds)
        check_gpus(planned, options)
        trials |= {trial.hash: trial for trial in planned}  # rows that several studies share are trained once
    if options.dry_run:
        return True
    from rich.console import Console

    from latte_pl.ablation.runner import Runner, Slurm

    trials = with_all_points(trials, studies, options)
    # seed by seed, so that an interrupted run leaves equally many seeds of every row
    ordered = sorted(trials.values(), key=lambda trial: (trial.seed, trial.arm))
    slurm = Slurm(options.partition, options.gpus, options.cpus, options.mem_gb, options.timeout_min)
    console = Console()
    runner = Runner(ordered, options.root, options.executor, options.jobs, slurm, options.threads, console)
    succeeded = runner.run()
    finished = sum(trial.result.is_file() for trial in ordered)
    failed = [trial for trial in ordered if trial.failure.is_file() and not trial.result.is_file()]
    console.print(f"{finished} of {len(ordered)} trials finished, {len(failed)} FAILED", highlight=False)
    for trial in failed:
        log = f"[{trial.path / 'log.txt'}]"
        console.print(f"  {trial.row}, seed {trial.seed}: {last_error(trial)}  {log}", soft_wrap=True, markup=False)
    return succeeded


def with_all_points(
    trials: dict[str, Trial], studies: Sequence[Study], options: argparse.Namespace
) -> dict[str, Trial]:
    """Return trials with the steps at which any study of their suites needs a held-out loss.

    Rows that several studies share are trained once, so that a training must measure what all of them need.
    """
    points: dict[str, set[int]] = {name: set() for name in trials}
    suite = {other.name: other for study in studies for other in siblings(study, options.scale)}
    for member in suite.values():
        with contextlib.suppress(ValueError):  # a mistake in a study that does not run now
            for trial in load_plan(member, options.scale, options.root, options.seeds):
                points.get(trial.hash, set()).update(trial.points)
    return {name: replace(trial, points=tuple(sorted(points[name]))) for name, trial in trials.items()}


def status(options: argparse.Namespace) -> bool:
    """Print the state of every trial."""
    from rich.console import Console

    from latte_pl.ablation.progress import table

    console = Console()
    for study in _chosen(options):
        trials = load_plan(study, options.scale, options.root, options.seeds)
        console.print(f"{study.name}, {options.scale}", style="bold")
        console.print(table([(trial, state_of(trial)) for trial in trials]))
        if earlier := earlier_results(study, options.scale, options.root, trials):
            console.print(
                f"{len(earlier)} more results were made with settings or seeds that the study no longer has; they are "
                "kept, but not in the report"
            )
    return True


def report(options: argparse.Namespace) -> bool:
    """Write tables, curves and a page of the finished trials of studies."""
    from latte_pl.ablation.report import read_suite, write, write_overview

    studies = _chosen(options)
    output = options.output or options.root / "reports" / options.scale
    complete = True
    suite = read_suite(studies, options.scale, options.root, options.seeds)
    several = len(studies) > 1
    for study in studies:
        try:
            complete &= write(study, options.scale, options.root, output, options.seeds, suite, several)
        except ValueError as error:
            if not several:
                raise
            print(f"{error}\n", file=sys.stderr)
            complete = False
    if several and suite.comparisons:
        write_overview(suite, output)
    return complete


def migrate(options: argparse.Namespace) -> bool:
    """Rename results of earlier versions."""
    from latte_pl.ablation.migrate import migrate as migrate_results

    print(migrate_results(_studies(options.study), options.root))
    return True


def check_gpus(trials: Sequence[Trial], options: argparse.Namespace) -> None:
    """Check that trials on SLURM use all GPUs that they ask for.

    Raises:
        ValueError: ``--gpus`` differs from ``trainer.devices``.
    """
    if options.executor != "slurm":
        return
    for trial in trials:
        trainer = trial.config["trainer"]
        devices = 0 if trainer["accelerator"] == "cpu" else trainer["devices"]
        if isinstance(devices, int) and devices != options.gpus:
            raise ValueError(f"{trial.row} has trainer.devices={devices} GPUs, but --gpus is {options.gpus}")


if __name__ == "__main__":
    main()
