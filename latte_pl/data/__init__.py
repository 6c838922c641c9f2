"""Videos in: decoding, data sets, latent caches, the stream of clips, datamodules."""

from latte_pl.data.datamodule import Shapes, VideoDataModule
from latte_pl.data.faceforensics import FaceForensicsVideos
from latte_pl.data.folder import VideoFolder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.shapes import MovingShapes
from latte_pl.data.skytimelapse import SkyTimelapseVideos
from latte_pl.data.stream import VideoDataset
from latte_pl.data.taichi import TaichiVideos
from latte_pl.data.ucf101 import UCF101Videos
from latte_pl.data.videos import UCF101, FaceForensics, Folder, SkyTimelapse, TaichiHD, VideoFiles

__all__ = [
    "UCF101",
    "CachedLatents",
    "FaceForensics",
    "FaceForensicsVideos",
    "Folder",
    "MovingShapes",
    "Shapes",
    "SkyTimelapse",
    "SkyTimelapseVideos",
    "TaichiHD",
    "TaichiVideos",
    "UCF101Videos",
    "VideoDataModule",
    "VideoDataset",
    "VideoFiles",
    "VideoFolder",
]
