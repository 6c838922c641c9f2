"""The results of a study for TensorBoard: curves, samples and hyperparameters of every trial."""

import shutil
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.measures import MEASURES


def write_curves(comparison: Comparison, folder: Path) -> None:
    """Write one TensorBoard run per trial, named row/seed. The folder is emptied first.

    Args:
        comparison: The results.
        folder: Log folder of the study.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for row, results in comparison.results.items():
        for seed, result in results.items():
            writer = SummaryWriter(str(folder / row.replace("/", "-") / f"seed={seed}"))
            for tag, curve in result["curves"].items():
                for step, value in curve:
                    writer.add_scalar(tag, value, step)
            axes = {key: value for key, value in result["axes"].items() if isinstance(value, str | int | float)}
            values = {measure.key: measure.value(result) for measure in MEASURES.values()}
            metrics = {key: value for key, value in values.items() if value is not None}
            for tag, value in metrics.items():
                writer.add_scalar(tag, value, result["steps"])
            file = writer._get_file_writer()
            for summary in hparams({"row": row, "seed": seed, **axes}, metrics):
                file.add_summary(summary)
            samples = comparison.samples(row, seed)
            if samples is not None:
                image = Summary.Image(encoded_image_string=samples.read_bytes())
                file.add_summary(Summary(value=[Summary.Value(tag="samples", image=image)]), result["steps"])
            writer.close()
