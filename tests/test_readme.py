"""The Python example of the README runs as it is written."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_trains_predicts_and_reloads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(example, str(README), "exec"), names)
    videos, trained = names["videos"], names["trained"]
    assert videos.shape == (2, 8, 3, 64, 64)
    assert videos.dtype == torch.uint8
    assert torch.equal(trained.sample(indices=[0, 1], labels=[3, 6]), videos)
    assert not torch.equal(trained.sample(indices=[0, 2], labels=[3, 6])[1], videos[1])
    assert 15 <= len([line for line in example.splitlines() if line.strip()]) <= 25
