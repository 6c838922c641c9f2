"""The command `latte`: one file per command in this folder, imported when the command runs."""

import ast
import importlib
import io
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

COMMANDS = (
    *("fit", "validate", "test", "predict"),
    *("encode", "evaluate", "compare", "average", "export", "info", "data"),
)
"""Commands in the order of `latte --help`. Command X is the function `main(args)` of latte_pl/cli/X.py."""
WORKER_ERROR = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\nOriginal Traceback")


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. A user's mistake ends with one line; `LATTE_TRACEBACK=1` shows where it was raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # print names that the terminal's encoding lacks as escapes
            stream.reconfigure(errors="backslashreplace")
    command, *rest = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return
    try:
        if command not in COMMANDS:
            raise ValueError(f"there is no command {command!r}; the commands are: {', '.join(COMMANDS)}")
        importlib.import_module(f"latte_pl.cli.{command}").main(rest)
    except Exception as raised:
        error = unwrapped(raised)
        if os.environ.get("LATTE_TRACEBACK") or not is_mistake(error):
            raise
        hint = f" (see latte {command} --help)" if isinstance(error, ArgumentError) else ""
        print(f"latte: error: {one_line(error)}{hint}", file=sys.stderr)
        sys.exit(2)


def is_mistake(error: Exception) -> bool:
    """Whether an error is one of the user's: its message says what to change."""
    # Lightning's own error is known by its name, since importing Lightning takes seconds
    return (
        isinstance(error, ValueError | OSError | ArgumentError)
        or type(error).__name__ == "MisconfigurationException"
        or str(error).startswith("DataLoader worker")  # the system ended a loader process, for example without memory
    )


def unwrapped(error: Exception) -> Exception:
    """Return the error of a constructor, which jsonargparse wraps in one about types where the class is optional."""
    wrapped = isinstance(error, ValueError) and "Does not validate against any of the Union subtypes" in str(error)
    return error.__cause__ if wrapped and isinstance(error.__cause__, Exception) else error


def usage() -> str:
    """Return the text of `latte --help`; summaries are the first lines of the commands' docstrings."""
    lines = ["usage: latte COMMAND ...", "", "Train and evaluate latent diffusion transformers for video.", ""]
    lines += [f"  {command:<10}{_summary(command)}" for command in COMMANDS]
    return "\n".join([*lines, "", "latte COMMAND --help shows the arguments. latte-ablate runs ablation studies."])


def _summary(command: str) -> str:
    """Return the first line of a command's docstring, without importing the command."""
    tree = ast.parse(Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; of an error in a loader process, the message that it had there."""
    text = str(error)
    if found := WORKER_ERROR.match(text):  # torch puts the traceback of the process into the message
        *_, last = re.finditer(rf"^(?:[\w.]+\.)?{found[1]}: ", text, re.MULTILINE)
        text = text[last.end() :]
    return " ".join(text.split())
