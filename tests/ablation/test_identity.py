"""The hash of a trial contains what is in the files that its settings name."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from latte_pl.ablation.identity import hash_of, settings_of
from latte_pl.ablation.user_files import contents_of

CONFIG: dict[str, Any] = {
    "model": {
        "pretrained": {"source": "weights.pt", "labels": "new"},
        "autoencoder": {"class_path": "latte_pl.autoencoders.KLAutoencoder", "init_args": {"source": "vae"}},
        "net": {"class_path": "latte_pl.nn.Latte", "init_args": {"conditioning": "class"}},
    },
    "data": {"class_path": "latte_pl.data.Folder", "init_args": {"root": "videos", "cache_dir": "elsewhere"}},
    "trainer": {"precision": "32-true"},
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for path, content in {
        "weights.pt": b"weights",
        "vae/config.json": b"{}",
        "vae/model.safetensors": b"abc",
        "videos/run/a.mp4": b"video a",
        "videos/walk/b.mp4": b"video b",
        "videos/.latte_index/index.json": b"{}",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def name(config: dict[str, Any] = CONFIG) -> str:
    return hash_of({"settings": settings_of(config)})


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("weights.pt", b"Weights"),  # of the same size
        ("vae/model.safetensors", b"abd"),
        ("vae/more.json", b""),
        ("videos/run/a.mp4", b"longer video a"),
        ("videos/walk/c.mp4", b"video c"),
    ],
)
def test_other_content_is_another_trial(files: Path, path: str, content: bytes) -> None:
    before = name()
    (files / path).write_bytes(content)
    os.utime(files / path, ns=(1, 1))
    assert name() != before


def test_place_time_and_index_of_files_are_not_part_of_the_hash(files: Path) -> None:
    before = contents_of(CONFIG)
    assert len(before) == 3
    for path in ("weights.pt", "vae/model.safetensors", "videos/run/a.mp4"):
        os.utime(files / path, ns=(1, 1))
    (files / "videos/.latte_index/index.json").write_text("{more}")
    assert contents_of(CONFIG) == before
    (files / "copies").mkdir()
    for path in ("weights.pt", "vae", "videos"):
        (files / path).rename(files / "copies" / path)
    moved = copy.deepcopy(CONFIG)
    moved["model"]["pretrained"]["source"] = "copies/weights.pt"
    moved["model"]["autoencoder"]["init_args"]["source"] = "copies/vae"
    moved["data"]["init_args"]["root"] = "copies/videos"
    assert contents_of(moved) == before


@pytest.mark.parametrize("source", ["shapes", "{image_model}", "stabilityai/sd-vae-ft-ema", None])
def test_names_that_are_no_files_have_no_digest(source: str | None) -> None:
    config = copy.deepcopy(CONFIG)
    config["model"]["pretrained"]["source"] = config["model"]["autoencoder"]["init_args"]["source"] = source
    del config["data"]["init_args"]["root"]
    assert not [key for key in settings_of(config) if key.endswith(".content")]


def test_run_counts_with_its_newest_checkpoint(files: Path) -> None:
    import torch

    for step in (1, 2):
        path = files / f"run/checkpoints/step={step:07d}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step}, path)
    before = contents_of({"model": {"pretrained": {"source": "run"}}})
    (files / "run/events").write_text("a log")
    (files / "run/checkpoints/step=0000001.ckpt").unlink()
    assert contents_of({"model": {"pretrained": {"source": "run"}}}) == before
    torch.save({"step": 3}, files / "run/checkpoints/step=0000003.ckpt")
    assert contents_of({"model": {"pretrained": {"source": "run"}}}) != before
