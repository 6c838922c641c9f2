"""Captions of the moving shapes: parsing, held-out combinations, scoring of samples, batches with captions."""

from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from latte_pl.data.stream import ClipStream, FixedClips
from latte_pl.toy import MovingShapes, Shapes
from latte_pl.toy.captions import classify_colour, judge, parse
from latte_pl.toy.shapes import MOTIONS, PALETTE, is_held_out
from latte_pl.types import Text


def test_every_caption_can_be_parsed() -> None:
    dataset = MovingShapes("val")
    for index in range(200):
        names = dataset.attributes(index)
        assert parse(dataset.caption(index)) == (names["colour"], names["motion"])
    assert parse("An orange ring circles counter-clockwise. ") == ("orange", "counter-clockwise")
    for other in (
        "",
        "a square moves left",
        "a beige square moves left",
        "a red square moves",
        "a red square jumps left",
    ):
        assert parse(other) is None


@pytest.mark.parametrize("size", [64, (32, 48)])
def test_colours_are_classified_correctly(size: int | tuple[int, int]) -> None:
    dataset = MovingShapes("val", size)
    generator = torch.Generator().manual_seed(0)
    right = 0
    for index in range(100):
        clip = torch.nn.functional.avg_pool2d(dataset.read(index, 8).float(), 3, 1, 1, count_include_pad=False)
        clip = (clip + 6 * torch.randn(clip.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
        right += classify_colour(clip) == dataset.attributes(index)["colour"]
    assert right >= 98
    assert classify_colour(torch.full((8, 3, 64, 64), 90, dtype=torch.uint8)) is None


@pytest.mark.parametrize("held_out", [1, 3])
def test_held_out_combinations_are_not_in_the_training_split(held_out: int) -> None:
    free, kept = MovingShapes("train"), MovingShapes("train", held_out=held_out)
    names = [kept.attributes(n) for n in range(3000)]
    seen = Counter((name["colour"], name["motion"]) for name in names)
    allowed = [(c, m) for c in PALETTE for m in MOTIONS if not is_held_out(c, m, held_out)]
    assert sorted(seen) == sorted(allowed)
    assert len(allowed) == 64 - 8 * held_out
    assert {Counter(c for c, _ in allowed)[c] for c in PALETTE} == {8 - held_out}  # every colour loses the same number
    mean = 3000 / len(allowed)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in seen.values())
    for n, name in enumerate(names[:200]):  # nothing else changes
        before = free.attributes(n)
        assert {**name, "colour": ""} == {**before, "colour": ""}
        changed = is_held_out(before["colour"], before["motion"], held_out)
        assert (name["colour"] != before["colour"]) == changed
        assert torch.equal(kept.read(n, 2), free.read(n, 2)) != changed
    assert kept.fingerprint() != free.fingerprint()
    val = MovingShapes("val", held_out=held_out)
    assert val.fingerprint() == MovingShapes("val").fingerprint()
    assert val.caption(5) == MovingShapes("val").caption(5)


def test_holding_out_all_colours_raises() -> None:
    with pytest.raises(ValueError, match="held_out is 8; it must be from 0 to 7"):
        MovingShapes("train", held_out=8)


def test_prompts_alternate_between_trained_and_new_combinations() -> None:
    prompts = Shapes(held_out=2, num_workers=0).prompts(40)
    assert [is_held_out(*parse(prompt), 2) for prompt in prompts] == [False, True] * 20  # type: ignore[misc]
    assert Shapes(num_workers=0).prompts(9) == [MovingShapes("val").caption(n) for n in range(9)]


def test_samples_are_scored_by_motion_and_colour() -> None:
    dataset = MovingShapes("val")
    videos = torch.stack([dataset.read(n, 8, 2) for n in range(24)])
    prompts = [dataset.caption(n) for n in range(24)]
    assert judge(videos, prompts) == (
        "trained combinations: of 24 samples 24 move (100%; chance 12.5%) and 24 are coloured (100%; chance 12.5%) as "
        "asked, 24 both (100%)"
    )
    flipped = Shapes(num_workers=0).judge(videos.flip(-1), [], prompts)  # 6 of 24 move up or down, 6 change in size
    assert flipped is not None
    assert "12 move (50%" in flipped
    assert "24 are coloured" in flipped
    recoloured = judge(videos[:, :, [2, 0, 1]], prompts)
    assert "24 move" in recoloured
    assert " 0 both" in recoloured
    split = judge(videos, ["nonsense", *prompts[1:]], held_out=3).splitlines()
    assert [line.split(":")[0] for line in split] == [
        "trained combinations",
        "new combinations",
        "1 prompts not scored",
    ]


@pytest.mark.parametrize("num_images", [0, 2])
def test_clips_have_the_captions_of_their_videos(num_images: int) -> None:
    dataset = MovingShapes("train", size=16)
    stream = ClipStream(dataset, 2, 1, 5, num_images, captions=True)
    batch = next(iter(DataLoader(stream, batch_sampler=[[3, 4, 9]])))
    groups = batch["caption"] if num_images else [batch["caption"]]
    assert [len(group) for group in groups] == [3] * (1 + num_images)
    assert list(groups[0]) == [dataset.caption(stream.index(n)) for n in (3, 4, 9)]
    labels = batch["label"].reshape(3, -1)
    for place, group in enumerate(groups):
        assert [MOTIONS[label] for label in labels[:, place]] == [parse(caption).motion for caption in group]  # type: ignore[union-attr]
    assert "caption" not in ClipStream(dataset, 2, 1, 5, num_images)[3]
    fixed = FixedClips(dataset, 2, 1, 4, captions=True)
    assert fixed[1]["caption"] == dataset.caption(len(dataset) // 4)


class Cached(MovingShapes):
    """Has token embeddings instead of captions."""

    def text(self, index: int) -> Text:
        return Text(torch.full((4, 3), float(index)), torch.arange(4) < 1 + index % 4)


def test_cached_embeddings_are_stacked() -> None:
    stream = ClipStream(Cached("train", size=16, num_videos=9), 2, 1, 5, 2, captions=True)
    batch = next(iter(DataLoader(stream, batch_sampler=[[3, 4]])))
    assert batch["text"].embeddings.shape == (2, 3, 4, 3)
    assert batch["text"].mask.shape == (2, 3, 4)
    assert batch["text"].embeddings[:, 0, 0, 0].tolist() == [stream.index(3), stream.index(4)]
    single = ClipStream(Cached("train", size=16, num_videos=9), 2, 1, 5, captions=True)
    assert next(iter(DataLoader(single, batch_sampler=[[3, 4]])))["text"].mask.shape == (2, 4)
