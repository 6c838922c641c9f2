"""What TensorBoard shows of a run beside its scalars."""

import pytest
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from latte_pl import KLAutoencoder, Latte, LatteModule, RectifiedFlow, Sampling, Shapes
from latte_pl.training.callbacks import SampleVideos
from latte_pl.training.tensorboard import AXES, METRICS, TensorBoardPages, flatten, table_of


def train(folder, conditioning="class", loggers=None):
    classes = {"conditioning": "class", "num_classes": 8} if conditioning == "class" else {}
    net = Latte(hidden_size=16, depth=2, num_heads=2, input_size=8, num_frames=2, learn_sigma=False, **classes)
    module = LatteModule(net, RectifiedFlow(), KLAutoencoder("toy"), Sampling("euler", steps=2), lr=0.01)
    data = Shapes(size=64, num_frames=2, global_batch_size=2, val_clips=2, num_workers=0)
    loggers = loggers or [TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)]
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=2,
        max_epochs=-1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        accelerator="cpu",
        logger=loggers,
        callbacks=[SampleVideos(every_n_steps=2, num_samples=10), TensorBoardPages()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder)
    return EventAccumulator(str(folder)).Reload()


def content(events, tag):
    return events.SummaryMetadata(tag).plugin_data.content


def test_hyperparameters_stand_beside_the_metrics(events):
    start = plugin_data_pb2.HParamsPluginData.FromString(content(events, "_hparams_/session_start_info"))
    shown = start.session_start_info.hparams
    assert shown["net.variant"].string_value == "interleaved"
    assert shown["net.depth"].number_value == 2
    assert shown["diffusion"].string_value == "RectifiedFlow"
    assert shown["sampling.steps"].number_value == 2
    assert shown["lr"].number_value == 0.01
    assert shown["data"].string_value == "Shapes"
    assert shown["data.global_batch_size"].number_value == 2
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content(events, "_hparams_/experiment")).experiment
    assert {info.name.tag for info in experiment.metric_infos} == set(METRICS)
    assert {info.name for info in experiment.hparam_infos if info.differs} == set(AXES)
    end = plugin_data_pb2.HParamsPluginData.FromString(content(events, "_hparams_/session_end_info"))
    assert end.session_end_info.status  # finished


def test_the_first_value_of_a_metric_is_a_measured_one(events):
    assert [event.step for event in events.Scalars("val/loss")] == [2]
    assert "val/fvd" not in events.Tags()["scalars"]


def test_charts_show_loss_held_out_loss_and_distance(events):
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert list(charts)[:3] == ["loss", "held-out loss", "distance"]
    assert charts["loss"] == ["train/loss$", "val/loss$"]


def test_labels_of_the_samples_are_text(events):
    assert events.Images("samples")
    text = events.Tensors("samples/labels/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2] == "|left | right | up | down | clockwise | counter-clockwise | grow | shrink|"
    assert text.splitlines()[3].startswith("|left | right | ")


def test_other_loggers_and_unconditional_models_train(tmp_path):
    train(tmp_path, "none", [CSVLogger(tmp_path)])
    train(tmp_path / "tensorboard", "none")
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["tensors"]
    assert "samples/labels/text_summary" not in tags


def test_components_are_named_by_their_class():
    values = {"net": {"class_path": "latte_pl.nn.Latte", "init_args": {"depth": 2}}, "lr": 0.1}
    assert flatten(values) == {"net": "Latte", "net.depth": 2, "lr": 0.1}


def test_a_table_has_the_places_of_the_contact_sheet():
    assert table_of(["a", "b"]) == "|1 | 2|\n|---|---|\n|a | b|"
    assert table_of([str(n) for n in range(9)]).splitlines()[-1] == "|8 |  |  |  |  |  |  | |"
