"""The order of the rooms of the package, and the absence of import circles, read from the imports themselves."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import latte_pl

ROOT = Path(latte_pl.__file__).parent
FOUNDATION = {"types", "rng", "files", "hub"}
SIBLINGS = {"nn", "diffusion", "autoencoders", "data", "metrics"}
ROOMS = {
    **dict.fromkeys(SIBLINGS, FOUNDATION),
    "training": FOUNDATION | SIBLINGS,
    "toy": FOUNDATION | {"data", "metrics", "autoencoders"},
    "evaluation": FOUNDATION | SIBLINGS | {"training", "toy"},
    "interop": FOUNDATION | SIBLINGS | {"training"},
    "profiling": FOUNDATION | SIBLINGS | {"training"},
}
ROOMS["cli"] = FOUNDATION | set(ROOMS) | {""}
ROOMS["ablation"] = FOUNDATION | set(ROOMS)
"""Rooms that each room may import."""


def modules():
    """Return the file of each module of the package by its dotted name."""
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["latte_pl", *path.relative_to(ROOT).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = modules()


def imported(name):
    """Yield the modules of the package that a module imports, at its top or inside functions."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            names = [f"{module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else module for name in names]
        else:
            continue
        yield from (module for module in found if module in MODULES)


GRAPH = {name: set(imported(name)) - {name} for name in MODULES}


def room(module):
    """Return the first name below `latte_pl`."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_only_the_rooms_below_it(name):
    inside = [module for module in MODULES if room(module) == name]
    assert inside
    for module in inside:
        assert {room(other) for other in GRAPH[module]} <= {name, *ROOMS[name]}, module


def test_every_room_has_its_place():
    assert {room(module) for module in MODULES} - {"", "__main__"} == {*FOUNDATION, *ROOMS}


def test_imports_make_no_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


def test_the_graph_contains_imports_inside_functions_and_of_submodules():
    assert "latte_pl.interop" in GRAPH["latte_pl.cli.config"]
    assert {"latte_pl.training.post_hoc_ema", "latte_pl.rng", "latte_pl.types"} <= GRAPH["latte_pl.training.module"]


@pytest.mark.parametrize("name", ["nn", "diffusion"])
def test_the_core_is_free_of_lightning(name):
    for path in (ROOT / name).rglob("*.py"):
        assert "lightning" not in path.read_text(), path


HEAVY = ("diffusers", "transformers", "pandas", "scipy", "matplotlib", "av", "cleanfid", "torchvision", "tensorboard")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("latte_pl", ("torch", "lightning", *HEAVY)),
        ("latte_pl.cli", ("torch", "lightning", "jsonargparse", *HEAVY)),
        ("latte_pl.ablation.cli", ("torch", "lightning", "jsonargparse", *HEAVY)),
        ("latte_pl.nn", ("lightning", *HEAVY)),
        ("latte_pl.diffusion", ("lightning", *HEAVY)),
        ("latte_pl.autoencoders", ("lightning", *HEAVY)),
        ("latte_pl.metrics", ("torch", "lightning", *HEAVY)),
    ],
)
def test_imports_stay_light(module, absent):
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_training_imports_nothing_heavy_beyond_lightning():
    code = (
        "import sys, lightning, torchmetrics; before = set(sys.modules); import latte_pl.training; "
        f"print([name for name in {HEAVY!r} if name in sys.modules and name not in before])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
