"""Convert decoded video frames of any pixel format and colour matrix to RGB."""

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

BT709, BT601 = 1, 6
SUPPORTED_MATRICES = (0, BT709, 2, 4, 5, BT601, 7, 9)  # numbers of ITU-T H.273; FFmpeg converts no others
_NAMES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "derived from primaries",
    13: "derived from primaries with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
CRASHES = ("yaf32le", "yaf32be")  # libswscale 9 aborts the process when it converts these


class RGBConverter:
    """Convert frames to RGB as FFmpeg does.

    FFmpeg refuses matrices that it does not know. For these, BT.709 is assumed from a height of 577 or a width of 1280
    pixels on and BT.601 below, as players do.

    Attributes:
        notes: What was assumed about the frames so far, for the user.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # one for all frames: creating it costs as much as six conversions
        self.notes: dict[str, None] = {}  # a set in the order of insertion

    def __call__(self, frame: VideoFrame, width: int, height: int) -> NDArray[np.uint8]:
        """Return the pixels of a frame, scaled to a width and height, as a view (height, width, 3) uint8.

        Raises:
            ValueError: The pixel format cannot be converted.
        """
        matrix = frame.colorspace
        if matrix not in SUPPORTED_MATRICES:
            frame.colorspace = BT709 if frame.width >= 1280 or frame.height > 576 else BT601
            name = "BT.709" if frame.colorspace == BT709 else "BT.601"
            self.notes[f"the colour matrix {_NAMES.get(matrix, matrix)} is not supported, {name} is assumed"] = None
        try:
            if frame.format.name in CRASHES:
                raise ValueError
            rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"the pixel format {frame.format.name} is not supported") from error
        finally:
            frame.colorspace = matrix
        rows = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(height, -1)[:, : 3 * width]
        return rows.reshape(height, width, 3)
