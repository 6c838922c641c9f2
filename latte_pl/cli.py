"""The command line: `latte fit | validate | predict | test | average | evaluate | compare | encode | ...`."""

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers.utils.logging import disable_progress_bar

from latte_pl.data import check
from latte_pl.data.datamodule import VideoDataModule
from latte_pl.interop import TextToVideo, load_dit
from latte_pl.metrics import compare
from latte_pl.streams import run_seed
from latte_pl.training import encode, weights
from latte_pl.training.average import LENGTHS
from latte_pl.training.callbacks import Curves, FitReport, SampleVideos, StepProgressBar
from latte_pl.training.checkpoints import AtomicCheckpointIO, Checkpoints, checkpoints
from latte_pl.training.distance import VideoDistance
from latte_pl.training.folders import evaluate
from latte_pl.training.module import LatteModule
from latte_pl.training.trainer import LatteTrainer

CONFIGS = Path(__file__).parent / "configs"
# commands that need neither a trainer nor a model
COMMANDS: dict[str, Callable[..., Any]] = {"export": weights.export, "evaluate": evaluate, "compare": compare}
# what of a configuration is needed to use a model, and may not change when a run goes on
TRAINED = ("model", "data", "seed_everything")
MEASURED = ("precision", "limit_val_batches")  # settings of the trainer that a held-out loss depends on
# settings that may differ when a run goes on: they change what is shown or how fast, not what is trained
FREE = (
    "model.sampling",
    "model.compile",
    "model.net.init_args.activation_checkpointing",
    "data.init_args.num_workers",
    "data.init_args.val_clips",
    "data.init_args.cache_dir",
    "data.init_args.latents",  # what they are is compared with codec and data when they are opened
    "model.pretrained.source",  # read once, when the run was new
)


class Parser(LightningArgumentParser):
    """Ends on a wrong argument with one line instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what a message says, without the parser's bookkeeping, and exit with status 2."""
        fail(self.wording(message))

    @staticmethod
    def wording(message: str) -> str:
        """Return what a message says, as one line."""
        noise = r"Does not validate|Subtypes:|Errors:|Given value( type|: Namespace)|- Expected a (path|.*NoneT)"
        lines = [line.strip() for line in str(message).splitlines()]
        text = " ".join(" ".join(line.removeprefix("- ") for line in lines if not re.match(noise, line)).split())
        text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.Literal", "").replace("NoneType", "none")
        return f"{text} (the settings: latte COMMAND --help)" if "not accepted" in text else text


class RaisingParser(Parser):
    """Raises a wrong argument instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what a message says."""
        raise ValueError(self.wording(message)) from ex


class SaveConfig(SaveConfigCallback):
    """Keeps the resolved configuration in the run's folder and in every checkpoint."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the configuration and the class names, so that a checkpoint can be used alone."""
        checkpoint["config"] = plain(self.parser, self.config)
        checkpoint["class_names"] = list(trainer.datamodule.class_names)  # type: ignore[attr-defined]


