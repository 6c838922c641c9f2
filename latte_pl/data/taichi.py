"""Taichi-HD: videos of people practising tai chi, cropped to squares."""

from typing import ClassVar

from latte_pl.data.folder import VideoFolder
from latte_pl.data.official import OfficialReading
from latte_pl.data.videos import VideoFiles


class TaichiVideos(VideoFolder):
    """Taichi-HD in ``train`` and ``test``, each with videos or with one folder of frames per video.

    The videos have no labels, and "val" is the same as "test".
    """

    labelled: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    official = OfficialReading(spread=False, fit="none")
    expected: ClassVar[str] = (
        "{root}/train/<video>.mp4 or {root}/train/<video>/<frame>.png, and the same below {root}/test"
    )


class TaichiHD(VideoFiles):
    """Taichi-HD as videos or folders of frames in ``train`` and ``test``; no labels."""

    dataset_class = TaichiVideos
