import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_videos import write_xvid
from torch.utils.data import DataLoader

from latte_pl.data.folder import VideoFolder
from latte_pl.data.stream import BoundedBatches, ClipStream, FixedClips, GlobalBatches
from latte_pl.data.transforms import draw_view


class Numbered:
    """Frames whose three channels are the index of the video, the index of the frame, and the flip."""

    key = "video"

    def __init__(self) -> None:
        self.class_names = ["even", "odd"]

    def __len__(self) -> int:
        return 7

    def label(self, index: int) -> int:
        return index % 2

    def read(self, index: int, num_frames: int, interval: int, rng: np.random.Generator | None) -> torch.Tensor:
        view = draw_view(20, num_frames, interval, True, rng)
        frames = torch.arange(view.start, view.start + num_frames * interval, interval)
        rows = [torch.full((num_frames,), index), frames, torch.full((num_frames,), int(view.flipped))]
        return torch.stack(rows, 1).to(torch.uint8)[..., None, None]


def batches(
    steps: int, world: int = 1, accumulate: int = 1, workers: int = 0, first: int = 0, num_images: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Return the global batches of some optimizer steps, concatenated from the loaders of all ranks."""
    loaders = []
    for rank in range(world):
        stream = ClipStream(Numbered(), 3, 2, seed=5, num_images=num_images)
        sampler = GlobalBatches(8, rank, world, accumulate, first)
        loaders.append(iter(DataLoader(stream, batch_sampler=sampler, num_workers=workers)))
    out = []
    for _ in range(steps):
        parts = [next(loader) for _ in range(accumulate) for loader in loaders]
        out.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return out


def equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> bool:
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(left, right)
    )


@pytest.mark.parametrize(("world", "accumulate", "workers"), [(1, 1, 2), (2, 1, 0), (2, 1, 2), (4, 1, 2), (2, 2, 2)])
def test_clips_do_not_depend_on_ranks_accumulation_and_workers(world: int, accumulate: int, workers: int) -> None:
    assert equal(batches(3, world, accumulate, workers, num_images=2), batches(3, num_images=2))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 2)])
def test_resume_inside_an_epoch_is_exact(world: int, workers: int) -> None:
    assert 8 * 2 % len(Numbered()) != 0, "step 2 is inside an epoch"
    assert equal(batches(3, world, workers=workers, first=2), batches(5)[2:])


def test_every_epoch_visits_every_video_once_in_another_order() -> None:
    stream = ClipStream(Numbered(), 3, 2, seed=5)
    epochs = [[stream.index(7 * epoch + n) for n in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_seeds_give_different_clips() -> None:
    left, right = (torch.cat([ClipStream(Numbered(), 3, 2, s)[n]["video"] for n in range(14)]) for s in (0, 1))
    assert not torch.equal(left, right)


def test_starts_and_flips_cover_all_values() -> None:
    stream = ClipStream(Numbered(), 3, 2, seed=0)
    clips = [stream[n]["video"][..., 0, 0] for n in range(400)]
    assert {int(clip[0, 1]) for clip in clips} == set(range(16))
    assert 0.4 < np.mean([int(clip[0, 2]) for clip in clips]) < 0.6
    assert all((clip[1:, 1] - clip[:-1, 1] == 2).all() for clip in clips)


def test_joint_images_come_from_other_videos_with_their_own_labels() -> None:
    stream = ClipStream(Numbered(), 3, 2, seed=0, num_images=4)
    seen: Counter[int] = Counter()
    for number in range(100):
        item = stream[number]
        videos = item["video"][:, 0, 0, 0].tolist()
        assert item["video"].shape == (7, 3, 1, 1)
        assert item["label"].tolist() == [videos[0] % 2] + [video % 2 for video in videos[3:]]
        assert videos[0] == videos[1] == videos[2] == stream.index(number)
        assert videos[0] not in videos[3:]
        seen.update(videos[3:])
    assert set(seen) == set(range(7))


def test_joint_images_do_not_change_the_clips() -> None:
    alone, joint = (ClipStream(Numbered(), 3, 2, 0, n) for n in (0, 3))
    assert all(torch.equal(alone[n]["video"], joint[n]["video"][:3]) for n in range(20))


def test_images_come_from_the_clips_video_if_it_is_the_only_one(tmp_path: Path) -> None:
    write_xvid(tmp_path / "v.avi", 12)
    item = ClipStream(VideoFolder(tmp_path, 16, 4, 3), 4, 3, 0, num_images=2)[0]
    assert item["video"].shape == (6, 3, 16, 16)


def test_weights_are_the_frequencies_of_videos() -> None:
    stream = ClipStream(Numbered(), 3, 2, 0, weights=np.array([3.0, 0, 0, 1, 0, 0, 0]))
    counts = Counter(stream.index(n) for n in range(2000))
    assert set(counts) == {0, 3}
    assert counts[0] == pytest.approx(1500, abs=100)


def test_fixed_clips_are_spread_over_the_videos_and_not_random() -> None:
    clips = FixedClips(Numbered(), 3, 2, 3)
    first = [clips[n]["video"] for n in range(3)]
    assert [int(video[0, 0, 0, 0]) for video in first] == [0, 2, 4]
    assert all(video[0, 1, 0, 0] == 0 and video[0, 2, 0, 0] == 0 for video in first)
    assert all(torch.equal(clips[n]["video"], video) for n, video in enumerate(first))


def test_fixed_clips_mark_padding() -> None:
    clips = FixedClips(Numbered(), 3, 2, 3)
    batch = next(iter(DataLoader(clips, batch_sampler=[[1, 2, 3, 4]])))
    assert batch["padding"].dtype == torch.bool
    assert batch["padding"].tolist() == [False, False, True, True]
    assert batch["clip"].tolist() == [1, 2, 3, 4]
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [2, 4, 0, 2]


@pytest.mark.parametrize("kind", [ClipStream, FixedClips])
def test_empty_data_set_raises(kind: type[ClipStream | FixedClips], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "__len__", lambda self: 0)
    with pytest.raises(ValueError, match="the data set has no videos"):
        kind(Numbered(), 3, 2, 0)


def test_ranks_share_a_split_evenly() -> None:
    ranks = [BoundedBatches(4, rank, 2, num_clips=6) for rank in range(2)]
    assert [list(rank) for rank in ranks] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [len(rank) for rank in ranks] == [2, 2]


def test_batch_that_cannot_be_divided_raises() -> None:
    with pytest.raises(ValueError, match="global_batch_size 6 cannot be divided by 4 devices x 1"):
        GlobalBatches(6, 0, 4)


def resident(pid: int) -> float:
    """Return the memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_of_a_loader_process_stays_flat_over_epochs(tmp_path: Path) -> None:
    for number in range(4):
        write_xvid(tmp_path / f"{number}.avi", 24, seed=number)
    stream = ClipStream(VideoFolder(tmp_path, (48, 64), 4, 3, flip=True), 4, 3, 0, num_images=1)
    loader = iter(DataLoader(stream, batch_sampler=GlobalBatches(4), num_workers=1))
    (worker,) = loader._workers
    memory = []
    for _ in range(3):
        for _ in range(60):  # epochs of 4 videos
            next(loader)
        memory.append(resident(worker.pid))
    assert memory[2] - memory[1] < 3, memory
