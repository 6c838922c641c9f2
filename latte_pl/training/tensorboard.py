"""TensorBoard beyond scalars: hyperparameters beside the metrics, a page of charts, what the samples show."""

from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from latte_pl.training.callbacks import SampleVideos
from latte_pl.training.module import LatteModule

METRICS = ("val/loss", "val/toy_video_distance", "val/fvd")
"""Metrics beside the hyperparameters; those that a run does not log stay empty."""
AXES = ("net.variant", "net.injection", "net.patch_embed", "net.temporal_position", "lr")
"""Hyperparameters that TensorBoard shows first; it shows five unless others are ticked."""
LAYOUT = {
    "training": {
        "loss": ["Multiline", ["train/loss$", "val/loss$"]],
        "held-out loss": ["Multiline", ["val/loss$"]],
        "distance": ["Multiline", ["val/toy_video_distance", "val/fvd"]],
        "clips per second": ["Multiline", ["train/clips_per_second"]],
    }
}
"""Charts of the tab "Custom scalars"; a chart names the scalars that it shows as regular expressions."""
COLUMNS = 8
"""Columns of a contact sheet, see `latte_pl.training.media.contact_sheet`."""


class TensorBoardPages(Callback):
    """Write hyperparameters, a page of charts and the labels of the samples to TensorBoard when training starts.

    - "HParams" compares the settings of runs with their held-out loss and distance.
    - "Custom scalars" shows training and held-out loss, distance and speed on one page.
    - "Text" names the class or the caption of each animation of the tag ``samples``.

    Other loggers are left alone.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the pages of each TensorBoard logger."""
        experiment, start, self._end = hyperparameters(settings(trainer, pl_module))
        for writer in writers(trainer):
            writer.file_writer.add_summary(experiment)
            writer.file_writer.add_summary(start)
            writer.add_custom_scalars(LAYOUT)
            if names := sample_names(trainer, pl_module):
                writer.add_text("samples/labels", table_of(names), trainer.global_step)
            writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mark the run as finished on the page of hyperparameters."""
        for writer in writers(trainer):
            writer.file_writer.add_summary(self._end)


def writers(trainer: Trainer) -> list[Any]:
    """Return the TensorBoard writers of a run; none on processes other than the first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in loggers] if trainer.is_global_zero else []


def hyperparameters(values: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Return the summaries of hyperparameters: names and metrics, the values of a run, and the end of the run.

    Unlike ``SummaryWriter.add_hparams``, which writes to a folder of its own, they log no first value of a metric.
    """
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard.summary import hparams

    experiment, start, end = hparams(dict(values), dict.fromkeys(METRICS, 0.0))
    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in AXES  # TensorBoard sorts these to the front
    plugin.content = data.SerializeToString()
    return experiment, start, end


def settings(trainer: Trainer, module: LightningModule) -> dict[str, bool | int | float | str]:
    """Return the settings of a run by short names, such as ``net.variant``, without those that are empty."""
    found = flatten(dict(module.hparams))
    data = getattr(trainer, "datamodule", None)
    if data is not None:
        found["data"] = type(data).__name__
        names = ("global_batch_size", "num_frames", "interval", "num_images", "size")
        found |= {f"data.{name}": getattr(data, name) for name in names if hasattr(data, name)}
    found |= {"precision": str(trainer.precision), "devices": trainer.world_size, "max_steps": trainer.max_steps}
    values = {name: str(value) if isinstance(value, list | tuple) else value for name, value in found.items()}
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values with dotted names. A component is its class, and its arguments follow its name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and "class_path" in value:
            found[prefix + name] = str(value["class_path"]).rpartition(".")[2]
            value = value.get("init_args", {})
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def sample_names(trainer: Trainer, module: LightningModule) -> list[str]:
    """Return the class or the caption of each animation of `SampleVideos`; empty for an unconditional model."""
    callback = next((found for found in trainer.callbacks if isinstance(found, SampleVideos)), None)  # type: ignore[attr-defined]
    data = getattr(trainer, "datamodule", None)
    if callback is None or not isinstance(module, LatteModule):
        return []
    if module.net.conditioning == "text":
        return list(data.prompts(callback.num_samples)) if data is not None else []
    if module.net.conditioning != "class":
        return []
    names = list(getattr(data, "class_names", [])) or [str(n) for n in range(module.net.num_classes)]
    return [names[n % module.net.num_classes] for n in range(callback.num_samples)]


def table_of(names: list[str]) -> str:
    """Return names as a Markdown table with the rows and columns of a contact sheet."""
    columns = min(len(names), COLUMNS)
    rows = [names[first : first + columns] for first in range(0, len(names), columns)]
    rows[-1] += [""] * (columns - len(rows[-1]))
    head = ["|" + " | ".join(str(n + 1) for n in range(columns)) + "|", "|" + "---|" * columns]
    return "\n".join([*head, *("|" + " | ".join(row) + "|" for row in rows)])
