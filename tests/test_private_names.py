"""The package uses the public interfaces of Lightning and jsonargparse alone."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import jsonargparse
import pytest
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loops import _EvaluationLoop, _FitLoop, _PredictionLoop, _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn

import latte_pl

ROOT = Path(latte_pl.__file__).parent
LIBRARIES = ("lightning", "jsonargparse")

SIGNALS = (
    "Lightning 2.6: its signal handlers broadcast inside the handler, which deadlocks while another process waits in "
    "the backward pass, and nothing public turns them off"
)
ALLOWED = {
    ("latte_pl.training.strategies.FullyShard", "_data_parallel_size"): (
        'Lightning 2.6: "auto" divides nodes and devices among data and tensor parallelism, and the number of '
        "processes is known only in setup_environment"
    ),
    ("training/preemption.py", "_signal_connector"): SIGNALS,
    ("training/preemption.py", "_broadcast_sigterm_tensor"): SIGNALS,
    (
        "training/preemption.py",
        "_should_check_val_fx",
    ): "Lightning 2.6: a stop always validates, whether it is due or not",
    ("training/preemption.py", "_data_fetcher"): "argument of _should_check_val_fx",
}
"""Private names by the class that overrides or the file that uses them: why, and in which version."""


def modules():
    """Return all modules of the package."""
    names = [module.name for module in pkgutil.walk_packages([str(ROOT)], "latte_pl.")]
    return [importlib.import_module(name) for name in names if name != "latte_pl.__main__"]


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def is_foreign(class_):
    return class_.__module__.partition(".")[0] in LIBRARIES


def tree_of(class_):
    return ast.parse(inspect.cleandoc("\n" + inspect.getsource(class_)))


def attributes_of_self(class_):
    """Return the private attributes of ``self`` and ``cls`` in the code of a class."""
    nodes = [node for node in ast.walk(tree_of(class_)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) in ("self", "cls") and is_private(node.attr)}


def private_names(class_):
    """Return the private names of a class of a library, without those that all modules of PyTorch have."""
    names = {name for name in dir(class_) if is_private(name)}
    for base in class_.__mro__:
        if is_foreign(base):
            names |= attributes_of_self(base)
    return names - set(dir(nn.Module())) - {"_abc_impl"}


def own_classes():
    """Return the classes of the package that derive from a class of a library, with their full names."""
    found = {}
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and any(map(is_foreign, value.__mro__)):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def inherited(class_):
    """Return the private names of libraries' classes that a class overrides, sets, reads or calls on itself."""
    names = {name for name in vars(class_) if is_private(name)} | attributes_of_self(class_)
    return names & set().union(*(private_names(base) for base in class_.__mro__ if is_foreign(base)))


PRIVATE = set().union(
    *map(
        private_names,
        (
            Trainer,
            LightningModule,
            LightningDataModule,
            LightningCLI,
            LightningArgumentParser,
            SaveConfigCallback,
            Callback,
            Checkpoint,
            BasePredictionWriter,
            TQDMProgressBar,
            TorchCheckpointIO,
            Strategy,
            DDPStrategy,
            ModelParallelStrategy,
            _FitLoop,
            _TrainingEpochLoop,
            _EvaluationLoop,
            _PredictionLoop,
            jsonargparse.ArgumentParser,
        ),
    )
)


def names_used(tree):
    """Yield (expression, name) for every private attribute of a library that code reads, sets or calls.

    Those of ``self`` are left to `inherited`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PRIVATE and ast.unparse(node.value) not in ("self", "cls"):
            yield ast.unparse(node.value), node.attr


def private_imports(tree):
    """Yield every private module or name that is imported from a library."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first in LIBRARIES and any(map(is_private, rest)):
                yield name


FILES = sorted(ROOT.rglob("*.py"))


def test_private_names_are_neither_overridden_nor_inherited():
    found = {(name, attribute) for name, class_ in own_classes().items() for attribute in inherited(class_)}
    assert found == {key for key in ALLOWED if not key[0].endswith(".py")}


def test_private_names_are_not_used():
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in FILES
        for _, name in names_used(ast.parse(path.read_text()))
    }
    assert found == {key for key in ALLOWED if key[0].endswith(".py")}


def test_private_modules_and_names_are_not_imported():
    assert [name for path in FILES for name in private_imports(ast.parse(path.read_text()))] == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("trainer._run(model)", [("trainer", "_run")]),
        ("x = cli.parser._parse_common", [("cli.parser", "_parse_common")]),
        (
            "trainer.fit_loop.epoch_loop._batches_that_stepped = 3",
            [("trainer.fit_loop.epoch_loop", "_batches_that_stepped")],
        ),
        ("self.trainer.strategy._launcher.launch()", [("self.trainer.strategy", "_launcher")]),
        ("trainer.fit(model)", []),
        ("self._window = []", []),
    ],
)
def test_uses_are_found(code, expected):
    assert list(names_used(ast.parse(code))) == expected


def test_overrides_and_imports_are_found():
    class OwnCLI(LightningCLI):
        def _run_subcommand(self, subcommand):
            pass

        def instantiate_classes(self):
            self._own = self._get(self._parser, "model")

    assert inherited(OwnCLI) == {"_run_subcommand", "_get", "_parser"}
    code = "import jsonargparse._core\nfrom lightning.pytorch.loops import _FitLoop\nfrom lightning import Trainer"
    assert list(private_imports(ast.parse(code))) == [
        "jsonargparse._core",
        "lightning.pytorch.loops._FitLoop",
    ]
