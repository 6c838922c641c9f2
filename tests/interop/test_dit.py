"""Models that start from a DiT, against an independent implementation of DiT on single images in float64."""

import argparse
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from latte_pl.interop import load_dit
from latte_pl.interop.dit import CONVERTED_OPTIONS, VIDEO_OPTIONS, block_map
from latte_pl.nn import Latte, LatteConfig
from latte_pl.types import Text

WIDTH, HEADS, CHANNELS, PATCH, CLASSES = 32, 4, 3, 2, 5
GRID = (2, 3)
TIMESTEPS = torch.tensor([37.0, 812.0])
LABELS = torch.tensor([1, 4])


def dit_state(depth=4, channels=2 * CHANNELS, pos_embed=True):
    """Draw a state dict with the names and layouts of facebookresearch/DiT."""
    generator = torch.Generator().manual_seed(depth)
    shapes = {
        "x_embedder.proj.weight": (WIDTH, CHANNELS, PATCH, PATCH),
        "x_embedder.proj.bias": (WIDTH,),
        "t_embedder.mlp.0.weight": (WIDTH, 256),
        "t_embedder.mlp.0.bias": (WIDTH,),
        "t_embedder.mlp.2.weight": (WIDTH, WIDTH),
        "t_embedder.mlp.2.bias": (WIDTH,),
        "y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH),
        "final_layer.linear.weight": (PATCH**2 * channels, WIDTH),
        "final_layer.linear.bias": (PATCH**2 * channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
        "final_layer.adaLN_modulation.1.bias": (2 * WIDTH,),
    }
    layers = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (4 * WIDTH, WIDTH),
        "mlp.fc2": (WIDTH, 4 * WIDTH),
        "adaLN_modulation.1": (6 * WIDTH, WIDTH),
    }
    for i in range(depth):
        for name, (rows, columns) in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
    state = {k: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.2 for k, shape in shapes.items()}
    return state | ({"pos_embed": positions()[None]} if pos_embed else {})


def positions():
    """Compute DiT's position table: sines and cosines of the column, then of the row; patches row by row."""
    rows, columns = GRID
    frequencies = [10000 ** (-k / (WIDTH / 4)) for k in range(WIDTH // 4)]

    def code(p):
        return [math.sin(p * w) for w in frequencies] + [math.cos(p * w) for w in frequencies]

    return torch.tensor([code(c) + code(r) for r in range(rows) for c in range(columns)], dtype=torch.float64)


def dit(state, x, timesteps, labels, blocks=None):
    """Compute DiT on images x (N, C, H, W) with the blocks of these indices, None for all."""

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def modulated(h, shift, scale):
        return F.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = timesteps.double()[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    c = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    c = linear("t_embedder.mlp.2", F.silu(c)) + state["y_embedder.embedding_table.weight"][labels]
    h = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=PATCH)
    h = h.flatten(2).transpose(1, 2) + positions()  # (N, S, D)
    depth = max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")) + 1
    for i in range(depth) if blocks is None else blocks:
        modulation = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        qkv = linear(f"blocks.{i}.attn.qkv", modulated(h, *modulation[:2])).unflatten(2, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, S, d) each
        scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
        attention = linear(f"blocks.{i}.attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        h = h + modulation[2][:, None] * attention
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, *modulation[3:5])), approximate="tanh")
        h = h + modulation[5][:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    h = modulated(h, *linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1))
    h = linear("final_layer.linear", h).unflatten(1, GRID).unflatten(3, (PATCH, PATCH, -1))  # (N, h, w, p, q, C)
    return h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, GRID[0] * PATCH, GRID[1] * PATCH)


SIZE = {"hidden_size": WIDTH, "depth": 4, "num_heads": HEADS, "in_channels": CHANNELS, "patch_size": PATCH}
SIZE |= {"input_size": (GRID[0] * PATCH, GRID[1] * PATCH), "num_frames": 4}
SIZE |= {"conditioning": "class", "num_classes": CLASSES, "variant": "interleaved", "patch_embed": "uniform"}
SIZE |= {"injection": "adaln", "temporal_position": "absolute"}


def latte(**arguments):
    net = Latte(**(SIZE | arguments)).double()
    net.init_weights(seed=3)
    return net


