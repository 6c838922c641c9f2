"""The datamodule of the bundled moving shapes."""

from typing import Any, ClassVar

from torch import Tensor

from latte_pl.data.datamodule import VideoDataModule, check_autoencoder
from latte_pl.data.latents import CachedLatents
from latte_pl.data.stream import VideoDataset
from latte_pl.toy import captions
from latte_pl.toy.encoding import EncodableShapes
from latte_pl.toy.motion import classify_motion
from latte_pl.toy.shapes import MOTIONS, MovingShapes, Scene, is_held_out
from latte_pl.types import Split


class Shapes(VideoDataModule):
    """The bundled data set: drawn videos of shapes that move in one of eight ways. Nothing is downloaded.

    Args:
        size: Height and width in pixels; one number for a square.
        num_videos: Number of training videos; None draws 50,000.
        latents: Folder of a latent cache made by `latte encode`. Training then neither draws videos nor runs the
            autoencoder's encoder.
        held_out: Number of colours, 0 to 7, that are never combined with each motion in training. Samples of captions
            with these combinations show what a model learnt of the single words.
        scene: What the videos show: "varied", or "plain" circles on a dark background (`MovingShapes`).
        kwargs: Arguments of `VideoDataModule`.
    """

    num_classes: ClassVar[int | None] = len(MOTIONS)
    flip = False  # a flip would change the class

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        num_videos: int | None = None,
        latents: str | None = None,
        held_out: int = 0,
        scene: Scene = "varied",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.num_videos, self.latents, self.held_out, self.scene = num_videos, latents, held_out, scene

    def videos(self, split: Split) -> MovingShapes:
        """Return a split as pixels, also where training reads cached latents."""
        count = self.num_videos if split == "train" else None
        return MovingShapes(split, size=self.size, num_videos=count, held_out=self.held_out, scene=self.scene)

    def open(self, split: Split = "all", num_frames: int = 1, interval: int = 1) -> EncodableShapes:
        """Return the videos of both splits, for `latte encode`; the arguments are ignored."""
        return EncodableShapes(self.videos("train"), self.videos("val"))

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that a latent cache must match, in addition to those of the autoencoder."""
        return {"size": list(self.size), "data": "Shapes", "videos": self.open().fingerprint()}

    def build(self, split: Split) -> VideoDataset:
        """Open a split: the latent cache if there is one, else the videos."""
        if self.latents is None:
            return self.videos(split)
        interval = self.interval if split == "train" else self.val_interval
        return CachedLatents(self.latents, split, self.num_frames, interval, False, self.settings, self.captions)

    def setup(self, stage: str) -> None:
        """Check that cached latents match the model's autoencoder and text encoder.

        Raises:
            ValueError: The autoencoder, the scale or the text encoder differs; the message states both values.
        """
        check_autoencoder(self)

    def prompts(self, count: int) -> list[str]:
        """Return captions of validation videos; with held-out combinations, trained and new ones alternate."""
        dataset = self.videos("val")
        names = [dataset.attributes(n) for n in range(len(dataset))]
        new = [n for n, name in enumerate(names) if is_held_out(name["colour"], name["motion"], self.held_out)]
        groups = [group for group in (sorted(set(range(len(dataset))) - set(new)), new) if group]
        turns = [divmod(n, len(groups)) for n in range(count)]
        return [dataset.caption(groups[which][turn % len(groups[which])]) for turn, which in turns]

    def observed_motions(self, videos: Tensor) -> list[int] | None:
        """Return the motion of each sample (B, F, 3, H, W) uint8, -1 for none; None for fewer than three frames."""
        return [classify_motion(video) for video in videos.cpu()] if videos.shape[1] >= 3 else None

    def judge(self, videos: Tensor, labels: list[int], prompts: list[str]) -> str | None:
        """Return how many samples move as their label or caption says, according to the motion tracker.

        Args:
            videos: Samples (B, F, 3, H, W) uint8; None is returned for fewer than three frames.
            labels: Class of each sample; ignored if there are captions.
            prompts: Caption of each sample; empty for a model without captions.
        """
        if videos.shape[1] < 3:
            return None
        if prompts:
            return captions.judge(videos.cpu(), prompts, self.held_out)
        right = sum(seen == label for seen, label in zip(self.observed_motions(videos) or [], labels))
        return f"{right} of {len(labels)} move as labelled ({right / len(labels):.0%}; chance {1 / len(MOTIONS):.1%})"
