"""XviD videos like those of UCF101 (MPEG-4 part 2 in AVI), drawn and encoded on the spot."""

from pathlib import Path

import av
import numpy as np


def draw_frame(number: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Draw a frame of a moving texture with a moving square, (H, W, 3) uint8; no two frames are equal."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    phase = np.array([0.0, 2.1, 4.2]) + seed
    waves = np.sin((x[..., None] + 3 * number) / 7 + phase) + np.cos((y[..., None] - 2 * number) / 5 + 2 * phase)
    image = 128 + 50 * waves
    left = (5 * number + 11 * seed) % (width - 8)
    image[height // 3 : height // 3 + 10, left : left + 8] = (255, 40 + 3 * number % 200, 0)
    return image.clip(0, 255).astype(np.uint8)


def write_xvid(path: Path, num_frames: int, size: tuple[int, int], gop: int, seed: int) -> Path:
    """Encode a video at 25 frames per second.

    Args:
        path: The file; its name ends in .avi.
        num_frames: Number of frames.
        size: Height and width in pixels.
        gop: Frames from one keyframe to the next.
        seed: Seed of the pictures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.max_b_frames = 0
        stream.codec_context.thread_count = 1
        stream.codec_context.codec_tag = "XVID"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(draw_frame(number, size, seed), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
