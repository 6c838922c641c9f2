"""LightningCLI for the commands that train or use a model: configurations compose, and explicit values win."""

import argparse
import importlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import latte_pl
from latte_pl.data import UCF101, FaceForensics, Folder, SkyTimelapse, TaichiHD  # noqa: F401 -- for --data NAME
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.evaluation.distance import VideoDistance
from latte_pl.toy import Shapes  # noqa: F401 -- for --data NAME
from latte_pl.training import weights
from latte_pl.training.callbacks import SampleVideos
from latte_pl.training.checkpoints import RunCheckpoint
from latte_pl.training.components import instantiate
from latte_pl.training.module import LatteModule

CONFIGS = Path(__file__).parents[1] / "configs"
TRAINER_DEFAULTS = {
    "max_epochs": -1,
    "enable_model_summary": False,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}


class LatteCLI(LightningCLI):
    """Parse the configuration of a command and build model, data and trainer.

    Configuration files compose from left to right. Explicit arguments win over files, and both win over the
    configuration of ``--ckpt_path``. Settings of the model that follow from the data (frames, latent size, classes) are
    taken from the data unless they are given.

    Args:
        command: Name of the command.
        args: Its arguments.
        description: First line of its help.
    """

    def __init__(self, command: str, args: Sequence[str], description: str) -> None:
        quiet()
        self.command = command
        super().__init__(
            LatteModule,
            VideoDataModule,
            run=False,
            save_config_callback=SaveConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": f"latte {command}", "description": description, "exit_on_error": False},
            args=compose(args, keep_trainer=command == "fit"),
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, model and data."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(LatteModule, "model")
        # not as an optional class: its error messages would be about None
        group = parser.add_argument_group("Data", name="data")
        group.add_argument("--data", type=VideoDataModule, required=True, help="A datamodule and its arguments.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name, the checkpoint, and the callbacks of training."""
        parser.add_argument("--name", type=str, default="latte", help="Name of the run; its folder is runs/NAME.")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            help="A checkpoint, a run's folder, an exported .safetensors file, an official .pt file, "
            "hf://OWNER/REPO/FILE[@REVISION], or the name of shipped (shapes) or official weights (official/ffs).",
        )
        parser.add_lightning_class_args(SampleVideos, "samples")
        parser.add_lightning_class_args(VideoDistance, "distance")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoints")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and remember which settings are given."""
        self.config = parser.parse_args(args)
        self.given = parser.parse_args(args, defaults=False)

    def before_instantiate_classes(self) -> None:
        """Fill in settings that are derived from other settings, unless the user set them."""
        config, given = self.config, self.given
        net = config.model.net.get("init_args", {})
        stated = given.get("model.net.init_args", {})
        for name, value in self.implied().items():
            if name in net and name not in stated:
                net[name] = value
        for key in ("model.seed", "data.init_args.seed"):
            if key not in given:
                config[key] = int(config.seed_everything)

    def implied(self) -> dict[str, Any]:
        """Return the settings of the denoiser that follow from data and autoencoder."""
        data, autoencoder = self.config.data, self.config.model.autoencoder
        channels, factor = class_at(autoencoder.class_path).latent_format(**autoencoder.get("init_args", {}))
        size = data.init_args.size
        height, width = (size, size) if isinstance(size, int) else size
        implied = {
            "num_frames": data.init_args.num_frames,
            "in_channels": channels,
            "input_size": [height // factor, width // factor],
        }
        net, stated = self.config.model.net.get("init_args", {}), self.given.get("model.net.init_args", {})
        if net.get("conditioning") == "class" and "num_classes" not in stated:
            num_classes = class_at(data.class_path).num_classes
            implied["num_classes"] = num_classes or len(instantiate(VideoDataModule, data.as_dict()).class_names)
        return implied


class ParsedCLI(LatteCLI):
    """Parse the configuration of a command and build nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


class SaveConfig(SaveConfigCallback):
    """Save the resolved configuration in the run's folder and in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, so that the checkpoint can be used without further settings."""
        checkpoint["config"] = plain(self.parser, self.config)


def class_at(class_path: str) -> Any:
    """Return the class of a complete class path."""
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class Arguments(NamedTuple):
    """The arguments of a command in order of priority, the lowest first."""

    ckpt_path: str | None
    configs: list[str]
    explicit: list[str]

    @classmethod
    def split(cls, args: Sequence[str]) -> "Arguments":
        """Split the arguments of a command as the user wrote them."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("-c", "--config", action="append", default=[])
        parser.add_argument("--ckpt_path")
        known, explicit = parser.parse_known_args(list(args))
        return cls(known.ckpt_path, known.config, explicit)


def compose(args: Sequence[str], keep_trainer: bool = False) -> list[str]:
    """Order the arguments by priority: the defaults or the checkpoint's, then files, then explicit values.

    Args:
        args: Arguments as the user wrote them. Configuration files are paths or names of shipped files.
        keep_trainer: Whether to use the trainer settings of the checkpoint, too.

    Raises:
        FileNotFoundError: There is no such configuration file or checkpoint.
        ValueError: The checkpoint has no configuration.
    """
    ckpt_path, names, explicit = Arguments.split(args)
    configs = [find_config(name) for name in names]
    if ckpt_path is None:
        return [f"--config={config}" for config in (find_config("default.yaml"), *configs)] + explicit
    from latte_pl.interop import read_config

    saved = read_config(ckpt_path)
    saved = {name: saved[name] for name in saved if keep_trainer or name in weights.USED}
    # a seed that was derived from seed_everything is derived again
    parts = [saved.get("model", {}), (saved.get("data") or {}).get("init_args", {})]
    for part in parts:
        if "seed" in part and part["seed"] == saved.get("seed_everything"):
            del part["seed"]
    configs.insert(0, json.dumps({name: value for name, value in saved.items() if name not in ("ckpt_path", "config")}))
    return [*(f"--config={config}" for config in configs), *explicit, f"--ckpt_path={ckpt_path}"]


def find_config(name: str) -> str:
    """Return the path of a configuration file: as given, or among the shipped files. JSON text is returned as it is.

    Raises:
        FileNotFoundError: The file does not exist; the message lists the shipped files.
        ValueError: The file cannot be read.
    """
    if name.startswith("{"):
        return name
    for path in (Path(name), CONFIGS / name):
        if path.is_file():
            check_config(path)
            return str(path)
    shipped = ", ".join(
        sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "protocol")
    )
    raise FileNotFoundError(f"there is no configuration {name}; the shipped ones are {shipped}")


class _UniqueKeys(yaml.SafeLoader):
    """Read YAML, but refuse a key that occurs twice, of which the first value would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for n, key in enumerate(keys):
            if key in keys[:n] and key != "<<":
                raise ValueError(f"the setting {key!r} occurs twice, in line {node.value[n][0].start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def check_config(path: Path) -> None:
    """Check that a configuration file can be read.

    Raises:
        ValueError: It is no YAML in UTF-8, is empty, or has a setting twice; the message names the file.
    """
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), _UniqueKeys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason}); save it in UTF-8") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ValueError(f"{path} is no valid YAML: {getattr(error, 'problem', error)} in line {line}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} contains no settings")


