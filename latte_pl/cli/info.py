"""Print parameters, FLOPs and training memory of a model, by part; nothing is allocated."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from latte_pl.cli.config import ParsedCLI, plain
from latte_pl.profiling.advice import precision_of
from latte_pl.profiling.cost import cost_table
from latte_pl.training.post_hoc_ema import SIGMA_RELS
from latte_pl.training.weights import outline


class InfoCLI(ParsedCLI):
    """The arguments of `latte info`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the batch of a device."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--batch_size", type=int, default=1, help="Clips that a device holds at once.")


def main(args: Sequence[str]) -> None:
    """Run `latte info`."""
    cli = InfoCLI("info", args, "Print parameters, FLOPs and training memory of a model; nothing is allocated.")
    config = plain(cli.parser, cli.config)
    if cli.config.batch_size < 1:
        raise ValueError(f"batch_size is {cli.config.batch_size}; it must be at least 1")
    net = outline(config)
    # parameters and FLOPs take one forward pass, memory takes another one with its backward pass
    with tqdm(total=2 * len(list(net.blocks)), desc="counting", unit="block", delay=2, leave=False) as bar:

        def count(*_: Any) -> None:
            bar.update()

        for block in net.blocks:
            block.register_forward_hook(count)
        table = cost_table(
            net,
            num_images=config["data"]["init_args"]["num_images"],
            batch_size=cli.config.batch_size,
            precision=precision_of(config),
            num_extra_emas=len(SIGMA_RELS) if config["model"]["ema_snapshot_every"] else 0,
        )
    print(table)
