import numpy as np
import pytest
import torch
from fake_videos import picture
from torchvision.transforms.v2 import functional as F

from latte_pl.data.transforms import centre_box, draw_view, span, to_clip


def test_span_includes_first_and_last_frame() -> None:
    assert [span(16, 3), span(1, 5), span(2, 7)] == [46, 1, 8]


def test_all_starts_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    views = [draw_view(20, 4, 5, True, rng) for _ in range(2000)]
    starts = np.bincount([view.start for view in views], minlength=5)
    assert len(starts) == 5, "a clip over 16 of 20 frames has 5 starts"
    assert (abs(starts - 400) < 5 * np.sqrt(400 * 0.8)).all()
    assert abs(sum(view.flipped for view in views) - 1000) < 5 * np.sqrt(500)


def test_evaluation_view_is_fixed() -> None:
    assert draw_view(100, 16, 3, True, None) == (0, False)


def test_flip_does_not_change_the_starts() -> None:
    draws = [[draw_view(90, 16, 3, flip, rng) for _ in range(20)] for flip in (True, False) for rng in [_rng()]]
    assert [v.start for v in draws[0]] == [v.start for v in draws[1]]
    assert any(v.flipped for v in draws[0])
    assert not any(v.flipped for v in draws[1])


def _rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_clip_longer_than_the_video_raises() -> None:
    with pytest.raises(ValueError, match="16 frames at interval 3 needs 46 frames, but the video has 45"):
        draw_view(45, 16, 3, False, None)


@pytest.mark.parametrize(
    ("shape", "size", "box"),
    [
        ((240, 320), (256, 256), (0, 40, 240, 240)),
        ((320, 240), (64, 64), (40, 0, 240, 240)),
        ((360, 640), (128, 256), (20, 0, 320, 640)),
        ((48, 64), (96, 128), (0, 0, 48, 64)),
        ((49, 64), (32, 32), (0, 7, 49, 49)),
    ],
)
def test_box_is_the_largest_centred_crop(
    shape: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert centre_box(*shape, size) == box


@pytest.mark.parametrize("size", [(48, 64), (24, 40), (96, 32), (33, 77)])
def test_clip_has_the_requested_size(size: tuple[int, int]) -> None:
    top, left, h, w = centre_box(48, 64, size)
    frames = np.stack([picture(n)[top : top + h, left : left + w] for n in range(3)])
    clip = to_clip(frames, size)
    assert clip.shape == (3, 3, *size)
    assert clip.dtype == torch.uint8
    assert clip.is_contiguous()
    means = frames.mean((1, 2)) - clip.float().mean((2, 3)).numpy()
    assert abs(means).max() < 2.5, "resizing keeps the mean colour"


def test_clip_of_the_original_size_keeps_all_pixels() -> None:
    frames = np.stack([picture(n) for n in range(2)])
    assert np.array_equal(to_clip(frames, (48, 64)).permute(0, 2, 3, 1).numpy(), frames)


def test_without_a_crop_the_clip_equals_resizing_the_short_side() -> None:
    frames = np.stack([picture(n, (64, 64)) for n in range(2)])
    short_side = F.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [32], antialias=True)
    assert torch.equal(to_clip(frames, (32, 32)), short_side)


def test_crop_before_resize_differs_by_less_than_4_grey_levels_from_crop_after_resize() -> None:
    frames = np.stack([picture(n, (240, 320)) for n in range(2)])
    after = F.center_crop(F.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [256], antialias=True), [256, 256])
    top, left, h, w = centre_box(240, 320, (256, 256))
    before = to_clip(frames[:, top : top + h, left : left + w], (256, 256))
    difference = (before.int() - after.int()).abs().float().mean()
    assert 0 < difference < 4


def test_frames_of_different_sizes_become_one_clip() -> None:
    frames = [picture(0), picture(1, (96, 128))]
    clip = to_clip(frames, (24, 32))
    assert torch.equal(clip[1:], to_clip(frames[1:], (24, 32)))
    assert clip.shape == (2, 3, 24, 32)