def export(path, arguments):
    """Write a class-conditional model without zero weights as `latte export` does, and return it."""
    net = latte(**arguments).float()
    generator = torch.Generator().manual_seed(5)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    config = {"model": {"net": {"class_path": "latte_pl.nn.Latte", "init_args": SIZE | arguments}}}
    about = json.dumps({"config": config, "class_names": [], "step": 1})
    save_file(net.state_dict(), path, metadata={"config": about})
    return net.double()


def frames(num_frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num_frames, CHANNELS, 4, 6, generator=generator, dtype=torch.float64)


def without_time(net):
    """Set the temporal position table to zero."""
    net.temp_embed.zero_()
    return net


EXACT = {
    "image model": {"variant": "spatial"},
    "split attention": {"variant": "split_attention"},
    "split heads with the head width of DiT": {"variant": "split_heads", "num_heads": 2 * HEADS},
    "a spatial and a temporal block for each block of DiT": {"depth": 8},
    "late fusion with twice the depth": {"depth": 8, "variant": "late_fusion"},
}


@pytest.mark.parametrize("position", ["absolute", "rope"])
@pytest.mark.parametrize("arguments", EXACT.values(), ids=EXACT)
def test_output_for_one_frame_matches_dit(arguments, position):
    state = dit_state()
    net = without_time(latte(**arguments, temporal_position=position))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1)
    torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], dit(state, x[:, 0], TIMESTEPS, LABELS))


@pytest.mark.parametrize("arguments", EXACT.values(), ids=EXACT)
def test_every_frame_is_an_image_with_identity_layers(arguments):
    state = dit_state()
    net = without_time(latte(**arguments))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(3)
    expected = torch.stack([dit(state, x[:, f], TIMESTEPS, LABELS) for f in range(3)], dim=1)
    torch.testing.assert_close(net(x, TIMESTEPS, LABELS), expected)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({}, [0, 2]),
        ({"variant": "late_fusion"}, [0, 1]),
        ({"variant": "split_attention", "depth": 3}, [0, 2, 3]),
        ({"variant": "split_heads", "depth": 2, "num_heads": 2 * HEADS}, [0, 3]),
    ],
)
def test_fewer_spatial_blocks_match_dit_without_the_other_blocks(arguments, path):
    state = dit_state()
    net = without_time(latte(**arguments))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1)
    torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], dit(state, x[:, 0], TIMESTEPS, LABELS, path))


def test_temporal_layers_are_copied_from_the_same_depth():
    state = dit_state()
    interleaved, split = latte(), latte(variant="split_attention")
    load_dit(interleaved, state, labels="keep", temporal="copy")
    load_dit(split, state, labels="keep", temporal="copy")
    for i in range(4):
        for name in ("attn.qkv.weight", "attn.proj.bias"):
            value = state[f"blocks.{i}.{name}"]
            assert torch.equal(interleaved.get_parameter(f"blocks.{i}.{name}"), value)
            assert torch.equal(split.get_parameter(f"blocks.{i}.{name}"), value)
            assert torch.equal(split.get_parameter(f"blocks.{i}.{name}".replace("attn", "attn_temporal")), value)
    double = latte(depth=8)
    load_dit(double, state, labels="keep", temporal="copy")
    for i in range(8):
        assert torch.equal(double.blocks[i].mlp.fc1.weight, state[f"blocks.{i // 2}.mlp.fc1.weight"])


@pytest.mark.parametrize("variant", ["interleaved", "late_fusion", "split_attention", "split_heads"])
def test_identity_layers_have_a_gradient(variant):
    """Gates and output projections that are zero have a gradient that is not zero."""
    net = latte(variant=variant)
    load_dit(net, dit_state(), labels="keep", temporal="identity")
    net(frames(3), TIMESTEPS, LABELS).square().mean().backward()
    closed = "attn_temporal.proj.weight" if variant.startswith("split") else "adaLN_modulation.1.weight"
    names = [n for n, p in net.named_parameters() if n.startswith("blocks.") and n.endswith(closed) and not p.any()]
    assert len(names) == (4 if variant.startswith("split") else 2)
    assert all(net.get_parameter(name).grad.any() for name in names)


def test_dropped_labels_add_the_null_class_to_the_timestep():
    state = dit_state()
    net = without_time(latte(variant="split_attention", conditioning="none"))
    load_dit(net, state, labels="drop", temporal="identity")
    x = frames(1)
    null = torch.full((2,), CLASSES)
    torch.testing.assert_close(net(x, TIMESTEPS)[:, 0], dit(state, x[:, 0], TIMESTEPS, null))


