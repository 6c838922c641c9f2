"""Image-video joint training end to end, with the shipped configuration."""

import re

import fake_videos
import pytest
import torch
import yaml
from runs import CONFIG, curve, final, write_config

from latte_pl import cli
from latte_pl.training import load

JOINT = [
    "-c",
    "experiment/joint.yaml",
    "--trainer.max_steps=3",
    "--trainer.log_every_n_steps=1",
    "--samples.num_samples=1",
]


def curves(folder):
    tags = ("train/loss", "train/loss_video", "train/loss_image")
    return [[value for _, value in curve(folder, tag)] for tag in tags]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    return tmp_path


def test_joint_training_on_shapes(place):
    cli.main(["fit", "-c", "tiny.yaml", *JOINT])
    assert final(place / "runs/joint", 3)["config"]["data"]["init_args"]["num_images"] == 8
    whole, video, image = curves(place / "runs/joint")
    assert len(whole) == 3
    # 4 frames of the clip, 8 images
    assert whole == pytest.approx([(4 * v + 8 * i) / 12 for v, i in zip(video, image)], rel=1e-4)
    assert all(v != i for v, i in zip(video, image))


def test_joint_training_on_cached_latents_equals_training_on_videos(place):
    fake_videos.ucf101(place / "videos", per_class=2, num_frames=16)
    config = yaml.safe_load(CONFIG)
    del config["data"]["class_path"]
    (place / "tiny.yaml").write_text(yaml.safe_dump(config))
    data = ["-c", "data/ucf101.yaml", "-c", "tiny.yaml", "-c", "experiment/joint.yaml", "--data.root=videos"]
    data += ["--data.split=train"]
    cli.main(["encode", *data, "--output=cache"])
    fit = ["fit", *data, *JOINT, "--model.net.num_classes=3"]
    cli.main([*fit, "--name=videos"])
    cli.main([*fit, "--name=latents", "--data.latents=cache"])
    left, right = curves(place / "runs/videos"), curves(place / "runs/latents")
    assert [len(values) for values in left] == [3, 3, 3]
    for a, b in zip(left, right):
        assert a == pytest.approx(b, rel=2e-3)


def test_joint_configuration_composes(capsys):
    def gigaflops(*more):
        cli.main(["info", "-c", "data/shapes.yaml", "-c", "model/tiny.yaml", "--model.net.depth=2", *more])
        return float(re.search(r"^forward .* ([\d.,]+)$", capsys.readouterr().out, re.MULTILINE)[1].replace(",", ""))

    joint = gigaflops("-c", "experiment/joint.yaml")
    assert joint == gigaflops("--data.num_images=8")
    assert joint > 1.4 * gigaflops()  # 8 images besides the 8 frames of a clip; temporal layers skip them


def test_labels_of_a_clip_and_its_images_are_dropped_independently(place):
    cli.main(["fit", "-c", "tiny.yaml", *JOINT, "--model.net.class_dropout=0.5", "--trainer.max_steps=1"])
    module = load("runs/joint")
    clips = torch.arange(400)
    batch = {"clip": clips, "label": (clips[:, None] + torch.arange(9)) % 8}
    draws = module.draw_conditions(batch, seed=0)
    dropped = module.labels(batch, draws < module.net.class_dropout) == module.net.null_label
    assert dropped.float().mean(0).sub(0.5).abs().max() < 0.1
    agree = (dropped[:, :1] == dropped[:, 1:]).float().mean(0)
    assert agree.sub(0.5).abs().max() < 0.1
