"""Measure trained weights under an evaluation protocol; an interrupted evaluation resumes."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from latte_pl.cli.config import plain
from latte_pl.cli.trained import TrainedCLI
from latte_pl.evaluation.models import ProtocolEvaluation
from latte_pl.hub import is_remote
from latte_pl.profiling.advice import SamplingStep, advised
from latte_pl.training.weights import intact


class ProtocolCLI(TrainedCLI):
    """The arguments of `latte test`."""

    draws = True

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of the evaluation."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--protocol", type=str, default="toy-256-8f", help="Name of an evaluation protocol, or a .yaml file."
        )
        parser.add_argument(
            "--extractor_path",
            type=str | None,
            help="Weights of the protocol's extractor, if they are not bundled: a file or hf://OWNER/REPO/FILE.",
        )
        parser.add_argument("--batch_size", type=int, default=16, help="Videos that a device draws at once.")
        parser.add_argument(
            "--output", type=str | None, help="Folder of records and features (default: test in the run's folder)."
        )


def main(args: Sequence[str]) -> None:
    """Run `latte test`."""
    cli = ProtocolCLI("test", args, "Measure trained weights under an evaluation protocol; resumable.")
    config = cli.config
    cli.load_weights()
    evaluation = ProtocolEvaluation(
        protocol=config.protocol,
        extractor_path=config.extractor_path,
        batch_size=config.batch_size,
        output=config.output or str(Path(cli.trainer.default_root_dir) / "test"),
        model=config.ckpt_path if is_remote(config.ckpt_path) else str(intact(config.ckpt_path)),
    )
    cli.trainer.callbacks.append(evaluation)  # type: ignore[attr-defined]
    with advised(SamplingStep(plain(cli.parser, config), config.batch_size).advice):
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        print(evaluation.report())
