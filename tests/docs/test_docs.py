"""Every code block of the documentation runs, or says why not; its commands exist and its settings are accepted.

Comments above a block say how it is run:

- ``<!-- skip: reason -->``: not at all; commands of `latte fit` are still resolved.
- ``<!-- file: NAME -->``: it is written to a file of the page's folder.

Comments at the top of a page: ``<!-- slow -->`` runs it with the slow tests, ``<!-- checkout -->`` gives it a copy of
the repository to work in. The blocks of a page run in their order, in one empty folder.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "latte_pl/data/README.md", "latte_pl/weights/README.md")]
RUNS = ("bash", "python", "pycon")
BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A code block of a page, and the comments above it."""

    language: str
    code: str
    skip: str = ""
    file: str = ""


def blocks(path):
    found = []
    for comments, language, code in BLOCK.findall(path.read_text(encoding="utf-8")):
        marks = dict(re.findall(r"<!-- (skip|file): (.+?) -->", comments))
        found.append(Block(language, code, **marks))
    return found


def name(path):
    return path.relative_to(ROOT).as_posix()


def marked(path):
    slow = path.read_text(encoding="utf-8").startswith("<!-- slow -->")
    return pytest.param(path, id=name(path), marks=[pytest.mark.slow] if slow else [])


def commands(block):
    """Yield the commands of a shell block as lists of words."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", [marked(path) for path in PAGES if any(b.language in RUNS for b in blocks(path))])
def test_code_blocks_run(path, tmp_path):
    if "<!-- checkout -->" in path.read_text(encoding="utf-8"):
        for folder in ("latte_pl", "ablations", "tests/nn"):
            ignored = shutil.ignore_patterns("__pycache__", "results", "*.safetensors")
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
    }
    for block in blocks(path):
        if block.skip:
            continue
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
        elif block.language in RUNS:
            shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            process = subprocess.run(
                [*shell, block.code], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert process.returncode == 0, f"{block.code}\n{process.stdout}\n{process.stderr}"


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=name)
def test_settings_of_commands_are_accepted(path):
    """Resolve each `latte fit`, also of blocks that are too slow, or need data or GPUs, to run."""
    from latte_pl.cli import COMMANDS
    from latte_pl.cli.config import resolve

    for block in blocks(path):
        if block.language != "bash" or not (block.skip or path in OTHERS):
            continue  # not a command, or one that runs
        for words in commands(block):
            if "latte_pl" in words and "-m" in words:  # python -m latte_pl, torchrun -m latte_pl
                words = ["latte", *words[words.index("latte_pl") + 1 :]]
            if "latte" not in words:
                continue
            command, *arguments = words[words.index("latte") + 1 :]
            assert command in (*COMMANDS, "--help", "COMMAND"), command
            if command == "fit":
                if "--ckpt_path" in arguments:  # of a run that does not exist here
                    place = arguments.index("--ckpt_path")
                    del arguments[place : place + 2]
                assert resolve([part for part in arguments if part != "..."])["model"]
