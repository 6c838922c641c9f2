"""A trial whose built model does not match its row fails; settings are read back from what was built."""

import json

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from runs import curve, write_config

from latte_pl.ablation.monitor import TrialMonitor, axes_of, check, held_out, initial_values, read_back
from latte_pl.cli.config import resolve
from latte_pl.data.stream import ClipStream
from latte_pl.nn import LatteConfig
from latte_pl.toy import Shapes
from latte_pl.training.weights import build

DATA = {"size": (16, 24), "num_frames": 4, "interval": 3, "global_batch_size": 4, "val_clips": 6, "num_workers": 0}
FLOW = {"diffusion": "latte_pl.diffusion.RectifiedFlow", "sampling.sampler": "euler", "sampling.steps": 9}


@pytest.fixture
def make(tmp_path):
    """Build a module and data from settings, as `latte fit` would."""
    config = write_config(tmp_path)

    def build_with(**settings):
        more = [f"--model.{key}={value}" for key, value in settings.pop("model", {}).items()]
        net = [f"--model.net.{key}={value}" for key, value in settings.items()]
        return build(resolve(["fit", "-c", config, *net, *more])), Shapes(**DATA)

    return build_with


def test_every_option_of_the_denoiser_and_the_data_is_an_axis(make):
    axes = axes_of(*make(variant="late_fusion", depth=4))
    assert set(LatteConfig.__dataclass_fields__) <= set(axes)
    expected = {"variant": "late_fusion", "depth": 4, "interval": 3, "global_batch_size": 4, "size": (16, 24)}
    assert expected.items() <= axes.items()
    assert not {"num_workers", "latents", "seed"} & set(axes)


def test_denoiser_is_read_from_its_layers_not_from_its_configuration(make):
    module, data = make(variant="split_heads", injection="tokens")
    module.net.config = LatteConfig(size="S")
    assert read_back("model.net.variant", module, data) == "split_heads"
    with pytest.raises(ValueError, match=r"sets model\.net\.injection to 'adaln', but the built value is 'tokens'"):
        check({"model.net.injection": "adaln"}, module, data)


def test_layers_that_disagree_fail_the_trial(make):
    module, data = make(swiglu="true")
    plain, _ = make()
    module.net.blocks[1] = plain.net.blocks[1]
    with pytest.raises(ValueError, match="the built value is 'mixed'; the trial is refused"):
        check({"model.net.swiglu": True}, module, data)


@pytest.mark.parametrize(
    "settings",
    [
        {"model.diffusion": "RectifiedFlow"},
        {"model.diffusion": "latte_pl.diffusion.RectifiedFlow"},
        {"model.diffusion": {"class_path": "latte_pl.diffusion.RectifiedFlow"}},
        {"model.diffusion": {"class_path": "latte_pl.diffusion.RectifiedFlow", "init_args": {"mean": 0.0}}},
        {"model.diffusion.class_path": "latte_pl.diffusion.RectifiedFlow"},
        {"model.sampling.sampler": "euler", "model.sampling.steps": 9, "model.net.learn_sigma": False},
    ],
)
def test_objective_and_sampler_are_read_back(settings, make):
    module, data = make(learn_sigma="false", model=FLOW)
    check(settings, module, data)
    plain, _ = make()
    with pytest.raises(ValueError, match="the trial is refused"):
        check(settings, plain, data)


def test_arguments_of_an_objective_are_read_back(make):
    module, data = make(learn_sigma="false", model=FLOW | {"diffusion.mean": 0.5})
    wrong = {"class_path": "RectifiedFlow", "init_args": {"mean": 0.0}}
    with pytest.raises(ValueError, match=r"sets model\.diffusion\.mean to 0\.0, but the built value is 0\.5"):
        check({"model.diffusion": wrong}, module, data)
    module, _ = make(model={"diffusion.min_snr_gamma": 5})
    check({"model.diffusion.init_args.min_snr_gamma": 5.0}, module, data)
    with pytest.raises(ValueError, match="the built value is None"):
        check({"model.diffusion.init_args.min_snr_gamma": 5.0}, make()[0], data)


@pytest.mark.parametrize(
    ("key", "wanted", "found"),
    [
        ("model.net.variant", "late_fusion", "'interleaved'"),
        ("model.net.init_args.depth", 3, "2"),
        ("model.net.temporal_stride", 2, "1"),  # uniform patches have no tubelets
        ("model.ema_snapshot_every", 5, "0"),
        ("data.num_images", 2, "0"),
        ("data.size", 16, r"\(16, 24\)"),
        ("model.ema_decay", 0.5, "0.9"),
    ],
)
def test_setting_that_differs_fails_the_trial(key, wanted, found, make):
    module, data = make()
    with pytest.raises(ValueError, match=rf"sets {key} to .* the built value is {found}; the trial is refused"):
        check({key: wanted}, module, data)


