"""Options of Latte: checks, resolved values, command line, and reading them back from built models.

The cases come from the fields of `LatteConfig`, so they cover a new option without an edit.
"""

import dataclasses
import json
import re

import pytest
import torch
from jsonargparse import ArgumentParser
from test_latte import CHOICES, TINY

from latte_pl.nn import Latte, LatteConfig
from latte_pl.nn.blocks import BlockOptions
from latte_pl.nn.denoiser import Denoiser

FIELDS = {field.name: field for field in dataclasses.fields(LatteConfig)}
SHAPE = ("hidden_size", "depth", "num_heads")
# values of options without a fixed set of values
VALUES = {
    "hidden_size": [48],
    "depth": [6],
    "num_heads": [8],
    "patch_size": [1],
    "input_size": [(8, 6)],
    "in_channels": [3],
    "num_frames": [8],
    "mlp_ratio": [2.0, 2.3],
    "temporal_stride": [1, 4],
    "num_classes": [7],
    "text_dim": [9],
    "text_length": [3],
    "class_dropout": [0.3],
}
# other options without which an option has no effect
NEEDS = {
    "token_placement": {"injection": "tokens"},
    "temporal_stride": {"patch_embed": "compression"},
    "num_classes": {"conditioning": "class"},
    "text_dim": {"conditioning": "text"},
    "text_length": {"conditioning": "text"},
}


def values_of(name):
    if name in CHOICES:
        return [value for value in CHOICES[name] if value is not None]
    default = FIELDS[name].default
    return VALUES.get(name) or [type(default)(2 * default + 1)]


CASES = [(name, value) for name in FIELDS for value in values_of(name)]


def options_for(name, value):
    options = TINY | NEEDS.get(name, {}) | {name: value}
    return {key: option for key, option in options.items() if not (name == "size" and key in SHAPE)}


def build(name, value):
    with torch.device("meta" if name == "size" else "cpu"):
        return Latte(**options_for(name, value))


def other_than(name, value):
    candidates = [TINY.get(name, FIELDS[name].default), *values_of(name)]
    return next(other for other in candidates if other not in (value, None))


def structure(net):
    """Return all that distinguishes two models besides their options: layers, their settings, and shapes."""
    settings = {
        name: (type(module), {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | tuple)})
        for name, module in net.named_modules()
        if name
    }
    return settings, {name: tensor.shape for name, tensor in (*net.named_parameters(), *net.named_buffers())}


@pytest.mark.parametrize(("name", "value"), CASES)
def test_resolved_options_build_the_same_config(name, value):
    config = LatteConfig(**options_for(name, value))
    assert getattr(config, name) == value
    assert LatteConfig(**dataclasses.asdict(config)) == config


@pytest.mark.parametrize(("name", "value"), CASES)
def test_built_model_reads_back_its_options(name, value):
    net = build(name, value)
    expected = dataclasses.asdict(net.config)
    if net.config.variant == "spatial":
        expected["temporal_position"] = "none"  # no temporal attention
    assert net.read_back() == expected


@pytest.mark.parametrize(("name", "value"), CASES)
def test_options_are_read_from_the_layers_not_from_the_config(name, value):
    net, other = build(name, value), build(name, other_than(name, value))
    if structure(net) != structure(other):
        net.config = other.config
        found = FIELDS[name].metadata["read"](net)
        # rounding of the width can change the ratio
        assert found == (pytest.approx(value, rel=0.01) if name == "mlp_ratio" else value)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(BlockOptions)] + ["variant", "num_heads"])
def test_a_block_with_other_options_is_noticed(name):
    value = values_of(name)[0]
    net = build(name, value)
    net.blocks[2] = build(name, "split_attention" if name == "variant" else other_than(name, value)).blocks[2]
    assert net.read_back()[name] == ("unknown" if name == "variant" else "mixed")


def test_reading_back_leaves_the_model_unchanged():
    net = Latte(**TINY, conditioning="class", spatial_position="rope").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.read_back()
    assert net.training
    assert not net.blocks[0]._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_size_sets_width_depth_and_heads_that_are_not_given():
    config = LatteConfig(size="XL")
    assert (config.hidden_size, config.depth, config.num_heads, config.head_dim) == (1152, 28, 16, 72)
    config = LatteConfig(size="S", depth=3, num_heads=4, variant="split_heads")
    assert (config.hidden_size, config.depth, config.num_heads, config.head_dim) == (384, 3, 4, 192)


