import pytest
import torch

from latte_pl.toy.motion import classify_motion
from latte_pl.toy.shapes import MovingShapes


def accuracy(clips: list[torch.Tensor], labels: list[int]) -> float:
    return sum(classify_motion(clip) == label for clip, label in zip(clips, labels, strict=True)) / len(clips)


@pytest.mark.parametrize(("size", "num_frames"), [(64, 8), (64, 16), ((48, 88), 8), (32, 8)])
def test_drawn_clips_are_classified_correctly(size: int | tuple[int, int], num_frames: int) -> None:
    dataset = MovingShapes("val", size)
    clips = [dataset.read(i, num_frames) for i in range(120)]
    assert accuracy(clips, [dataset.label(i) for i in range(120)]) >= 0.99


def test_blur_noise_and_other_colours_do_not_matter() -> None:
    dataset = MovingShapes("val")
    generator = torch.Generator().manual_seed(0)
    clips = []
    for index in range(80):
        clip = torch.nn.functional.avg_pool2d(dataset.read(index, 8).float(), 3, 1, 1, count_include_pad=False)
        clip = clip[:, [2, 0, 1]] + 6 * torch.randn(clip.shape, generator=generator)
        clips.append(clip.clamp(0, 255).to(torch.uint8))
    assert accuracy(clips, [dataset.label(i) for i in range(80)]) >= 0.97


def test_flipped_and_reversed_clips_have_the_opposite_class() -> None:
    dataset = MovingShapes("val")
    flipped = [1, 0, 2, 3, 5, 4, 6, 7]
    reverse = [1, 0, 3, 2, 5, 4, 7, 6]
    for index in range(16):
        clip, label = dataset.read(index, 8), dataset.label(index)
        assert classify_motion(clip.flip(-1)) == flipped[label]
        assert classify_motion(clip.flip(0)) == reverse[label]


def test_static_clips_have_no_class() -> None:
    dataset = MovingShapes("val")
    assert all(classify_motion(dataset.read(i, 16)[i % 16].expand(8, -1, -1, -1)) == -1 for i in range(40))
    assert classify_motion(torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)) == -1


def test_noise_has_no_class() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (20, 8, 3, 64, 64), generator=generator, dtype=torch.uint8)
    coarse = noise[..., ::8, ::8].repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    assert all(classify_motion(clip) == -1 for clip in [*noise, *coarse])


def test_shuffled_frames_are_at_chance() -> None:
    dataset = MovingShapes("val")
    generator = torch.Generator().manual_seed(0)
    clips = [dataset.read(i, 8)[torch.randperm(8, generator=generator)] for i in range(160)]
    assert accuracy(clips, [dataset.label(i) for i in range(160)]) <= 0.125  # chance


def test_random_labels_are_at_chance() -> None:
    dataset = MovingShapes("val")
    labels = torch.randint(8, (160,), generator=torch.Generator().manual_seed(0)).tolist()
    assert accuracy([dataset.read(i, 8) for i in range(160)], labels) < 0.22


def test_too_few_frames_raise() -> None:
    with pytest.raises(ValueError, match="at least three frames"):
        classify_motion(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
