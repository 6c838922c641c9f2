"""A trial whose model is not what its row says is refused; axes are read from what was built."""

import pytest
import torch
from runs import write_config

from latte_pl.ablation.watch import AXES, check, held_out, read_back
from latte_pl.cli import resolve
from latte_pl.data import Shapes
from latte_pl.training.weights import build

DATA = {"size": (16, 24), "num_frames": 4, "interval": 3, "global_batch_size": 4, "val_clips": 6, "num_workers": 0}


@pytest.fixture
def make(tmp_path):
    """Build a module and data from settings, as `latte fit` would."""
    config = write_config(tmp_path)

    def build_with(**settings):
        more = [f"--model.{key}={value}" for key, value in settings.pop("model", {}).items()]
        net = [f"--model.net.{key}={value}" for key, value in settings.items()]
        return build(resolve(["fit", "-c", config, *net, *more])), Shapes(**DATA)

    return build_with


@pytest.mark.parametrize("variant", ["interleaved", "late_fusion", "split_attention", "split_heads", "spatial"])
@pytest.mark.parametrize("injection", ["adaln", "tokens"])
def test_arrangement_and_injection_are_seen_in_the_blocks(variant, injection, make):
    module, data = make(variant=variant, injection=injection, depth=4)
    module.net.variant = "told otherwise"  # what was asked for is not looked at
    module.net.injection = "told otherwise"
    assert AXES["variant"](module, data) == variant
    assert AXES["injection"](module, data) == injection


def test_snapshots_are_read_back(make):
    module, data = make()
    module.average_every = 4
    check({"model.average_every": 4}, module, data)
    with pytest.raises(ValueError, match=r"sets model\.average_every to 5, what was built has 4"):
        check({"model.average_every": 5}, module, data)


@pytest.mark.parametrize("variant", ["interleaved", "split_heads"])
@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_the_position_is_seen_in_what_the_blocks_are_given(position, variant, make):
    module, data = make(temporal_position=position, variant=variant)
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    module.net.train()
    assert AXES["temporal_position"](module, data) == position
    assert module.net.training
    assert all(torch.equal(value, before[name]) for name, value in module.net.state_dict().items())


@pytest.mark.parametrize("variant", ["interleaved", "split_attention"])
@pytest.mark.parametrize("on", ["", "spatial_position", "qk_norm", "swiglu", "rms_norm", "learn_sigma"])
def test_layers_of_the_recipe_are_seen_in_what_was_built(on, variant, make):
    off = {"spatial_position": "absolute", "qk_norm": False, "swiglu": False, "rms_norm": False}
    built = off | ({on: "rope" if on == "spatial_position" else True} if on in off else {})
    learn_sigma = on == "learn_sigma"
    module, data = make(
        variant=variant,
        model={"diffusion.learn_sigma": str(learn_sigma).lower()},
        learn_sigma=str(learn_sigma).lower(),
        **{name: str(value).lower() for name, value in built.items()},
    )
    for name in ("qk_norm", "swiglu", "rms_norm", "learn_sigma"):
        setattr(module.net, name, "told otherwise")  # what was asked for is not looked at
    assert {name: AXES[name](module, data) for name in built} == built
    assert AXES["learn_sigma"](module, data) == learn_sigma


def test_a_variance_of_tubelets_is_seen(make):
    module, data = make(patch_embed="compression", temporal_stride=2)
    assert AXES["learn_sigma"](module, data)


def test_layers_of_some_blocks_only_are_not_those_of_the_model(make):
    module, data = make(qk_norm="true", swiglu="true", rms_norm="true")
    plain, _ = make()
    module.net.blocks[1] = plain.net.blocks[1]
    for axis in ("qk_norm", "swiglu", "rms_norm"):
        assert AXES[axis](module, data) == "mixed"
        with pytest.raises(ValueError, match="has 'mixed'; the trial is refused"):
            check({f"model.net.{axis}": True}, module, data)


FLOW = {"diffusion": "latte_pl.diffusion.RectifiedFlow", "sampling.sampler": "euler", "sampling.steps": 9}


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
def test_the_objective_and_its_sampler_are_read_back(settings, make):
    module, data = make(learn_sigma="false", model=FLOW)
    check(settings, module, data)
    plain, _ = make()
    with pytest.raises(ValueError, match="the trial is refused"):
        check(settings, plain, data)