def test_settings_that_match_pass(make):
    module, data = make(variant="late_fusion", depth=4)
    settings = {"model.net.variant": "late_fusion", "model.net.init_args.depth": 4, "data.interval": 3}
    settings |= {"model.lr": 0.01, "model.betas": [0.9, 0.999], "data.size": [16, 24], "model.net.size": None}
    check(settings, module, data)
    assert read_back("model.net.hidden_size", module, data) == 32


@pytest.mark.parametrize("key", ["model.colour", "model.net.colour", "data.colour", "trainer.precision"])
def test_setting_that_cannot_be_read_back_fails_the_trial(key, make):
    with pytest.raises(ValueError, match=rf"sets {key}, which cannot be read back from the built model"):
        check({key: "red"}, *make())


def test_held_out_protocol_depends_on_the_data_and_not_on_the_denoiser(make):
    module, data = make()
    known = held_out(module, data)["hash"]
    other, _ = make(variant="late_fusion")
    assert held_out(other, Shapes(**DATA))["hash"] == known
    assert held_out(module, Shapes(**DATA | {"interval": 1, "val_interval": 3}))["hash"] == known
    assert held_out(module, Shapes(**DATA | {"interval": 1}))["hash"] != known
    assert held_out(module, Shapes(**DATA | {"val_clips": 5}))["hash"] != known


def test_held_out_protocol_ignores_weights_of_the_training_loss(make):
    plain, data = make()
    weighted, _ = make(model={"diffusion.min_snr_gamma": 5})
    assert weighted.diffusion.min_snr_gamma == 5
    assert held_out(weighted, data) == held_out(plain, data)
    assert held_out(plain, data)["objective_settings"] == {"learn_sigma": True}
    flow, _ = make(learn_sigma="false", model=FLOW)
    assert held_out(flow, data)["objective_settings"] == {"mean": 0.0, "std": 1.0}


def fit(make, folder, points, interval):
    """Train four steps and return the curve of the held-out loss."""
    folder.mkdir()
    (folder / "points.json").write_text(json.dumps(points))
    module, _ = make()
    module.init_weights(0)
    trainer = Trainer(
        max_steps=4,
        val_check_interval=interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(str(folder), name="", version=""),
        callbacks=[TrialMonitor("{}", str(folder))],
        enable_progress_bar=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=Shapes(**DATA))
    return curve(folder, "val/loss")


def test_losses_at_further_steps_are_those_of_a_validation_and_change_nothing(make, tmp_path):
    every = dict(fit(make, tmp_path / "every", [], 1))
    assert sorted(every) == [1, 2, 3, 4]
    assert len(set(every.values())) == 4
    further = fit(make, tmp_path / "further", [1, 3], 4)
    assert further == [(step, every[step]) for step in (1, 3, 4)]


def test_initial_values_are_shared_where_name_shape_and_seed_agree(make):
    left, right, other = (make(**settings)[0] for settings in ({}, {"variant": "late_fusion"}, {"swiglu": "true"}))
    for module in (left, right, other):
        module.init_weights(5)
    initial = [initial_values(module.net) for module in (left, right, other)]
    assert initial[0] == initial[1]  # another order of the same blocks
    shared = set(initial[0]) & set(initial[2])
    assert 0 < len(shared) < len(initial[0])
    drawn = [p for p in left.net.parameters() if p.unique().numel() > 1]
    assert sum(initial[0].values()) == sum(p.numel() for p in drawn)
    left.init_weights(6)
    assert not set(initial_values(left.net)) & set(initial[0])


def test_rows_share_weights_of_equal_shape_and_all_noise(make):
    left, data = make()
    right, _ = make(patch_embed="compression", temporal_stride=2, variant="late_fusion")
    clips = ClipStream(data.dataset("train"), data.num_frames, data.interval, seed=5)
    batch = next(iter(torch.utils.data.DataLoader([clips[n] for n in range(3)], batch_size=3)))
    noises = []
    for module in (left, right):
        module.init_weights(5)

        def remember(x, t, labels, text=None, num_images=0):
            noises.append((x, t, labels))
            return torch.zeros(x.shape[0], x.shape[1], 2 * x.shape[2], *x.shape[3:])

        module.losses(remember, batch, module.draw(batch, 5, torch.tensor([0.1, 0.5, 0.9])), 0.5)
    for ours, theirs in zip(*noises):
        assert torch.equal(ours, theirs)
    mine, others = left.net.state_dict(), right.net.state_dict()
    shared = [name for name in mine if name in others and mine[name].shape == others[name].shape]
    assert {name.split(".")[0] for name in shared} >= {"blocks", "t_embedder", "y_embedder"}
    drawn = [name for name in shared if mine[name].abs().sum() > 0]
    assert all(torch.equal(mine[name], others[name]) for name in drawn)
    assert mine["x_embedder.proj.weight"].shape != others["x_embedder.proj.weight"].shape
