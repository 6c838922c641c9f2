"""Situations from public bug reports of command lines and configurations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import write_config

from latte_pl.cli.config import ParsedCLI, find_config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    return tmp_path


def parsed(*args: str) -> object:
    return ParsedCLI("fit", ["-c", "tiny.yaml", *args], "").config


@pytest.mark.parametrize(
    "name", ["813264e", "1e5", "007", "on", "null", "2024-01-01", "1_000", "[a]", "a: b", "tiny.yaml"]
)
def test_names_stay_text(name: str) -> None:
    """jsonargparse 672 and 516: text that looks like a number, or that names a file, is replaced."""
    assert parsed(f"--name={name}").name == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["file", "argument"])
def test_numbers_with_an_exponent_but_no_point_are_numbers(folder: Path, place: str) -> None:
    """jsonargparse 67: YAML 1.1 reads 1e-4 as text."""
    (folder / "more.yaml").write_text("model: {lr: 1e-4}\ncheckpoints: {every_n_minutes: 1e-1}\n")
    args = {"file": ["-c", "more.yaml"], "argument": ["--model.lr=1e-4", "--checkpoints.every_n_minutes=1e-1"]}
    config = parsed(*args[place])
    assert (config.model.lr, config.checkpoints.every_n_minutes) == (1e-4, 0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfmodel: {lr: 3.0e-4}\n", b"model:\r\n  lr: 3.0e-4\r\n"], ids=["BOM", "CRLF"]
)
def test_files_of_windows_editors_are_read(folder: Path, content: bytes) -> None:
    (folder / "more.yaml").write_bytes(content)
    assert parsed("-c", "more.yaml").model.lr == 3e-4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {lr: 1.0}\n".encode("utf-16"), r"more\.yaml is no text in UTF-8 .*; save it in UTF-8"),
        (b"model:\n\tlr: 1.0\n", r"more\.yaml is no valid YAML: found character .* in line 2"),
        (
            b"model: {lr: 1.0}\ntrainer: {}\nmodel: {seed: 2}\n",
            "more.yaml: the setting 'model' occurs twice, in line 3",
        ),
        (b"# nothing yet\n", "more.yaml contains no settings"),
        (b"model.lr 1.0\n", "more.yaml contains no settings"),
    ],
)
def test_unusable_file_is_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "more.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        find_config("more.yaml")


def test_anchors_may_be_merged_into_several_sections(folder: Path) -> None:
    (folder / "more.yaml").write_text("a: &a {lr: 1.0}\nb: {<<: *a, seed: 1}\nc: {<<: *a, seed: 2}\n")
    assert find_config("more.yaml") == "more.yaml"


def test_output_that_the_encoding_of_the_terminal_lacks_is_escaped() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "latte_pl", "compare", "ñandú.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr.startswith("latte: error: ")
    assert r"\xf1and\xfa.json" in done.stderr
    code = "from latte_pl import cli; cli.main(['--help']); print('ñ')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("\\xf1\n"), done.stderr