def test_the_arguments_of_an_objective_are_read_back(make):
    module, data = make(learn_sigma="false", model=FLOW | {"diffusion.mean": 0.5})
    wrong = {"class_path": "RectifiedFlow", "init_args": {"mean": 0.0}}
    with pytest.raises(ValueError, match=r"sets model\.diffusion\.mean to 0\.0, what was built has 0\.5"):
        check({"model.diffusion": wrong}, module, data)
    module, _ = make(model={"diffusion.min_snr_gamma": 5})
    check({"model.diffusion.init_args.min_snr_gamma": 5.0}, module, data)
    with pytest.raises(ValueError, match="what was built has None"):
        check({"model.diffusion.init_args.min_snr_gamma": 5.0}, make()[0], data)


def test_a_weight_of_training_is_no_part_of_the_held_out_protocol(make):
    plain, data = make()
    weighted, _ = make(model={"diffusion.min_snr_gamma": 5})
    assert weighted.diffusion.min_snr_gamma == 5
    assert held_out(weighted, data) == held_out(plain, data)
    assert held_out(plain, data)["objective_settings"] == {"learn_sigma": True}
    flow, _ = make(learn_sigma="false", model=FLOW)
    assert held_out(flow, data)["objective_settings"] == {"mean": 0.0, "std": 1.0}


def test_tubelets_are_seen_in_the_embedding(make):
    module, data = make(patch_embed="compression", temporal_stride=4)
    assert (AXES["patch_embed"](module, data), AXES["temporal_stride"](module, data)) == ("compression", 4)
    module, data = make()
    assert (AXES["patch_embed"](module, data), AXES["temporal_stride"](module, data)) == ("uniform", 1)


@pytest.mark.parametrize(
    ("key", "wanted", "found"),
    [
        ("model.net.variant", "late_fusion", "'interleaved'"),
        ("model.net.init_args.depth", 3, "2"),
        ("model.net.temporal_stride", 2, "1"),  # of tubelets that the model does not have
        ("data.num_images", 2, "0"),
        ("model.ema_decay", 0.5, "0.9"),
    ],
)
def test_what_is_not_what_the_row_says_is_refused(key, wanted, found, make):
    module, data = make()
    with pytest.raises(ValueError, match=rf"sets {key} to .* has {found}; the trial is refused"):
        check({key: wanted}, module, data)


def test_what_is_as_the_row_says_passes(make):
    module, data = make(variant="late_fusion", depth=4)
    settings = {"model.net.variant": "late_fusion", "model.net.init_args.depth": 4, "data.interval": 3}
    check(settings | {"model.lr": 0.01, "model.betas": [0.9, 0.999]}, module, data)
    assert read_back("model.net.hidden_size", module, data) == 32


def test_a_setting_that_nothing_shows_is_refused(make):
    module, data = make()
    with pytest.raises(ValueError, match=r"model\.colour, which nothing that was built shows"):
        check({"model.colour": "red"}, module, data)


def test_the_protocol_of_the_held_out_loss_is_its_own(make):
    module, data = make()
    known = held_out(module, data)["hash"]
    other, _ = make(variant="late_fusion")
    assert held_out(other, Shapes(**DATA))["hash"] == known
    assert held_out(module, Shapes(**DATA | {"interval": 1, "val_interval": 3}))["hash"] == known
    assert held_out(module, Shapes(**DATA | {"interval": 1}))["hash"] != known
    assert held_out(module, Shapes(**DATA | {"val_clips": 5}))["hash"] != known


def test_arms_share_weights_where_shapes_agree_and_all_noise(make):
    left, data = make()
    right, _ = make(patch_embed="compression", temporal_stride=2, variant="late_fusion")
    batch = next(iter(torch.utils.data.DataLoader([_clip(data, n) for n in range(3)], batch_size=3)))
    noises = []
    for module in (left, right):
        module.init_weights(5)

        def remember(x, t, labels, num_images=0, text=None):
            noises.append((x, t, labels))
            return torch.zeros(x.shape[0], x.shape[1], 2 * x.shape[2], *x.shape[3:])

        module.losses(remember, batch, torch.tensor([0.1, 0.5, 0.9]), 5, 0.5)
    for ours, theirs in zip(*noises):
        assert torch.equal(ours, theirs)
    mine, others = left.net.state_dict(), right.net.state_dict()
    shared = [name for name in mine if name in others and mine[name].shape == others[name].shape]
    assert {name.split(".")[0] for name in shared} >= {"blocks", "t_embedder", "y_embedder"}
    drawn = [name for name in shared if mine[name].abs().sum() > 0]
    assert all(torch.equal(mine[name], others[name]) for name in drawn)
    assert mine["x_embedder.proj.weight"].shape != others["x_embedder.proj.weight"].shape


def _clip(data, number):
    from latte_pl.data.stream import ClipStream

    return ClipStream(data.dataset("train"), data.num_frames, data.interval, seed=5)[number]
