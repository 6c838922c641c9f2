"""SkyTimelapse: time-lapse videos of the sky, stored as JPEG frames of 640 x 360 pixels."""

from typing import Any, ClassVar

from latte_pl.data.folder import VideoFolder
from latte_pl.data.official import OfficialReading
from latte_pl.data.videos import VideoFiles


class SkyTimelapseVideos(VideoFolder):
    """SkyTimelapse as it is distributed: ``sky_train/<video>/<clip>/*.jpg`` and ``sky_test``.

    Each clip folder is one video. The videos have no labels, and "val" is the same as "test".
    """

    folders: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("sky_train", "train"), "test": ("sky_test", "test")}
    labelled: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    official = OfficialReading(spread=False, fit="crop", longer=True)
    expected: ClassVar[str] = "{root}/sky_train/<video>/<clip>/*.jpg and {root}/sky_test/<video>/<clip>/*.jpg"


class SkyTimelapse(VideoFiles):
    """SkyTimelapse as it is distributed, nested folders of JPEG frames; no labels, and not flipped, as in the paper.

    Args:
        root: The folder that contains ``sky_train`` and ``sky_test``.
        flip: Flip half of the training clips horizontally.
        kwargs: Arguments of `VideoFiles`.
    """

    dataset_class = SkyTimelapseVideos

    def __init__(self, root: str, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(root, flip=flip, **kwargs)