def test_new_label_table_keeps_its_initial_values():
    net, untouched = latte(num_classes=7), latte(num_classes=7)
    table = load_dit(net, dit_state(), labels="new")
    assert torch.equal(net.y_embedder.embedding_table.weight, untouched.y_embedder.embedding_table.weight)
    assert [(row.part, row.num_parameters) for row in table.rows if row.status == "new"] == [("label table", 8 * WIDTH)]


@pytest.mark.parametrize("num_images", [0, 2])
def test_tubelet_of_equal_frames_matches_dit(num_images):
    state = dit_state()
    net = without_time(latte(variant="split_attention", patch_embed="compression", temporal_stride=2))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(2 + num_images)
    clip = torch.cat([x[:, :2].repeat_interleave(2, dim=1), x[:, 2:]], dim=1)  # frames a, a, b, b and the images
    labels = LABELS[:, None].expand(-1, 1 + num_images) if num_images else LABELS
    out = net(clip, TIMESTEPS, labels, num_images=num_images)
    for f in range(clip.shape[1]):
        torch.testing.assert_close(out[:, f], dit(state, clip[:, f], TIMESTEPS, LABELS))


@pytest.mark.parametrize(("theirs", "own"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("patch_embed", ["uniform", "compression"])
def test_variance_channels_are_dropped_or_zero(theirs, own, patch_embed):
    state = dit_state(channels=theirs * CHANNELS)
    net = without_time(latte(variant="split_attention", learn_sigma=own == 2, patch_embed=patch_embed))
    table = load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1).repeat(1, 2, 1, 1, 1)
    out, expected = net(x, TIMESTEPS, LABELS), dit(state, x[:, 0], TIMESTEPS, LABELS)
    torch.testing.assert_close(out[:, 1, :CHANNELS], expected[:, :CHANNELS])
    assert not out[:, :, CHANNELS:].any()
    variance = (WIDTH + 1) * PATCH**2 * CHANNELS
    status, count = ("dropped", variance) if own == 1 else ("new", variance * net.config.temporal_stride)
    assert ("final layer", status, count) in [row[:3] for row in table.rows]


@pytest.mark.parametrize("temporal", ["copy", "identity"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"variant": "late_fusion"},
        {"depth": 8},
        {"variant": "split_attention", "depth": 3},
        {"variant": "split_heads"},
        {"variant": "split_heads", "patch_embed": "compression", "learn_sigma": False},
        {"variant": "spatial"},
    ],
)
def test_table_counts_every_parameter_once(arguments, temporal):
    state, net = dit_state(), latte(**arguments)
    table = load_dit(net, state, labels="keep", temporal=temporal)
    assert table.count("copied", "repeated", "new") == sum(p.numel() for p in net.parameters())
    assert table.count("dropped") <= sum(v.numel() for v in state.values())
    for row in table.rows:
        assert row.part in str(table)
        assert f"{row.num_parameters:,}" in str(table)


def test_table_contains_the_origin_of_each_part():
    rows = [tuple(row) for row in load_dit(latte(), dit_state(), labels="keep", temporal="identity").rows]
    block = 18 * WIDTH**2 + 15 * WIDTH
    assert ("spatial blocks", "copied", 2 * block, "of blocks 0, 2") in rows
    assert ("temporal blocks", "new", 2 * block, "") in rows
    assert ("source's blocks", "dropped", 2 * block, "1, 3") in rows
    assert ("source's pos_embed", "dropped", 6 * WIDTH, "the model computes the same table") in rows
    rows = [tuple(row)[:2] for row in load_dit(latte(depth=8), dit_state(), labels="keep").rows]
    assert ("spatial blocks", "copied") in rows
    assert ("temporal blocks", "repeated") in rows


def test_table_mentions_merged_heads():
    """The DiT has the width of size S, so its number of heads is known."""
    shape = {"size": "S", "depth": 1, "input_size": 4, "mlp_ratio": 1.0}
    state = Latte(variant="spatial", **shape).state_dict()
    for heads, merged in ((6, True), (12, False)):
        net = Latte(variant="split_heads", num_heads=heads, **shape)
        table = str(load_dit(net, state, labels="drop"))
        assert ("its 6 heads are merged to 3, which changes its function" in table) == merged
    with pytest.raises(ValueError, match="num_heads is 6 in the source and 12 in the model"):
        load_dit(Latte(variant="split_attention", num_heads=12, **shape), state, labels="drop")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (23, [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 20, 21, 22, 23, 25, 26, 27]),
        (4, [0, 9, 18, 27]),
        (1, [0]),
    ],
)
def test_split_variants_start_from_evenly_spaced_blocks(depth, expected):
    with torch.device("meta"):
        net = Latte(size="XL", variant="split_heads", depth=depth)
    assert block_map(net, 28) == expected


