import json
from types import SimpleNamespace

import pytest
import torch

from latte_pl.data.folder import VideoFolder
from latte_pl.evaluation import VideoWriter
from latte_pl.evaluation.folders import evaluate_folders
from latte_pl.toy import MovingShapes

TRAINER = SimpleNamespace(is_global_zero=True, world_size=1, strategy=SimpleNamespace(barrier=lambda: None))


def predict(folder, indices, names=None):
    """Write samples as one call of `Trainer.predict` with batches of two."""
    writer = VideoWriter(folder, names)
    writer.on_predict_start(TRAINER, None)
    videos = MovingShapes("train", size=(32, 48))
    for start in range(0, len(indices), 2):
        chosen = indices[start : start + 2]
        batch = {"index": torch.tensor(chosen), "label": torch.tensor([n % 8 for n in chosen])}
        clips = torch.stack([videos.read(n, 8, 2) for n in chosen])
        writer.write_on_batch_end(TRAINER, None, clips, None, batch, start, 0)
    writer.on_predict_end(TRAINER, None)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_videos_are_alone_in_their_folder(tmp_path, capsys):
    predict(tmp_path / "out", [0, 1, 2], {0: "0000_left"})
    out = tmp_path / "out"
    assert names(out) == ["contact_sheet.gif", "contact_sheet.png", "previews", "samples.json", "videos"]
    assert names(out / "videos") == ["0000_left.mp4", "0001.mp4", "0002.mp4"]
    assert names(out / "previews") == ["0000_left.gif", "0001.gif", "0002.gif"]
    about = json.loads((out / "samples.json").read_text())
    assert about["complete"]
    assert about["samples"][1] == {"file": "videos/0001.mp4", "index": 1, "label": 1, "prompt": ""}
    assert f"3 samples in {out / 'videos'}" in capsys.readouterr().out


def test_the_folder_belongs_to_one_call(tmp_path, capsys):
    """24 samples of one call and 25 files of others were scored as 49 clips."""
    out = tmp_path / "out"
    predict(out, [0, 1, 2, 3])
    assert len(VideoFolder(out / "videos", size=32, num_frames=8, interval=1)) == 4  # which leaves a hidden index
    predict(out, [5, 6])
    assert names(out / "videos") == ["0005.mp4", "0006.mp4"]
    assert names(out / "previews") == ["0005.gif", "0006.gif"]
    assert f"replacing 4 samples of an earlier call in {out}" in capsys.readouterr().out
    record = evaluate_folders("data/shapes.yaml", str(out), size=64, num_real=4)
    assert record.protocol.num_generated == 2


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"video")
    with pytest.raises(ValueError, match=r"mine\.mp4 was not written by latte predict"):
        predict(tmp_path, [0])
    assert names(tmp_path) == ["videos"]
    predict(tmp_path / "other", [0])
    (tmp_path / "other" / "videos" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"notes\.txt was not written by latte predict"):
        predict(tmp_path / "other", [1])
    assert names(tmp_path / "other" / "videos") == ["0000.mp4", "notes.txt"]


def test_an_interrupted_call_is_not_scored(tmp_path):
    VideoWriter(tmp_path).on_predict_start(TRAINER, None)
    with pytest.raises(ValueError, match="latte predict did not finish"):
        evaluate_folders("data/shapes.yaml", str(tmp_path))
