import io

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latte_pl.training.media import contact_sheet, film_strip, gif_bytes, save_mp4, save_png


def moving_square(height, width, frames=5):
    video = torch.full((frames, 3, height, width), 40, dtype=torch.uint8)
    for n in range(frames):
        video[n, 0, 4:12, 2 * n : 2 * n + 8] = 220
    return video


def test_gif_shows_every_frame():
    video = moving_square(24, 40)
    with Image.open(io.BytesIO(gif_bytes(video, 8.0))) as image:
        assert image.n_frames == 5
        assert image.info["duration"] in (120, 125, 130)
        for n in range(5):
            image.seek(n)
            frame = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
            assert (frame.int() - video[n].int()).abs().max() <= 2


def test_clip_without_motion_is_a_gif_too():
    video = moving_square(16, 16)[:1].expand(3, -1, -1, -1)
    assert gif_bytes(video, 8.0)[:6] == b"GIF89a"


@pytest.mark.parametrize("size", [(24, 40), (25, 39)])
def test_mp4_contains_the_clip(tmp_path, size):
    video = moving_square(*size)
    save_mp4(video, tmp_path / "clip.mp4", 8.0)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    decoded = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[..., : size[0], : size[1]]
    assert decoded.shape == video.shape
    assert (decoded.float() - video.float()).abs().mean() < 6


def test_sheets_contain_every_video():
    videos = torch.stack([torch.full((2, 3, 8, 10), 10 * n, dtype=torch.uint8) for n in range(5)])
    sheet = contact_sheet(videos, columns=3, gap=1)
    assert sheet.shape == (2, 3, 19, 34)
    assert sheet[1, 0, 1 + 9 + 4, 1 + 11 + 5] == 40
    assert film_strip(videos).shape == (3, 5 * 10 + 2, 2 * 12 + 2)
    named = film_strip(videos, ["left", "right", "up", "down", "clockwise"])
    assert named.shape[1] == 52
    assert named.shape[2] > 26 + 40


def test_png_is_exact(tmp_path):
    image = torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 5, 7)
    save_png(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as read:
        assert np.array_equal(np.asarray(read), image.permute(1, 2, 0).numpy())
