"""Real videos: decoding, data sets, cached latents, the order of clips, and datamodules.

The public names are imported when they are first used, because the datamodules import Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latte_pl.data.datamodule import VideoDataModule as VideoDataModule
    from latte_pl.data.faceforensics import FaceForensics as FaceForensics
    from latte_pl.data.faceforensics import FaceForensicsVideos as FaceForensicsVideos
    from latte_pl.data.folder import VideoFolder as VideoFolder
    from latte_pl.data.latents import CachedLatents as CachedLatents
    from latte_pl.data.skytimelapse import SkyTimelapse as SkyTimelapse
    from latte_pl.data.skytimelapse import SkyTimelapseVideos as SkyTimelapseVideos
    from latte_pl.data.stream import VideoDataset as VideoDataset
    from latte_pl.data.taichi import TaichiHD as TaichiHD
    from latte_pl.data.taichi import TaichiVideos as TaichiVideos
    from latte_pl.data.ucf101 import UCF101 as UCF101
    from latte_pl.data.ucf101 import UCF101Videos as UCF101Videos
    from latte_pl.data.videos import Folder as Folder
    from latte_pl.data.videos import VideoFiles as VideoFiles

_MODULES = {
    "CachedLatents": "latents",
    "FaceForensics": "faceforensics",
    "FaceForensicsVideos": "faceforensics",
    "Folder": "videos",
    "SkyTimelapse": "skytimelapse",
    "SkyTimelapseVideos": "skytimelapse",
    "TaichiHD": "taichi",
    "TaichiVideos": "taichi",
    "UCF101": "ucf101",
    "UCF101Videos": "ucf101",
    "VideoDataModule": "datamodule",
    "VideoDataset": "stream",
    "VideoFiles": "videos",
    "VideoFolder": "folder",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
