"""SkyTimelapse: time-lapse videos of the sky as JPEG frames of 640x360."""

from typing import ClassVar

from latte_pl.data.folder import VideoFolder


class SkyTimelapseVideos(VideoFolder):
    """SkyTimelapse as it is distributed: ``sky_train/<video>/<clip>/*.jpg`` and ``sky_test``.

    Each clip folder is one video, unlabelled; "val" means "test". The paper does not mirror the clips.
    """

    folders: ClassVar[dict[str, tuple[str, ...]]] = {"train": ("sky_train", "train"), "test": ("sky_test", "test")}
    labelled: ClassVar[bool] = False
    holds_out: ClassVar[bool] = False
    expected: ClassVar[str] = "{root}/sky_train/<video>/<clip>/*.jpg and {root}/sky_test/<video>/<clip>/*.jpg"
