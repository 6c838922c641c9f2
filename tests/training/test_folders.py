import json
from pathlib import Path

import pytest
import torch

from latte_pl import cli
from latte_pl.data import MovingShapes
from latte_pl.data.folder import VideoFolder
from latte_pl.metrics import Record, ShapesR3D, clip_features, frechet_from_features
from latte_pl.training.folders import evaluate
from latte_pl.training.media import save_mp4, save_png

NUM = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """MP4s of NUM videos, other videos as MP4s, and the first ones again as folders of frames."""
    root = tmp_path_factory.mktemp("videos")
    for split, name in (("val", "real"), ("train", "fake")):
        (root / name).mkdir()
        videos = MovingShapes(split, size=(32, 48))
        for index in range(NUM):
            save_mp4(videos.read(index, 8, 2), root / name / f"{index:03d}.mp4", 8)
    for index in range(NUM):
        folder = root / "frames" / f"{index:03d}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(MovingShapes("val", size=(32, 48)).read(index, 8, 2)):
            save_png(frame, folder / f"{number:02d}.png")
    (root / "data.yaml").write_text(
        "data: {class_path: latte_pl.data.Shapes, init_args: {size: [32, 48], num_frames: 8, interval: 2}}"
    )
    return root


def score(folders, real, fake, *more):
    """Run the command and return its record."""
    path = folders / "record.json"
    cli.main(["evaluate", f"--real={folders / real}", f"--fake={folders / fake}", f"--output={path}", *more])
    return Record.read(path)


def test_the_value_is_the_distance_of_the_decoded_videos(folders, capsys):
    record = score(folders, "real", "fake")
    sides = []
    for name in ("real", "fake"):
        videos = VideoFolder(folders / name, size=(32, 48), num_frames=8, interval=1)
        clips = torch.stack([videos.read(index, 8, 1, None) for index in range(NUM)])
        sides.append(clip_features(ShapesR3D(), clips)[:, 0].numpy())
    value = record.scores["embedded_video_distance"].value
    assert value == pytest.approx(frechet_from_features(*sides, ddof=1), rel=1e-9)
    assert record.protocol.name == "files-embedded-8f"
    assert (record.protocol.height, record.protocol.width) == (32, 48)  # as the generated videos have it
    assert (record.protocol.num_real, record.protocol.num_generated, record.protocol.split) == (NUM, NUM, "all")
    output = capsys.readouterr()
    assert "smoke" in output.out
    assert "fake clips: 100%" in output.err


def test_frame_folders_and_videos_are_read_alike(folders):
    same = score(folders, "real", "frames").scores["embedded_video_distance"].value  # but for the compression
    assert 0 <= same < score(folders, "fake", "frames").scores["embedded_video_distance"].value / 10
    itself = score(folders, "frames", "frames").scores["embedded_video_distance"].value
    assert itself == pytest.approx(0, abs=1e-8)


def test_a_split_of_a_datamodule_is_a_side(folders):
    record = score(folders, "data.yaml", "fake", "--num_real=20", "--split=train")
    protocol = record.protocol
    assert (protocol.dataset, protocol.split, protocol.num_real) == ("Shapes", "train", 20)
    assert (protocol.interval, protocol.generated_interval) == (2, 1)
    assert protocol.fingerprint == MovingShapes("train", size=(32, 48)).fingerprint()


def test_the_record_lies_beside_the_videos_and_names_both_sides(folders):
    evaluate(str(folders / "real"), str(folders / "fake"), size=32)
    (path,) = folders.glob("fake_files-embedded-8f_*.json")
    data = json.loads(path.read_text())
    assert (data["model"], data["about"]["real"]) == (str(folders / "fake"), str(folders / "real"))
    videos = VideoFolder(folders / "fake", size=32, num_frames=8, interval=1)
    assert data["about"]["fake_fingerprint"] == videos.fingerprint()
    assert (data["protocol"]["height"], data["protocol"]["width"]) == (32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "embedded-256-8f"}, "samples from a model; use it in latte test"),
        ({"fake": "missing"}, "the folder missing does not exist"),
        ({"real": "missing.yaml"}, "no data configuration missing.yaml"),
        ({"real": "model/tiny.yaml"}, "model/tiny.yaml states no data"),
        ({"real": "data/shapes.yaml"}, r"gives videos of \(64, 64\) pixels, not \(32, 48\)"),
        ({"real": "data/shapes.yaml", "split": "all", "size": 64}, "a data configuration has train and val"),
        ({"generated_interval": 2}, "too short: 8 frames, 8 at interval 2 need 15"),
        ({"protocol": "files-fvd-16f", "extractor_path": "i3d.pt"}, r"no file i3d\.pt"),
    ],
)
def test_what_cannot_be_scored_is_refused(folders, change, message):
    settings = {"real": str(folders / "real"), "fake": str(folders / "fake")} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(**settings)


def test_a_folder_without_videos_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="no usable video"):
        evaluate(str(folders / "real"), str(tmp_path))
    assert not list(Path(tmp_path).glob("*.json"))
