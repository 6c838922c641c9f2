"""Both splits of the moving shapes as one data set, for `latte encode`."""

from torch import Tensor

from latte_pl.toy.shapes import MovingShapes
from latte_pl.types import Split


class EncodableShapes:
    """The training videos followed by the validation videos; implements `latte_pl.data.encoding.EncodableVideos`.

    Args:
        train: The training split.
        val: The validation split.
    """

    def __init__(self, train: MovingShapes, val: MovingShapes) -> None:
        self.train, self.val = train, val
        self.class_names = train.class_names
        self.size = (train.height, train.width)
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.train) + len(self.val)

    def _locate(self, index: int) -> tuple[MovingShapes, int]:
        return (self.train, index) if index < len(self.train) else (self.val, index - len(self.train))

    def label(self, index: int) -> int:
        """Return the class of a video."""
        videos, place = self._locate(index)
        return videos.label(place)

    def caption(self, index: int) -> str:
        """Return the caption of a video."""
        videos, place = self._locate(index)
        return videos.caption(place)

    def path(self, index: int) -> str:
        """Return the split of a video and its index there."""
        videos, place = self._locate(index)
        return f"{videos.split}/{place}"

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._locate(index)[0].length

    def frames(self, index: int, start: int, num_frames: int) -> Tensor:
        """Return consecutive frames (F, 3, H, W) uint8 of a video."""
        videos, place = self._locate(index)
        return videos.read(place, videos.length)[start : start + num_frames]

    def members(self, split: Split) -> range:
        """Return the indices of the videos of a split.

        Raises:
            FileNotFoundError: There is no such split.
        """
        if split == "train":
            return range(len(self.train))
        if split == "val":
            return range(len(self.train), len(self))
        raise FileNotFoundError(f"the moving shapes have no {split!r} split; use train or val")

    def fingerprint(self) -> str:
        """Return a hash of everything that the videos depend on."""
        return f"{self.train.fingerprint()}+{self.val.fingerprint()}"
