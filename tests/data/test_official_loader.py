"""Clips of the official loaders (fixture of ``official_loader.py``) and of ``official_clips``, from the same frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official_loader import DRAWS, SIZE, VIDEOS, write_frames
from safetensors import safe_open

from latte_pl.data import UCF101, FaceForensics, Folder, SkyTimelapse, TaichiHD
from latte_pl.data.official import draw_official_view

FIXTURE = Path(__file__).parents[1] / "fixtures/official_clips.safetensors"
MODULES = {"ucf101": UCF101, "ffs": FaceForensics, "sky": SkyTimelapse, "taichi": TaichiHD}
PLACES = {"ucf101": "Class", "ffs": "", "sky": "sky_train", "taichi": "train"}


class Recorded:
    """A source of the draws that the official loader made."""

    def __init__(self, start, coin):
        self.start, self.coin = start, coin

    def integers(self, high):
        assert 0 <= self.start < high
        return self.start

    def random(self):
        return self.coin


def open_videos(root, name, **options):
    write_frames(root / PLACES[name], name)
    data = MODULES[name](str(root), split="all", size=SIZE, num_workers=0, **options)
    return data.open("all", 16, 3, data.official_clips)


@pytest.mark.parametrize("name", VIDEOS)
def test_clips_equal_those_of_the_official_loader(tmp_path, name):
    with safe_open(FIXTURE, "pt") as file:
        expected, facts = file.get_tensor(name), json.loads(file.metadata()["facts"])[name]
    videos = open_videos(tmp_path, name, official_clips=True)
    assert len(videos) * DRAWS == len(facts) == len(expected)
    for fact, clip in zip(facts, expected, strict=True):
        found = videos.read(fact["video"], 16, 3, Recorded(fact["start"], fact["coin"]))
        assert (found.int() - clip.int()).abs().max() <= 1  # of 255: halves are rounded up or down
    starts = {fact["start"] for fact in facts}
    assert len(starts) > 2  # not all clips are the first ones
    coins = {fact["coin"] < 0.5 for fact in facts}
    assert coins == {True, False}


def test_default_clips_have_equal_distances_and_antialiasing(tmp_path):
    official = open_videos(tmp_path, "ffs", official_clips=True)
    default = open_videos(tmp_path / "again", "ffs")
    assert len(official) == 2
    assert len(default) == 1  # 31 frames are too few for 16 at interval 3
    assert not torch.equal(official.read(0, 16, 3, None), default.read(0, 16, 3, None))


@pytest.mark.parametrize(("length", "starts"), [(48, 1), (49, 1), (50, 2), (60, 12), (20, 1)])
def test_starts_leave_out_the_last_one_as_the_official_code_does(length, starts):
    rng = np.random.default_rng(0)
    views = [draw_official_view(length, 16, 3, True, rng) for _ in range(400)]
    assert {view.start for view in views} == set(range(starts))
    assert 120 < sum(view.flipped for view in views) < 280


def test_training_reads_official_clips_and_evaluation_does_not(tmp_path):
    write_frames(tmp_path, "ffs")
    data = FaceForensics(str(tmp_path), split="all", size=SIZE, official_clips=True)
    assert len(data.dataset("train")) == 2
    assert len(data.videos("train")) == 1


def test_other_data_sets_caches_and_sizes_are_refused_in_one_line(tmp_path):
    write_frames(tmp_path, "taichi")
    with pytest.raises(ValueError, match="the official code does not read this data set; set it to false"):
        Folder(str(tmp_path), official_clips=True).dataset("train")
    with pytest.raises(ValueError, match=r"leave out data\.latents"):
        TaichiHD(str(tmp_path), latents="cache", official_clips=True)
    write_frames(tmp_path / "frames/train", "taichi")
    data = TaichiHD(str(tmp_path / "frames"), split="all", size=2 * SIZE, official_clips=True)
    with pytest.raises(ValueError, match=r"set data.size to \[16, 16\]"):
        data.dataset("train").read(0, 16, 3, None)
