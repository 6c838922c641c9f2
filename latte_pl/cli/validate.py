"""Measure the held-out loss of trained weights."""

from collections.abc import Sequence

from latte_pl.cli.config import plain
from latte_pl.cli.trained import TrainedCLI
from latte_pl.profiling.advice import SamplingStep, advised


def main(args: Sequence[str]) -> None:
    """Run `latte validate`."""
    cli = TrainedCLI("validate", args, "Measure the held-out loss of the EMA weights on fixed timesteps and noise.")
    trained = cli.load_weights()
    size = max(1, cli.datamodule.global_batch_size // cli.trainer.world_size)
    config = plain(cli.parser, cli.config)
    config["model"]["sampling"]["guidance"] = 1.0  # the loss has none
    with advised(SamplingStep(config, size, "data.global_batch_size").advice):
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    if cli.trainer.is_global_zero:
        loss = float(cli.trainer.callback_metrics["val/loss"])
        print(f"val/loss {loss:.6f} of the EMA weights at step {trained.step}")
