import pytest
import torch
from lightning import Trainer
from runs import curve, final, write_config

from latte_pl import cli
from latte_pl.evaluation.distance import VideoDistance
from latte_pl.evaluation.models import run_protocol
from latte_pl.metrics import clip_features, frechet_from_features
from latte_pl.metrics.clips import real_clip
from latte_pl.toy import MovingShapes, Shapes
from latte_pl.toy.extractor import ShapesR3D
from latte_pl.training import load


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of three runs: without distances, with few clips, and with more clips than features."""
    folder = tmp_path_factory.mktemp("distance")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        args = ["fit", "-c", write_config(folder), "--trainer.max_steps=3"]
        cli.main([*args, "--name=without"])
        cli.main([*args, "--name=few", "--distance.every_n_steps=2", "--distance.num_clips=10"])
        cli.main([*args, "--name=many", "--distance={every_n_steps: 3, num_clips: 130, batch_size: 50}"])
    return folder / "runs"


def test_distance_is_that_of_fixed_samples_and_real_clips(runs):
    logged = curve(runs / "few", "val/toy_video_distance_smoke")
    assert [step for step, _ in logged] == [2, 3]
    module, data = load(runs / "few"), Shapes(size=(16, 24), num_frames=4, interval=3)
    values = {"num_real": 10, "num_frames": 4}
    protocol = run_protocol(module, data, "toy-256-8f", ShapesR3D(), "32-true", **values)
    videos = MovingShapes("val", size=(16, 24))
    real = torch.stack([real_clip(videos, protocol, n) for n in range(10)])
    fake = module.sample(list(range(10)), [n % 8 for n in range(10)])
    sides = [clip_features(ShapesR3D(), side)[:, 0].numpy() for side in (real, fake)]
    assert logged[-1][1] == pytest.approx(frechet_from_features(*sides, ddof=1), rel=1e-4)
    assert logged[0][1] != logged[1][1]


def test_more_clips_than_features_are_not_called_smoke(runs):
    ((step, value),) = curve(runs / "many", "val/toy_video_distance")
    assert step == 3
    assert value > 0


def test_motion_accuracy_is_that_of_the_same_samples(runs):
    logged = curve(runs / "few", "val/motion_accuracy")
    assert [step for step, _ in logged] == [2, 3]
    labels = [n % 8 for n in range(10)]
    observed = Shapes().observed_motions(load(runs / "few").sample(list(range(10)), labels))
    assert logged[-1][1] == pytest.approx(sum(map(int.__eq__, observed, labels)) / 10)


def test_distances_do_not_change_the_training(runs):
    without, few = (final(runs / name, 3) for name in ("without", "few"))
    for name, value in without["state_dict"].items():
        assert torch.equal(value, few["state_dict"][name]), name
    assert curve(runs / "without", "train/loss") == curve(runs / "few", "train/loss")


def test_features_of_real_clips_are_shared_by_all_runs(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr(MovingShapes, "read", None)
    metric = VideoDistance(every_n_steps=1, num_clips=10)
    trainer = Trainer(default_root_dir=runs / "later", logger=False, accelerator="cpu", devices=1)
    trainer.datamodule = Shapes(size=(16, 24), num_frames=4, interval=3)
    metric.on_fit_start(trainer, load(runs / "few"))
    assert metric._real["toy_video_distance"].shape[0] == 10


def test_mistakes_raise_before_training(runs, monkeypatch, capsys):
    with pytest.raises(ValueError, match="num_clips is 1"):
        VideoDistance(every_n_steps=5, num_clips=1)
    monkeypatch.chdir(runs.parent)
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", "tiny.yaml", "--name=i3d", "--distance={every_n_steps: 1, i3d_path: i3d.pt}"])
    assert "I3D needs 10 frames and the model has 4" in capsys.readouterr().err
    assert not (runs / "i3d/checkpoints").exists()
