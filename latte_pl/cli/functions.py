"""Commands that are typed functions: the command line follows from signature and docstring."""

from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import auto_cli


def run(
    command: str, function: Callable[..., Any] | dict[str, Any], args: Sequence[str], positional: bool = True
) -> Any:
    """Call a function with the values of a command line, and return its result.

    Args:
        command: What the user typed, such as "latte export".
        function: The function, or functions by name of their sub-command.
        args: The arguments.
        positional: Whether parameters without a default are positional arguments.

    Raises:
        argparse.ArgumentError: The arguments do not fit the function.
    """
    return auto_cli(function, args=list(args), as_positional=positional, prog=command, exit_on_error=False)
