"""What a user meets first: the public names, and the help of the commands."""

import json
import subprocess
import sys

import pytest

import latte_pl
from latte_pl import cli

HEAVY = ("torch", "lightning", "torchvision", "jsonargparse", "numpy")


def modules_after(code):
    """Run code in a new interpreter, and return the heavy modules that it imports."""
    report = f"; import sys, json; print('\\n' + json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def test_import_of_the_package_is_light():
    assert modules_after("import latte_pl; dir(latte_pl); latte_pl.__version__") == []


def test_help_imports_neither_torch_nor_lightning():
    assert modules_after("from latte_pl import cli; cli.main(['--help'])") == []


@pytest.mark.parametrize("name", latte_pl.__all__)
def test_public_name_is_imported_when_it_is_used(name):
    value = getattr(latte_pl, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(latte_pl)


def test_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'latte_pl' has no attribute 'Late'"):
        latte_pl.Late  # noqa: B018


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_its_summary(args, capsys):
    cli.main(args)
    lines = capsys.readouterr().out.splitlines()
    for command in cli.COMMANDS:
        (line,) = (line for line in lines if line.startswith(f"  {command} "))
        assert len(line.split(maxsplit=1)[1]) > 20


COMMANDS = [[command] for command in cli.COMMANDS] + [["data", "check"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_help_describes_its_arguments(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: latte {command[0]} ")
    assert output.err == ""


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("fit", ["--model.lr LR", "default: 0.0001", "--trainer.max_steps", "--samples.every_n_steps", "--ckpt_path"]),
        ("test", ["--protocol PROTOCOL", "default: toy-256-8f", "--model.sampling.steps"]),
        ("predict", ["--labels", "--prompts", "--num_samples", "--output"]),
        ("average", ["--sigma_rels", "default: (0.03, 0.05, 0.1, 0.15, 0.2, 0.25)", "--precision"]),
        ("info", ["--batch_size BATCH_SIZE", "--model.net"]),
    ],
)
def test_command_help_has_the_arguments_with_their_defaults(command, arguments, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for argument in arguments:
        assert argument in text
