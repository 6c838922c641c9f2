"""Taichi-HD: videos of people practising tai chi, cropped to squares."""

from typing import ClassVar

from latte_pl.data.folder import VideoFolder


class TaichiVideos(VideoFolder):
    """Taichi-HD in ``train`` and ``test``, each with videos or one folder of frames per video; unlabelled.

    "val" means "test".
    """

    labelled: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    expected: ClassVar[str] = (
        "{root}/train/<video>.mp4 or {root}/train/<video>/<frame>.png, and the same below {root}/test"
    )