def test_options_that_do_not_apply_are_reset():
    config = LatteConfig(**TINY, temporal_stride=2)
    assert (config.temporal_stride, config.num_classes, config.text_dim, config.text_length) == (1, 0, 0, 0)
    assert config.input_size == LatteConfig(**TINY | {"input_size": [4, 6]}).input_size == (4, 6)
    config = LatteConfig(**TINY | {"input_size": 8, "learn_sigma": False, "patch_size": 4})
    assert (config.input_size, config.grid, config.out_channels) == ((8, 8), (2, 2), 4)
    assert LatteConfig(**TINY).out_channels == 8


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LatteConfig(size="S").depth = 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "M"}, "size must be one of S, B, L, XL"),
        ({"hidden_size": None}, "set size"),
        ({"variant": "parallel"}, "variant must be one of interleaved, .*; got 'parallel'"),
        ({"spatial_position": "rotary"}, "spatial_position must be one of absolute, rope; got 'rotary'"),
        ({"activation_checkpointing": "all"}, "must be one of False, True, selective; got 'all'"),
        ({"qk_norm": "yes"}, "qk_norm must be one of False, True; got 'yes'"),
        ({"hidden_size": 36, "num_heads": 8}, "divisible by num_heads"),
        ({"variant": "split_heads", "num_heads": 1}, "must be even"),
        ({"temporal_position": "rope", "hidden_size": 12}, "divisible by 2 with temporal_position=rope; got 3"),
        ({"spatial_position": "rope", "hidden_size": 24}, "divisible by 4 with spatial_position=rope; got 6"),
        ({"depth": 1}, "at least 2"),
        ({"size": "S", "depth": 0}, "at least 2"),
        ({"depth": 0, "variant": "spatial"}, "at least 1"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"input_size": (4, 5)}, "divisible by patch_size=2"),
        ({"patch_embed": "compression", "num_frames": 5}, "divisible by temporal_stride"),
        ({"conditioning": "class", "num_classes": 0}, "needs num_classes"),
    ],
)
def test_wrong_options_raise_a_one_line_error(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Latte(**(TINY | options))
    assert "\n" not in str(error.value)


def test_unknown_options_raise_a_type_error():
    with pytest.raises(TypeError, match="colour"):
        Latte(**TINY, colour="red")


@pytest.fixture(scope="module")
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Denoiser, "net")
    return parser


@pytest.mark.parametrize(("name", "value"), CASES)
def test_command_line_sets_every_option(name, value, parser):
    text = {
        key: option if isinstance(option, str) else json.dumps(option)
        for key, option in options_for(name, value).items()
    }
    config = parser.parse_args(["--net=latte_pl.nn.Latte", *(f"--net.{key}={option}" for key, option in text.items())])
    with torch.device("meta"):
        net = parser.instantiate_classes(config).net
    assert net.config == LatteConfig(**options_for(name, value))


def test_command_line_keeps_the_defaults(parser):
    settings = parser.parse_args(["--net=latte_pl.nn.Latte"]).net.init_args
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in vars(settings).items()} == {
        name: field.default for name, field in FIELDS.items()
    }


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--net.colour=red", "colour"), ("--net.variant=late", "late_fusion"), ("--net.depth=deep", "deep")],
)
def test_wrong_command_line_is_an_error(argument, message, parser):
    with pytest.raises(Exception, match=message):
        parser.parse_args(["--net=latte_pl.nn.Latte", argument])


def test_help_describes_every_option(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--net.help=latte_pl.nn.Latte"])
    text = " ".join(capsys.readouterr().out.split("Help for")[1].split())
    for name in FIELDS:
        entry = re.search(rf"--net\.{name} (.*?)\(type: .*?, default: ", text)
        assert entry, name
        assert len(re.findall("[a-z]{3,}", entry[1].replace("{true,false}", ""))) >= 2, name
