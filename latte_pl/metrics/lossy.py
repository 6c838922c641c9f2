"""Lossy steps of published evaluations: what clips lose in JPEG and MP4 files."""

import io
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

MP4_FPS = 8  # of the authors' MP4 files; the rate control of H.264 depends on it
MACRO_BLOCK = 16  # imageio rescales videos whose sides are not multiples of this number


def jpeg_round_trip(video: Tensor, quality: int) -> Tensor:
    """Write every frame to a JPEG file in memory and read it, as PIL does with this quality (4:2:0 chroma).

    Args:
        video: Frames (..., 3, H, W) uint8.
        quality: PIL's quality in [1, 100]. PIL's default is 75, which StyleGAN-V's ``save(path, q=95)`` uses, because
            PIL ignores the unknown keyword ``q``.

    Returns:
        The frames (..., 3, H, W) uint8 on the device of ``video``.
    """
    from PIL import Image

    frames = video.flatten(0, -4) if video.ndim > 3 else video[None]  # (N, 3, H, W)
    read = np.empty((len(frames), *frames.shape[2:], 3), np.uint8)
    for number, frame in enumerate(frames.permute(0, 2, 3, 1).cpu().numpy()):
        with io.BytesIO() as file:
            Image.fromarray(np.ascontiguousarray(frame)).save(file, "JPEG", quality=quality)
            with Image.open(file) as image:
                read[number] = np.asarray(image)
    return torch.from_numpy(read).permute(0, 3, 1, 2).reshape(video.shape).to(video.device)


def mp4_round_trip(video: Tensor, crf: int) -> Tensor:
    """Write a clip to an H.264 file in memory and read it; see ``write_mp4``.

    Args:
        video: A clip (F, 3, H, W) uint8, whose sides are multiples of 16.
        crf: Constant rate factor of x264, from 0 to 51.

    Returns:
        The clip (F, 3, H, W) uint8 on the device of ``video``.

    Raises:
        ValueError: A side is not a multiple of 16.
    """
    import av

    with io.BytesIO() as file:
        write_mp4(file, video, crf)
        file.seek(0)
        with av.open(file, "r") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous().to(video.device)


def write_mp4(file: BinaryIO, video: Tensor, crf: int) -> None:
    """Write a clip as an H.264 file, as ``imageio.mimwrite`` does in the authors' sampling scripts.

    Their ``quality=9`` is ``-crf 5`` for ffmpeg, with 4:2:0 chroma at 8 frames a second. One thread encodes, because
    the file depends on the number of threads.

    Args:
        file: The file to write to.
        video: A clip (F, 3, H, W) uint8, whose sides are multiples of 16.
        crf: Constant rate factor of x264, from 0 to 51.

    Raises:
        ValueError: A side is not a multiple of 16.
    """
    import av

    height, width = video.shape[-2:]
    if height % MACRO_BLOCK or width % MACRO_BLOCK:
        raise ValueError(
            f"clips of {height} x {width} pixels cannot go through the MP4 file of the protocol; "
            f"both sides must be multiples of {MACRO_BLOCK}"
        )
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=MP4_FPS, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in video.permute(0, 2, 3, 1).cpu().numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            # the filter that the ffmpeg program uses
            container.mux(stream.encode(frame.reformat(format="yuv420p", interpolation="BICUBIC")))
        container.mux(stream.encode(None))
