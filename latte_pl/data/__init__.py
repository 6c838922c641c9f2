"""Videos in: decoding, data sets, the stream of clips, datamodules."""

from latte_pl.data.datamodule import Shapes, VideoDataModule
from latte_pl.data.shapes import MovingShapes
from latte_pl.data.stream import VideoDataset

__all__ = ["MovingShapes", "Shapes", "VideoDataModule", "VideoDataset"]
