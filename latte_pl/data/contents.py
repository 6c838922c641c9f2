"""What is inside one video: the records that the index of a data set stores."""

from dataclasses import dataclass
from typing import NamedTuple


class EntryPoint(NamedTuple):
    """A place in a video file where decoding can start.

    After a seek to ``timestamp``, drop the first ``skip`` decoded frames; the next one is frame ``frame``. In a fast
    index ``skip`` is -1: drop frames until one has the time ``timestamp``.
    """

    frame: int
    timestamp: int
    skip: int


@dataclass(frozen=True)
class VideoIndex:
    """The content of a video file, found by one sequential decode.

    Attributes:
        num_frames: Number of frames that decode.
        height: Height of the upright picture in pixels.
        width: Width of the upright picture in pixels.
        orientation: EXIF orientation of the stored picture, 1 to 8.
        fps: Average frame rate; 0 if the file does not state it.
        entries: Verified entry points in order of their frame. Frame 0 needs none.
        notes: What a user should know about the video, such as a property that reading assumes.
        pixel_aspect: Width of a pixel of the upright picture, divided by its height.
    """

    num_frames: int
    height: int
    width: int
    orientation: int
    fps: float
    entries: tuple[EntryPoint, ...]
    notes: tuple[str, ...] = ()
    pixel_aspect: float = 1.0


@dataclass(frozen=True)
class FrameFolder:
    """The content of a folder of frames.

    Attributes:
        names: File names in frame order, joined by "/". One string for all frames lets the loader processes share the
            memory instead of copying it.
        num_frames: Number of frames.
        height: Height of the first frame in pixels, after it is turned upright.
        width: Width of the first frame in pixels, after it is turned upright.
        notes: What a user should know about the frames.
        turned: Whether an image has an EXIF orientation other than upright.
    """

    names: str
    num_frames: int
    height: int
    width: int
    notes: tuple[str, ...] = ()
    turned: bool = False


@dataclass(frozen=True)
class Animation:
    """The content of an animated picture.

    Attributes:
        num_frames: Number of frames.
        height: Height in pixels, after it is turned upright.
        width: Width in pixels, after it is turned upright.
        notes: What a user should know about the picture.
    """

    num_frames: int
    height: int
    width: int
    notes: tuple[str, ...] = ()


Content = VideoIndex | FrameFolder | Animation
