"""Videos for people to look at: contact sheets, GIF, MP4, loggers."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor


def contact_sheet(videos: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Tile videos (B, F, 3, H, W) uint8 into one video (F, 3, H', W') with white gaps of ``gap`` pixels."""
    num, frames, _, height, width = videos.shape
    columns = columns or min(num, 8)
    rows = -(-num // columns)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap)
    sheet = torch.full((frames, 3, *size), 255, dtype=torch.uint8)
    for n, video in enumerate(videos.cpu()):
        top, left = gap + n // columns * (height + gap), gap + n % columns * (width + gap)
        sheet[:, :, top : top + height, left : left + width] = video
    return sheet


def film_strip(videos: Tensor, names: list[str] | None = None, gap: int = 2) -> Tensor:
    """Place the frames of each video (B, F, 3, H, W) side by side, one video with its name per row: (3, H', W')."""
    from PIL import Image, ImageDraw, ImageFont

    frames = rearrange(videos, "b f c h w -> (b f) 1 c h w")
    strip = contact_sheet(frames, columns=videos.shape[1], gap=gap)[0]
    if not names:
        return strip
    font = ImageFont.load_default(size=14)
    margin = round(max(font.getlength(name) for name in names)) + 12
    page = Image.new("RGB", (margin + strip.shape[2], strip.shape[1]), "white")
    page.paste(_images(strip[None])[0], (margin, 0))
    for row, name in enumerate(names):
        middle = gap + row * (videos.shape[3] + gap) + videos.shape[3] // 2
        ImageDraw.Draw(page).text((margin - 8, middle), name, "black", font, anchor="rm")
    return torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1)


def _images(video: Tensor) -> list[Any]:
    """Return the frames (F, 3, H, W) as PIL images."""
    from PIL import Image

    return [Image.fromarray(np.ascontiguousarray(frame)) for frame in video.cpu().permute(0, 2, 3, 1).numpy()]


def gif_bytes(video: Tensor, fps: float) -> bytes:
    """Encode a video (F, 3, H, W) uint8 as an endless GIF animation."""
    from PIL import Image

    buffer = io.BytesIO()
    # one palette for all frames, because static backgrounds flicker when each frame has its own
    palette = Image.fromarray(np.concatenate([np.asarray(image) for image in _images(video)])).quantize(255)
    first, *rest = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in _images(video)]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, disposal=1)
    return buffer.getvalue()


def save_png(image: Tensor, path: Path) -> None:
    """Write an image (3, H, W) uint8 as PNG."""
    _images(image[None])[0].save(path)


def save_mp4(video: Tensor, path: Path, fps: float) -> None:
    """Write a video (F, 3, H, W) uint8 as H.264 in MP4, nearly lossless; odd sides are padded by one pixel."""
    import av

    video = torch.nn.functional.pad(video.float(), (0, video.shape[-1] % 2, 0, video.shape[-2] % 2), mode="replicate")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = video.shape[-2:]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "10"}
        for image in _images(video.to(torch.uint8)):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))


def log_video(logger: Logger, tag: str, video: Tensor, step: int, fps: float) -> None:
    """Show an animation in a logger that can; other loggers are left alone.

    TensorBoard gets a GIF in its image tab, because its own ``add_video`` silently writes nothing without an old
    version of moviepy. Weights & Biases gets a video.

    Args:
        logger: A logger of Lightning.
        tag: Name of the animation.
        video: (F, 3, H, W) uint8.
        step: Optimizer steps taken.
        fps: Frames a second.
    """
    if isinstance(logger, TensorBoardLogger):
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = video.shape[-2:]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif_bytes(video, fps))
        logger.experiment.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    elif isinstance(logger, WandbLogger):
        logger.log_video(tag, [io.BytesIO(gif_bytes(video, fps))], step=step, format=["gif"])
