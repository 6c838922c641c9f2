"""The example of a new data set in the README of the data sets."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fake_videos import write_xvid

import latte_pl.data
from latte_pl.data import VideoFiles, VideoFolder
from latte_pl.data.check import check

README = Path(latte_pl.data.__file__).with_name("README.md")


@pytest.fixture
def dances(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the README's example."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("dances")
    module.__dict__.update(VideoFolder=VideoFolder, VideoFiles=VideoFiles)
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "dances", module)
    return module


def test_new_data_set_is_checked_and_trained_on(dances: ModuleType, tmp_path: Path) -> None:
    for split, seed in (("training", 1), ("testing", 2)):
        write_xvid(tmp_path / split / "a.avi", 12, seed=seed)
    report = check("dances.DancesVideos", tmp_path, 4, 3)
    assert report.splits == {"train": 1, "test": 1}
    data = dances.Dances(str(tmp_path), size=16, num_frames=4, interval=3, num_workers=0)
    train, val = data.dataset("train"), data.dataset("val")
    assert [train.path(0), val.path(0)] == ["training/a.avi", "testing/a.avi"]
    assert train.read(0, 4, 3, None).shape == (4, 3, 16, 16)
    assert not torch.equal(train.read(0, 4, 3, None), val.read(0, 4, 3, None))
    assert data.class_names == []


def test_missing_split_shows_the_layout_of_the_new_data_set(dances: ModuleType, tmp_path: Path) -> None:
    write_xvid(tmp_path / "training" / "a.avi", 12)
    with pytest.raises(FileNotFoundError, match=r'has no "val" split; expected .*/training/<video>\.mp4'):
        dances.Dances(str(tmp_path), num_frames=4).dataset("val")