class LatteCLI(LightningCLI):
    """LightningCLI with named runs that go on where they stopped, and checkpoints that know their configuration."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and the arguments that the configuration fills."""
        ours = {"model", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            **dict.fromkeys(("validate", "predict", "test", "average", "info"), ours),
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and the callbacks that every run has."""
        parser.add_argument("--name", type=str, default="latte", help="Name of the run; its folder is runs/NAME.")
        parser.add_lightning_class_args(Curves, "curves")
        parser.add_lightning_class_args(SampleVideos, "samples")
        parser.add_lightning_class_args(VideoDistance, "distance")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: `main` has put the checkpoint's first, so that explicit values win."""

    def after_instantiate_classes(self) -> None:
        """Draw the initial weights of a new run from its seed, or take them from the model that it names."""
        if self.subcommand != "fit":
            return
        self.model.init_weights(run_seed())
        net, start = self.model.net, self.model.pretrained
        if start is None or self.config_init["fit"]["ckpt_path"]:  # a run that goes on has its own weights
            return
        table: Any = "all weights of diffusers' model; the null caption is the text encoder's of the empty prompt"
        if isinstance(net, TextToVideo):
            net.load(start.source)
            net.set_null_caption(self.model.text_encoder.tokens("")[-1:])  # T5 makes one token of it, the last
        else:
            table = load_dit(net, start.source, labels=start.labels, temporal=start.temporal)
        self.model.ema.load_state_dict(net.state_dict())
        if self.trainer.is_global_zero:
            print(f"\nstart from {start.source}\n{table}\n")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; Lightning's own method warns that arguments are given, as they always are here."""
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; for `info` the denoiser alone, without memory."""
        if self.subcommand != "info":
            super().instantiate_classes()
            return
        self.config_init, self.datamodule, info = self.config, None, self.config.info
        with torch.device("meta"):
            self.model = weights.build_net(info.model.net)
        # float16 holds what bfloat16 holds, but is refused without a GPU
        half: Any = "bf16-mixed" if "16" in str(info.trainer.precision) else None
        self.trainer = LatteTrainer(logger=False, enable_checkpointing=False, accelerator="cpu", precision=half)
        if info.num_images is None:
            info.num_images = info.data.init_args.num_images
        if info.num_averages is None:
            info.num_averages = len(LENGTHS) if info.model.average_every else 0

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer of a named run."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir or "runs")
        if not config.name or Path(config.name).is_absolute() or ".." in Path(config.name).parts:
            raise ValueError(f"name is {config.name!r}; it must name a folder inside {root}")
        folder = root / config.name
        kwargs["default_root_dir"] = str(folder)
        if self.subcommand != "fit":
            self.save_config_callback = None
            ckpt = config.get("ckpt_path") or config.get("run")
            if ckpt:  # results belong to the run that they come from
                file = weights.find(ckpt)
                in_run = file.parent.name in ("checkpoints", "averages")
                kwargs["default_root_dir"] = str(file.parent.parent if in_run else folder)
            trainer = super().instantiate_trainer(**{"logger": False, **kwargs})
            # the callbacks that every run has are for training
            for_training = (Curves, SampleVideos, Checkpoints)
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, for_training)]  # type: ignore[attr-defined]
            return trainer
        resume = resume_from(folder, config.ckpt_path, plain(self._parser("fit"), config))
        self.config_init[self.subcommand]["ckpt_path"] = resume
        if self.config_init[self.subcommand].trainer.logger is None:
            # points logged after the checkpoint belong to steps that are made again
            purge = weights.step_of(resume) + 1 if resume else 0
            kwargs["logger"] = TensorBoardLogger(
                str(root), name=config.name, version="", default_hp_metric=False, purge_step=purge
            )
        own = [FitReport()] if config.trainer.enable_progress_bar is False else [FitReport(), StepProgressBar()]
        callbacks = self.config_init[self.subcommand].trainer.callbacks or []
        kwargs["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), *own]
        plugins = self.config_init[self.subcommand].trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)


def plain(parser: Any, config: Any) -> dict[str, Any]:
    """Return a parsed configuration as plain JSON types, without the paths of the files that it came from."""
    text = parser.dump(config, skip_none=False, format="json", skip_validation=True)
    return {name: value for name, value in json.loads(text).items() if name not in ("config", "ckpt_path")}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one of dotted names."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {k: v for name, part in config.items() for k, v in flat(part, f"{prefix}.{name}".lstrip(".")).items()}


def resume_from(folder: Path, ckpt_path: str | None, config: dict[str, Any]) -> str | None:
    """Return the checkpoint that training goes on from: the run's own newest, else the one asked for, else none.

    Raises:
        ValueError: When the checkpoint cannot be gone on from, or the run is another one's.
    """
    start, done = weights.find(ckpt_path) if ckpt_path else None, checkpoints(folder / "checkpoints")
    if start is not None and start.suffix in (".safetensors", ".pt"):
        raise ValueError(f"{start} holds weights alone, no optimizer to go on with; give a run's folder or checkpoint")
    if start is not None and start.resolve() in [path.resolve() for path in done[:-1]]:
        raise ValueError(f"{folder} has gone on to {done[-1].name}; branch off from {start.name} under another --name")
    if done:
        refuse_changes(folder, config)
        return str(done[-1])
    if start is not None:
        old = weights.read(start).config
        sizes = [c["data"]["init_args"]["global_batch_size"] for c in (old, config)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{start} was trained with data.global_batch_size {sizes[0]}, this run has {sizes[1]}; steps would no "
                "longer count the same clips"
            )
        every = [c["model"].get("average_every", 0) for c in (old, config)]
        if bool(every[0]) != bool(every[1]):
            raise ValueError(f"{start} has model.average_every {every[0]}, this run {every[1]}; both or none average")
    return str(start) if start else None


def refuse_changes(folder: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with a run under another configuration.

    Raises:
        ValueError: When a setting of the model, the data or the seed differs; both values are named.
    """
    old = weights.read(folder).config
    before, now = (flat({name: part.get(name) for name in TRAINED}) for part in (old, config))
    if now.keys() - before.keys():
        before = flat(completed(old))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and not name.startswith(FREE):
            raise ValueError(
                f"{folder} holds a run with {name} = {before.get(name)}, this one has {now.get(name)}; "
                "choose another --name, or delete that folder"
            )


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Complete an older configuration by the defaults of settings that were added since; else leave it as it is."""
    old = {name: config[name] for name in TRAINED if name in config}
    try:
        cli = start(Resolver, ["fit", "--config", json.dumps(old)], RaisingParser)
    except ValueError:  # a setting of then is no more
        return old
    new = plain(cli._parser("fit"), cli.config["fit"])
    return {name: new.get(name) for name in TRAINED}


def find_config(name: str) -> str:
    """Return the path of a configuration file: as given, or among those that the package ships.

    Raises:
        FileNotFoundError: When there is neither; the shipped ones are listed.
    """
    for path in (Path(name), CONFIGS / name):
        if path.is_file():
            return str(path)
    shipped = ", ".join(sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml")))
    raise FileNotFoundError(f"no configuration {name}; shipped ones are {shipped}")


def expand(args: Sequence[str]) -> list[str]:
    """Resolve shipped configurations, and put the configuration of a checkpoint before everything explicit."""
    command, *rest = args
    out: list[str] = []
    ckpt = None
    source = "--run" if command == "average" else "--ckpt_path"
    if "--lengths" in rest:  # to the parser, a list is one argument
        first = rest.index("--lengths") + 1
        values = list(takewhile(lambda arg: not re.match(r"\[|-(?![\d.])", arg), rest[first:]))
        rest[first : first + len(values)] = [f"[{', '.join(values)}]"] if values else []
    for n, arg in enumerate(rest):
        name, _, value = arg.partition("=")
        before = rest[n - 1] if n else ""
        if before in ("-c", "--config"):
            arg = find_config(arg)
        elif name in ("-c", "--config") and value:
            arg = f"{name}={find_config(value)}"
        elif before == source:
            ckpt = arg  # whole: the name of a checkpoint has an equals sign of its own
        elif name == source and value:
            ckpt = value
        out.append(arg)
    if command == "average" and ckpt is None and not {"-h", "--help"} & set(rest):
        raise ValueError("latte average needs --run: a run's folder, or one of its checkpoints")
    if ckpt is None or command not in LatteCLI.subcommands():
        return [command, *out]
    saved = weights.read(ckpt).config
    if command != "fit":
        trainer = saved.get("trainer") or {}
        saved = {name: saved[name] for name in TRAINED if name in saved}
        if command == "average":  # measured as while training
            saved["trainer"] = {name: trainer[name] for name in MEASURED if trainer.get(name) is not None}
    return [command, "--config", json.dumps(saved), *out]


def quiet() -> None:
    """Silence the notices of libraries that ask nothing of the user."""
    disable_progress_bar()  # of loading a text encoder
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 under newer torch
        ".*in eval mode at the start of training.*",  # the moving average is meant to be
        ".*does not have many workers.*",
        ".*across ranks is zero.*",  # a rank of `latte test` may have nothing left to sample
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", text)


def fail(message: str) -> None:
    """End with one line of what is wrong."""
    print(f"latte: error: {message}", file=sys.stderr)
    sys.exit(2)


class Resolver(LatteCLI):
    """Parses a command and builds nothing."""

    def _set_seed(self) -> None:
        """Leave the seed of this process alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Draw nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def start(kind: type[LatteCLI], args: Sequence[str], parser: type[Parser] = Parser) -> LatteCLI:
    """Parse arguments whose configurations are resolved, and do what they say."""
    return kind(
        LatteModule,
        VideoDataModule,
        subclass_mode_data=True,
        trainer_class=LatteTrainer,
        parser_class=parser,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        trainer_defaults={
            "max_epochs": -1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        },
        args=list(args),
    )


def resolve(args: Sequence[str]) -> dict[str, Any]:
    """Return the whole configuration, defaults included, that a command's arguments come to.

    Raises:
        ValueError: The arguments are wrong.
    """
    cli = start(Resolver, expand(args), RaisingParser)
    return plain(cli._parser(args[0]), cli.config[args[0]])


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one line, `LATTE_TRACEBACK=1` shows where it came from."""
    args = sys.argv[1:] if args is None else list(args)
    quiet()
    try:
        if list(args[:2]) == ["data", "check"]:
            sys.exit(check.main(args[2:]))
        if args and args[0] == "encode":
            encode.main(expand(args)[1:], Parser)
            return
        if args and args[0] in COMMANDS:
            rest = args[1:]
            if args[0] == "compare" and rest and not rest[0].startswith("-"):
                rest = [json.dumps(rest)]  # to the parser, a list is one argument
            auto_cli(COMMANDS[args[0]], args=rest, as_positional=args[0] != "evaluate", parser_class=Parser)
            return
        start(LatteCLI, expand(args) if args else ["--help"])
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("LATTE_TRACEBACK"):
            raise
        fail(Parser.wording(str(error)))


if __name__ == "__main__":
    main()
