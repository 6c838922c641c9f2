"""FaceForensics: about a thousand videos of talking faces, already cropped to the faces."""

from pathlib import Path
from typing import Any, ClassVar

from latte_pl.data.folder import VideoFolder
from latte_pl.data.layout import Layout
from latte_pl.data.official import OfficialReading
from latte_pl.data.videos import VideoFiles


class FaceForensicsVideos(VideoFolder):
    """FaceForensics as preprocessed videos or folders of frames, flat or in ``train`` and ``test`` (or ``val``).

    The videos have no labels. A flat copy has no official split: the paper trains and evaluates on "all" videos.
    "train" and "val" divide them as `VideoFolder` does. Where there are folders of original and altered videos, the
    original ones are used. FaceForensics++ is refused, because its videos are not cropped to the faces.
    """

    preferred: ClassVar[tuple[str, ...]] = ("original",)
    labelled: ClassVar[bool] = False
    official = OfficialReading(spread=True, fit="resize")
    expected: ClassVar[str] = (
        "{root}/<video>.mp4 or {root}/<video>/<frame>.png, or these below {root}/train and {root}/test"
    )

    @classmethod
    def layout(cls, root: Path) -> Layout:
        """Find the videos of all splits, without opening them.

        Raises:
            ValueError: The folder is that of FaceForensics++.
        """
        for name in ("original_sequences", "manipulated_sequences"):
            if (root / name).is_dir():
                raise ValueError(
                    f"found {root / name} of FaceForensics++, whose videos are not cropped to the faces; to use its "
                    f"original videos as they are, set the folder to {root}/original_sequences/youtube/c23/videos"
                )
        return super().layout(root)


class FaceForensics(VideoFiles):
    """FaceForensics as preprocessed videos or folders of frames, flat or in ``train`` and ``test``; no labels.

    Args:
        root: The folder.
        holdout: Share of the videos that is held out for validation if the folder has no split for it.
        kwargs: Arguments of `VideoFiles`.
    """

    dataset_class = FaceForensicsVideos

    def __init__(self, root: str, holdout: float = 0.1, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.options = {"holdout": holdout}
