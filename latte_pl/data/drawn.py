"""The embedded data as the latent cache wants them: both splits as one list of videos, frame by frame."""

from typing import Any

from torch import Tensor

from latte_pl.data.shapes import MovingShapes


class DrawnVideos:
    """Both splits of `MovingShapes`, the training videos first (the part of a ``VideoFolder`` that `encode` needs).

    Args:
        train: The training split.
        val: The held-out split.
    """

    quarantine: list[tuple[str, str]] = []  # noqa: RUF012 -- a drawing is never broken
    root = "the drawings"

    def __init__(self, train: MovingShapes, val: MovingShapes) -> None:
        self.splits = {"train": train, "val": val}
        self.class_names = train.class_names
        self.size = (train.height, train.width)

    def __len__(self) -> int:
        """Return the number of videos."""
        return sum(map(len, self.splits.values()))

    def _locate(self, index: int) -> tuple[MovingShapes, int]:
        train = self.splits["train"]
        return (train, index) if index < len(train) else (self.splits["val"], index - len(train))

    def label(self, index: int) -> int:
        """Return the class of a video."""
        videos, place = self._locate(index)
        return videos.label(place)

    def caption(self, index: int) -> str:
        """Return the caption of a video."""
        videos, place = self._locate(index)
        return videos.caption(place)

    def path(self, index: int) -> str:
        """Return a name for a video."""
        videos, place = self._locate(index)
        return f"{videos.split}/{place}"

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self._locate(index)[0].length

    def frames(self, index: int, start: int, num_frames: int) -> Tensor:
        """Return consecutive frames (F, 3, H, W) uint8 of a video."""
        videos, place = self._locate(index)
        return videos.read(place, videos.length)[start : start + num_frames]

    def members(self, split: str) -> list[int]:
        """Return the numbers of the videos of a split.

        Raises:
            FileNotFoundError: There is no such split.
        """
        if split not in self.splits:
            raise FileNotFoundError(f"the drawings have no {split!r} split; train and val are there")
        first = 0 if split == "train" else len(self.splits["train"])
        return list(range(first, first + len(self.splits[split])))

    def fingerprint(self) -> str:
        """Return a hash that changes with any drawing."""
        return "+".join(videos.fingerprint() for videos in self.splits.values())

    def settings(self) -> dict[str, Any]:
        """Return what latents of the drawings depend on, by name."""
        return {"size": list(self.size), "data": "Shapes", "videos": self.fingerprint()}
