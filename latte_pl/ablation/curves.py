"""A study's arms in TensorBoard: overlaid curves, samples, and the hparams table."""

import shutil
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from latte_pl.ablation.comparison import Comparison
from latte_pl.ablation.page import samples_of


def write_curves(comparison: Comparison, folder: Path) -> None:
    """Write one TensorBoard run a trial, named row/seed, in place of what was there.

    Args:
        comparison: The results.
        folder: The log folder of the study.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for row, results in comparison.results.items():
        for seed, result in results.items():
            name = row.replace("/", "-")
            writer = SummaryWriter(str(folder / name / f"seed={seed}"))
            for tag, curve in result["curves"].items():
                for step, value in curve:
                    writer.add_scalar(tag, value, step)
            axes = {key: value for key, value in result["axes"].items() if isinstance(value, str | int | float)}
            measured = {"held_out_loss": result["held_out"]["loss"]}
            if result["distance"]:
                measured["video_distance"] = result["distance"]["value"]
            file = writer._get_file_writer()
            for summary in hparams({"row": row, "seed": seed, **axes}, measured):
                file.add_summary(summary)
            for tag, value in measured.items():
                writer.add_scalar(tag, value, result["steps"])
            samples = samples_of(comparison, row, seed)
            if samples is not None:
                image = Summary.Image(encoded_image_string=samples.read_bytes())
                file.add_summary(Summary(value=[Summary.Value(tag="samples", image=image)]), result["steps"])
            writer.close()
