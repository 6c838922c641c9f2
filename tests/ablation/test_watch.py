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
        resolved = resolve(["fit", "-c", config, *(f"--model.net.{key}={value}" for key, value in settings.items())])
        return build(resolved), Shapes(**DATA)

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