def test_official_files_are_loaded(tmp_path):
    state = dit_state()
    x = frames(1)
    expected = dit(state, x[:, 0], TIMESTEPS, LABELS)
    wrong = {name: torch.zeros_like(value) for name, value in state.items() if name != "pos_embed"}
    torch.save(state, tmp_path / "weights.pt")
    torch.save({"model": wrong, "ema": state, "args": argparse.Namespace(model="DiT-S/2")}, tmp_path / "training.pt")
    save_file(state, tmp_path / "weights.safetensors")
    for name in ("weights.pt", "training.pt", "weights.safetensors"):
        net = latte(variant="spatial")
        load_dit(net, tmp_path / name, labels="keep")
        torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], expected)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_code_in_a_file_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": Malicious()}, "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt is damaged or contains more than weights"):
        load_dit(latte(), "bad.pt")
    assert not (tmp_path / "executed").exists()


REJECTED = {
    "depth": ({"depth": 6}, {}, r"DiT has 4 blocks and the interleaved model has 6; .* 4, or to 8"),
    "more split blocks": (
        {"depth": 5, "variant": "split_heads"},
        {},
        r"4 blocks .* model has 5; set depth to at most 4",
    ),
    "width": ({"hidden_size": 48}, {}, r"hidden_size is 32 in the source and 48 in the model"),
    "patch": ({"patch_size": 1}, {}, r"patch_size is 2 in the source and 1 in the model"),
    "channels": ({"in_channels": 4}, {}, r"in_channels is 3 in the source and 4 in the model"),
    "MLP width": ({"mlp_ratio": 2.0}, {}, r"mlp_ratio is 4.0 in the source and 2.0 in the model"),
    "qk_norm": ({"qk_norm": True}, {}, r"qk_norm is False in the source and True in the model"),
    "swiglu": ({"swiglu": True}, {}, r"swiglu is False in the source and True in the model"),
    "rms_norm": ({"rms_norm": True}, {}, r"rms_norm is False in the source and True in the model"),
    "positions": (
        {"spatial_position": "rope"},
        {},
        r"spatial_position is absolute in the source and rope in the model",
    ),
    "tokens": ({"injection": "tokens"}, {}, r"only with injection=adaln"),
    "classes": (
        {"num_classes": 7},
        {"labels": "keep"},
        r"6 rows in the source and 8 in the model .* set labels to new",
    ),
    "labels without classes": ({"conditioning": "none"}, {"labels": "new"}, r"conditioning=none it must be drop"),
    "no labels with classes": ({}, {"labels": "drop"}, r"conditioning=class it must be new or keep"),
    "unknown value": ({}, {"temporal": "copied"}, r"temporal is 'copied'; it must be one of copy, identity"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), REJECTED.values(), ids=REJECTED)
