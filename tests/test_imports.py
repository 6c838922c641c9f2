"""The lines between the parts of the package, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

import latte_pl

ROOT = Path(latte_pl.__file__).parent
SIBLINGS = ("nn", "diffusion", "codecs", "data", "metrics")
FOUNDATION = {"types", "streams"}


def imported_parts(path):
    """Yield the parts of the package that a file imports, as the first name below `latte_pl`."""
    package = ["latte_pl", *path.relative_to(ROOT).with_suffix("").parts][:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            names = [".".join([*filter(None, module), alias.name]) for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("latte_pl."))


@pytest.mark.parametrize("part", SIBLINGS)
def test_siblings_see_only_the_foundation(part):
    files = list((ROOT / part).rglob("*.py"))
    assert files
    for path in files:
        assert set(imported_parts(path)) <= {part, *FOUNDATION}, path


@pytest.mark.parametrize("part", ["nn", "diffusion"])
def test_the_core_is_free_of_lightning(part):
    for path in (ROOT / part).rglob("*.py"):
        assert "lightning" not in path.read_text(), path


def test_the_walk_sees_imports():
    assert {"codecs", "data", "diffusion", "nn", "streams", "types"} <= set(imported_parts(ROOT / "training/module.py"))


def test_no_file_has_two_jobs():
    long = {path.name: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}
