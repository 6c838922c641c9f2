"""The wheel works outside of the repository, with the core dependencies alone.

The fixture builds the wheel from a copy of the sources and installs it into an empty virtual environment. Its
dependencies are links to the distributions of the running environment: those that the wheel requires without extras,
directly or indirectly, and no others. So nothing is downloaded, and a dependency that only an extra has is missing.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SITE = Path(sysconfig.get_path("purelib"))
TESTED_EXTRAS = ("transformers", "sentencepiece", "wandb", "mkdocs", "pytest")

pytestmark = pytest.mark.slow


def required(requirements: list[str]) -> dict[str, Distribution]:
    """Return the distributions that requirements need, directly or indirectly, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(requirement, "") for requirement in map(Requirement, requirements)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        known = name in found
        if not known:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # pip would install it; here a missing one shows where it is imported
        for extra in ([] if known else [""]) + sorted(requirement.extras):
            waiting += [(Requirement(text), extra) for text in found[name].requires or []]
    return found


def link(dependencies: dict[str, Distribution], folder: Path) -> None:
    """Link the files of distributions into the site-packages of another environment."""
    for dependency in dependencies.values():
        for name in {Path(str(file)).parts[0] for file in dependency.files or []} - {"..", "/", "__pycache__"}:
            if not (folder / name).exists() and not name.endswith(".pth"):
                (folder / name).symlink_to(Path(str(dependency.locate_file(name))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "results")
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in ("latte_pl", "ablations"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = folder.glob("latte_pl-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return a function that runs commands of the installed wheel in an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    (metadata,) = distributions(name="latte_pl", path=[str(site)])
    link(required(metadata.requires or []), site)
    place = folder / "elsewhere"
    place.mkdir()

    def run(*command: str, fails: bool = False) -> str:
        process = subprocess.run(
            [str(environment / "bin" / command[0]), *command[1:]],
            cwd=place,
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
            capture_output=True,
            text=True,
        )
        output = process.stdout + process.stderr
        assert (process.returncode != 0) == fails, output
        return output

    run.place, run.site = place, site
    return run


def test_the_core_alone_is_installed(installed):
    code = "import latte_pl, importlib.util as u; print(latte_pl.__file__); print([n for n in {!r} if u.find_spec(n)])"
    file, extras = installed("python", "-c", code.format(TESTED_EXTRAS)).splitlines()
    assert Path(file).is_relative_to(installed.site)
    assert extras == "[]"


def test_metadata_names_licence_and_version(installed):
    (metadata,) = distributions(name="latte_pl", path=[str(installed.site)])
    version = re.search(r'__version__ = "(.+)"', (ROOT / "latte_pl/__init__.py").read_text())[1]
    assert metadata.version == version
    assert metadata.metadata["License-Expression"] == "Apache-2.0"
    names = {Path(str(file)).name for file in metadata.files}
    assert {"LICENSE", "NOTICE", "py.typed"} <= names
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_shipped_file_is_in_the_wheel(installed):
    shipped = {
        path.relative_to(ROOT)
        for path in (ROOT / "latte_pl").rglob("*")
        if path.is_file() and path.suffix not in (".md", ".png", ".pyc")
    }
    studies = {path.relative_to(ROOT / "ablations") for path in (ROOT / "ablations").glob("**/*.yaml")}
    studies = {path for path in studies if path.parts[0] != "results"}
    assert len(shipped) > 100
    assert len(studies) > 8
    assert [path for path in sorted(shipped) if not (installed.site / path).is_file()] == []
    assert [path for path in sorted(studies) if not (installed.site / "latte_pl/studies" / path).is_file()] == []


def test_commands_print_their_help(installed):
    output = installed("latte", "--help")
    assert "predict" in output
    assert "--trainer.max_steps" in installed("latte", "fit", "--help")


def test_studies_are_listed_and_planned(installed):
    assert "temporal_position" in installed("latte-ablate", "list")
    output = installed("latte-ablate", "run", "quickstart", "--dry-run")
    assert "latte fit" in output
    assert "model.net.injection=tokens" in output


def test_shipped_weights_draw_two_samples(installed):
    samples = ("--num_samples", "2", "--model.sampling.steps", "2", "--output", "samples")
    installed("latte", "predict", "--ckpt_path", "shapes", *samples, "--trainer.accelerator", "cpu")
    files = {path.suffix for path in (installed.place / "samples").rglob("*") if path.is_file()}
    assert {".mp4", ".gif", ".png"} <= files


def test_shipped_configurations_are_found_by_name(installed):
    output = installed("latte", "info", "-c", "data/shapes.yaml", "-c", "model/tiny.yaml")
    assert "parameters" in output


def test_an_absent_extra_is_one_line(installed):
    small = ("-c", "data/shapes.yaml", "-c", "model/tiny.yaml")
    text = ("--model.net.conditioning", "text", "--model.net.text_dim", "8")
    encoder = ("--model.text_encoder", "latte_pl.autoencoders.T5Encoder", "--model.text_encoder.source", "a/b")
    logger = ("--trainer.logger", "lightning.pytorch.loggers.WandbLogger", "--trainer.logger.offline", "true")
    for missing, arguments in (("transformers", (*text, *encoder)), ("wandb", logger)):
        *_, line = installed("latte", "fit", *small, *arguments, fails=True).strip().splitlines()
        assert line.startswith("latte: error:")
        assert missing in line
