"""Loggers and callbacks of Lightning beside those of the package, in one run of a stock trainer."""

import io

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latte_pl.autoencoders import PixelAutoencoder
from latte_pl.diffusion import GaussianDiffusion
from latte_pl.evaluation import VideoDistance
from latte_pl.nn import Latte
from latte_pl.toy import Shapes
from latte_pl.training import LatteModule, Sampling
from latte_pl.training.callbacks import SampleVideos, Throughput

SCALARS = ("train/loss", "train/mse", "train/clips_seen", "train/lr", "val/loss", "val/toy_video_distance_smoke")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four steps, and its loggers."""
    folder = tmp_path_factory.mktemp("run")
    net = Latte(
        hidden_size=16,
        depth=2,
        num_heads=2,
        patch_size=8,
        input_size=(16, 24),
        in_channels=3,
        num_frames=4,
        conditioning="class",
        num_classes=8,
    )
    module = LatteModule(net, GaussianDiffusion(), PixelAutoencoder(), Sampling("ddim", 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        loggers = {
            "csv": CSVLogger(folder / "csv", flush_logs_every_n_steps=1),
            "tensorboard": TensorBoardLogger(folder / "tensorboard"),
            "wandb": WandbLogger(save_dir=folder, offline=True, project="tests"),
        }
        trainer = Trainer(
            max_steps=4,
            val_check_interval=2,
            log_every_n_steps=2,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder / "run",
            logger=list(loggers.values()),
            callbacks=[
                SampleVideos(every_n_steps=2, num_samples=2),
                Throughput(),
                VideoDistance(every_n_steps=2, num_clips=3),
                LearningRateMonitor(),
                DeviceStatsMonitor(cpu_stats=True),
                ModelCheckpoint(folder / "checkpoints", monitor="val/loss", filename="{step}"),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = Shapes(size=(16, 24), num_frames=4, interval=3, global_batch_size=2, val_clips=3, num_workers=0)
        trainer.fit(module, datamodule=data)
        summary = dict(loggers["wandb"].experiment.summary)
        loggers["wandb"].experiment.finish()
    return folder, loggers, summary


def test_csv_has_every_scalar_at_its_step(run):
    (path,) = (run[0] / "csv").rglob("metrics.csv")
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    for name in SCALARS:
        column, step = header.index(name), header.index("step")
        assert [int(row[step]) for row in rows if row[column]] == [2, 4], name
    assert any(name.startswith("lr-AdamW") for name in header)
    assert any(name.startswith("DeviceStatsMonitor") for name in header)


def test_tensorboard_has_every_scalar_and_the_samples(run):
    events = EventAccumulator(run[1]["tensorboard"].log_dir, size_guidance={"scalars": 0, "images": 0}).Reload()
    for name in SCALARS:
        assert [event.step for event in events.Scalars(name)] == [2, 4], name
    assert "lr-AdamW" in events.Tags()["scalars"]
    samples = events.Images("samples")
    assert [event.step for event in samples] == [2, 4]
    with Image.open(io.BytesIO(samples[0].encoded_image_string)) as image:
        assert (image.format, image.n_frames) == ("GIF", 4)


def test_wandb_has_every_scalar_and_the_samples(run):
    folder, _, summary = run
    for name in (*SCALARS, "lr-AdamW"):
        assert isinstance(summary[name], float | int), name
    assert summary["samples"]["_type"] == "videos"
    (offline,) = (folder / "wandb").glob("offline-run-*")
    animations = sorted((offline / "files/media/videos").glob("samples_*.gif"))
    assert len(animations) == 2
    with Image.open(animations[0]) as image:
        assert image.n_frames == 4


def test_samples_and_checkpoint_are_on_disk(run):
    folder, _, _ = run
    for step in (2, 4):
        with Image.open(folder / f"run/samples/step={step:07d}.gif") as image:
            assert image.n_frames == 4
    assert len(list((folder / "checkpoints").glob("step=*.ckpt"))) == 1