def plain(parser: Any, config: Any) -> dict[str, Any]:
    """Return a parsed configuration in plain types, without the files that it was read from."""
    text = parser.dump(config, skip_none=False, format="json", skip_validation=True)
    return {name: with_homes(value) for name, value in json.loads(text).items() if name not in ("config", "ckpt_path")}


def with_homes(value: Any) -> Any:
    """Replace short class paths (`latte_pl.Latte`) by those of the packages (`latte_pl.nn.Latte`)."""
    if isinstance(value, dict):
        return {name: with_homes(part) for name, part in value.items()}
    package, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    return f"latte_pl.{latte_pl.HOMES[name]}.{name}" if package == "latte_pl" and name in latte_pl.HOMES else value


def resolve(args: Sequence[str]) -> dict[str, Any]:
    """Return the complete configuration, defaults included, that `latte fit ARGS` would use.

    Args:
        args: Arguments of `latte fit`; a leading "fit" is ignored.

    Raises:
        argparse.ArgumentError: An argument is wrong.
        ValueError: An argument is wrong.
    """
    rest = list(args[1:] if args[:1] == ("fit",) or list(args[:1]) == ["fit"] else args)
    cli = ParsedCLI("fit", rest, "")
    return plain(cli.parser, cli.config)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as one dictionary with dotted names."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, part in config.items() for k, v in flatten(part, f"{prefix}.{name}".lstrip(".")).items()}


def quiet() -> None:
    """Hide warnings of libraries that need no action."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 under newer torch
        ".*in eval mode at the start of training.*",  # the EMA stays in eval mode
        ".*does not have many workers.*",
        ".*across ranks is zero.*",  # a process of `latte test` may have no sample left to draw
        ".*overridden `on_before_batch_transfer`.*",  # the module's hook is the only one
        ".*Couldn't infer the batch indices.*",  # each request contains its index
        ".*`IterableDataset` has `__len__` defined.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*instantiate_classes.*deprecated.*",  # Lightning 2.6 under newer jsonargparse
        ".*args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", text)