def test_misfits_are_rejected_in_one_line(arguments, options, message):
    net = latte(**arguments)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_dit(net, dit_state(), **({"labels": "keep"} | options))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_weights_are_rejected(tmp_path):
    state = dit_state()
    with pytest.raises(ValueError, match=r"missing final_layer\.linear\.weight"):
        load_dit(latte(), {k: v for k, v in state.items() if k != "final_layer.linear.weight"}, labels="keep")
    with pytest.raises(ValueError, match=r"missing blocks\.2\.attn\.qkv\.bias"):
        load_dit(latte(), {k: v for k, v in state.items() if k != "blocks.2.attn.qkv.bias"}, labels="keep")
    swapped = state["pos_embed"].roll(WIDTH // 2, dims=2)  # rows for columns
    with pytest.raises(ValueError, match="pos_embed"):
        load_dit(latte(), state | {"pos_embed": swapped}, labels="keep")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_dit(latte(), tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match=r"variant=interleaved and .* or have variant=split_heads"):
        load_dit(latte(variant="split_heads"), "shapes")


@pytest.mark.parametrize("arguments", [{"variant": "spatial"}, {"variant": "split_attention"}, {"depth": 8}])
def test_text_model_starts_as_the_dit_with_the_null_class(arguments):
    state = dit_state()
    net = latte(conditioning="text", text_dim=3, **arguments)
    table = load_dit(net, state, labels="drop", temporal="identity")
    assert {row.part for row in table.rows if row.status == "new"} >= {"cross-attention", "caption projection"}
    text = Text(torch.ones(2, 4, 3, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool))
    x = frames(2)
    expected = [dit(state, x[:, f], TIMESTEPS, torch.tensor([CLASSES] * 2)) for f in range(2)]
    torch.testing.assert_close(without_time(net)(x, TIMESTEPS, text=text), torch.stack(expected, dim=1))


def test_caption_layers_of_an_image_model_are_copied():
    image = latte(variant="spatial", conditioning="text", text_dim=3)
    with torch.no_grad():
        for parameter in image.parameters():
            parameter.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(1))
    net = latte(conditioning="text", text_dim=3, depth=8)
    load_dit(net, image.state_dict(), labels="drop", temporal="identity")
    text = Text(torch.ones(2, 4, 3, dtype=torch.float64), torch.arange(4).expand(2, 4) < 2)
    torch.testing.assert_close(
        without_time(net)(frames(2), TIMESTEPS, text=text), image(frames(2), TIMESTEPS, text=text)
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"variant": "split_attention"},
        {"variant": "split_heads"},
        {"variant": "late_fusion", "patch_embed": "compression", "temporal_stride": 2},
    ],
    ids=lambda change: change.get("variant", "interleaved"),
)
def test_text_model_starts_as_a_class_model_with_the_null_class(change, tmp_path):
    """Layers that read captions are zero at the start, so the output does not depend on the caption."""
    source = export(tmp_path / "class.safetensors", change)
    net = latte(**change, conditioning="text", num_classes=0, text_dim=6)
    table = load_dit(net, tmp_path / "class.safetensors", labels="drop")
    assert {row.part for row in table.rows if row.status == "new"} == {"caption projection", "cross-attention"}
    assert "merged" not in str(table)
    x = torch.randn(2, 4, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH, dtype=torch.float64)
    text = Text(torch.randn(2, 3, 6, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(net(x, TIMESTEPS, text=text), source(x, TIMESTEPS, torch.full((2,), CLASSES)))


DEFAULTS = {field.name: field.default for field in dataclasses.fields(LatteConfig)}
# options of layers that a DiT has in another form, with all their values but the default
LAYERS = [
    (name, value)
    for name, values in LatteConfig.choices().items()
    for value in values
    if name not in {"injection", *VIDEO_OPTIONS, *CONVERTED_OPTIONS} and value != DEFAULTS[name]
]
MODERN = dict(LAYERS)


@pytest.mark.parametrize("arguments", [{"depth": 8}, {"variant": "split_attention"}])
def test_own_image_model_with_the_same_layers_is_accepted(arguments, tmp_path):
    image = export(tmp_path / "image.safetensors", {"variant": "spatial", **MODERN})
    net = latte(**MODERN, **arguments)
    load_dit(net, tmp_path / "image.safetensors", labels="keep", temporal="identity")
    x = frames(3)
    expected = image(x, TIMESTEPS, LABELS)
    torch.testing.assert_close(without_time(net)(x, TIMESTEPS, LABELS), expected)


def test_layers_that_must_be_equal():
    assert {("spatial_position", "rope"), ("qk_norm", True), ("swiglu", True), ("rms_norm", True)} <= set(LAYERS)


@pytest.mark.parametrize(("name", "value"), LAYERS)
def test_own_image_model_with_other_layers_is_rejected(name, value, tmp_path):
    source = tmp_path / "image.safetensors"
    image = export(source, {"variant": "spatial", name: value})
    with pytest.raises(ValueError, match=f"{name} is {value} in the source and {DEFAULTS[name]} in the model"):
        load_dit(latte(), source, labels="keep")
    if name == "qk_norm":  # weights show it without a configuration
        with pytest.raises(ValueError, match="qk_norm is True in the source and False in the model"):
            load_dit(latte(), image.state_dict(), labels="keep")


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("interleaved", {"depth": 8}, "depth is 4 in the source and 8 in the model"),
        ("split_heads", {"num_heads": 2}, "num_heads is 4 in the source and 2 in the model"),
    ],
)
def test_video_model_of_another_shape_is_rejected(variant, change, message, tmp_path):
    export(tmp_path / "video.safetensors", {"variant": variant})
    with pytest.raises(ValueError, match=message):
        load_dit(latte(variant=variant, **change), tmp_path / "video.safetensors", labels="keep")
