"""FaceForensics: about a thousand videos of talking faces, cropped by whoever prepared the copy."""

from typing import ClassVar

from latte_pl.data.folder import VideoFolder


class FaceForensicsVideos(VideoFolder):
    """FaceForensics as preprocessed videos or folders of frames, flat or in ``train`` and ``test`` (or ``val``).

    The videos carry no labels. A flat copy has no official split: "all" is what the paper trains and measures on, and
    "train" and "val" divide it as `VideoFolder` does.
    """

    labelled: ClassVar[bool] = False
    expected: ClassVar[str] = (
        "{root}/<video>.mp4 or {root}/<video>/<frame>.png, or these below {root}/train and {root}/test"
    )
