"""Print the records of several models as one table."""

import json
from collections.abc import Sequence
from itertools import takewhile

from latte_pl.cli.functions import run


def main(args: Sequence[str]) -> None:
    """Run `latte compare`."""
    paths = list(takewhile(lambda arg: not arg.startswith("-"), args))
    joined = [json.dumps(paths)] if paths else []  # the parser expects a list as one argument
    run("latte compare", compare, [*joined, *args[len(paths) :]])


def compare(records: list[str], published: bool = True) -> None:
    """Print the records of several models as one table. All records must have the same evaluation protocol.

    For the data sets of the paper, the published values follow in a column of their own, with how they are known.

    Args:
        records: Files that `latte test` or `latte evaluate` wrote.
        published: Whether to show the published values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not a record, or two records have different protocols.
    """
    from latte_pl.metrics import Record, text

    print(text([Record.read(path) for path in records], published))
