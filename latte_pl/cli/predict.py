"""Draw samples as MP4, GIF and contact sheets."""

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from latte_pl.cli.config import plain
from latte_pl.cli.trained import TrainedCLI
from latte_pl.data.requests import sample_requests
from latte_pl.evaluation.writer import VideoWriter, file_names
from latte_pl.profiling.advice import SamplingStep, advised
from latte_pl.training.module import LatteModule


class PredictCLI(TrainedCLI):
    """The arguments of `latte predict`."""

    draws = True

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of the samples."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--num_samples", type=int | None, help="Number of videos (default: 16, or one for each prompt)."
        )
        parser.add_argument(
            "--labels",
            type=list[str | int] | None,
            help="Classes to cycle through, by name or index (default: all classes).",
        )
        parser.add_argument(
            "--prompts",
            type=str | None,
            help="File of captions to cycle through, one per line; empty lines and lines that start with # are skipped "
            "(default: captions of the validation videos).",
        )
        parser.add_argument("--batch_size", type=int, default=16, help="Videos that a device draws at once.")
        parser.add_argument(
            "--output", type=str | None, help="Folder of the files (default: predict in the run's folder)."
        )


def main(args: Sequence[str]) -> None:
    """Run `latte predict`."""
    cli = PredictCLI("predict", args, "Draw samples as MP4, GIF and contact sheets.")
    config, model = cli.config, cli.model
    prompts = read_prompts(config.prompts, model)
    num_samples = config.num_samples if config.num_samples is not None else len(prompts) or 16
    if num_samples < 1 or config.batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size is {config.batch_size}; both must be at least 1")
    if num_samples < cli.trainer.world_size:
        raise ValueError(f"{num_samples} samples are fewer than {cli.trainer.world_size} devices; use fewer devices")
    trained = cli.load_weights()
    classes = class_indices(config.labels, trained.class_names, model)
    if model.net.conditioning == "text" and not prompts:
        prompts = cli.datamodule.prompts(num_samples)
    requests = sample_requests(num_samples, classes, prompts)
    cli.datamodule.set_requests(requests, config.batch_size)
    shown = trained.class_names or [str(n) for n in range(model.net.num_classes)]
    folder = Path(config.output) if config.output else Path(cli.trainer.default_root_dir) / "predict"
    cli.trainer.callbacks.append(  # type: ignore[attr-defined]
        VideoWriter(folder, file_names(requests, shown if classes else [], bool(prompts)), fps=cli.datamodule.fps)
    )
    drawn = min(config.batch_size, num_samples)
    with advised(SamplingStep(plain(cli.parser, config), drawn).advice):
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False)


def class_indices(labels: list[str | int] | None, names: list[str], model: LatteModule) -> list[int]:
    """Return the class indices of labels, which are names or indices.

    Args:
        labels: What the user asked for; None or empty for all classes.
        names: Names of the classes.
        model: The model; without classes it accepts no labels.

    Raises:
        ValueError: A label is unknown, or the model has no classes.
    """
    if model.net.conditioning != "class":
        if labels:
            raise ValueError("the model has no classes; remove --labels")
        return []
    if not labels:
        return list(range(model.net.num_classes))
    known = {str(index): index for index in range(model.net.num_classes)}
    known |= {name: index for index, name in enumerate(names)}  # a name may look like another class's index
    for label in map(str, labels):
        if label not in known:
            raise ValueError(f"label {label!r} is unknown; use {', '.join(names)} or 0 to {model.net.num_classes - 1}")
    return [known[str(label)] for label in labels]


def read_prompts(path: str | None, model: LatteModule) -> list[str]:
    """Return the captions of a file, one per line; an empty list without a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has no captions, or the model uses none.
    """
    if path is None:
        return []
    if model.net.conditioning != "text":
        raise ValueError(f"the model's conditioning is {model.net.conditioning}, not text; remove --prompts")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file of prompts at {path}; write one caption per line")
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text; write one caption per line") from error
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{path} has no captions; write one per line")
    return found
