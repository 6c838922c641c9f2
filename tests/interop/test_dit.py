"""A DiT's function inside a video model: compared with DiT written out on one image at a time, in float64."""

import argparse
import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from latte_pl.interop import load_dit
from latte_pl.interop.dit import block_map
from latte_pl.nn import Latte
from latte_pl.types import Text

WIDTH, HEADS, CHANNELS, PATCH, CLASSES = 32, 4, 3, 2, 5
GRID = (2, 3)
TIMESTEPS = torch.tensor([37.0, 812.0])
LABELS = torch.tensor([1, 4])


def dit_state(depth=4, channels=2 * CHANNELS, pos_embed=True):
    """Draw the state dict of a DiT, under the names and with the layouts of facebookresearch/DiT."""
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
    """DiT's code: the column's sines and cosines, then the row's, places row by row."""
    rows, columns = GRID
    frequencies = [10000 ** (-k / (WIDTH / 4)) for k in range(WIDTH // 4)]

    def code(p):
        return [math.sin(p * w) for w in frequencies] + [math.cos(p * w) for w in frequencies]

    return torch.tensor([code(c) + code(r) for r in range(rows) for c in range(columns)], dtype=torch.float64)


def dit(state, x, timesteps, labels, blocks=None):
    """Compute DiT on images x (N, C, H, W); ``blocks`` are those that it has, None for all."""

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
        vectors = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
        qkv = linear(f"blocks.{i}.attn.qkv", modulated(h, *vectors[:2])).unflatten(2, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, S, d) each
        scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
        attention = linear(f"blocks.{i}.attn.proj", (scores @ v).transpose(1, 2).flatten(2))
        h = h + vectors[2][:, None] * attention
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, *vectors[3:5])), approximate="tanh")
        h = h + vectors[5][:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
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


def release(path, arguments):
    """Write a class model with weights that are nowhere zero as `latte export` does, and return it."""
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
    """Switch the code in time off, so that the spatial path is left."""
    net.temp_embed.zero_()
    return net


EXACT = {
    "the image model": {"variant": "spatial"},
    "split attention": {"variant": "split_attention"},
    "split heads of DiT's width": {"variant": "split_heads", "num_heads": 2 * HEADS},
    "a spatial and a temporal block for each of DiT": {"depth": 8},
    "late fusion of twice the depth": {"depth": 8, "variant": "late_fusion"},
}


@pytest.mark.parametrize("position", ["absolute", "rope"])
@pytest.mark.parametrize("arguments", EXACT.values(), ids=EXACT)
def test_one_frame_gives_the_output_of_dit(arguments, position):
    state = dit_state()
    net = without_time(latte(**arguments, temporal_position=position))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1)
    torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], dit(state, x[:, 0], TIMESTEPS, LABELS))


@pytest.mark.parametrize("arguments", EXACT.values(), ids=EXACT)
def test_every_frame_of_a_clip_is_an_image_to_identity_layers(arguments):
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
def test_the_spatial_path_is_dit_without_the_blocks_that_have_no_place(arguments, path):
    state = dit_state()
    net = without_time(latte(**arguments))
    load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1)
    torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], dit(state, x[:, 0], TIMESTEPS, LABELS, path))


def test_copied_temporal_layers_are_those_of_the_same_depth():
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
def test_identity_layers_wake_up(variant):
    """Zero gates, or a zero output layer: the gradient of what is zero is not zero."""
    net = latte(variant=variant)
    load_dit(net, dit_state(), labels="keep", temporal="identity")
    net(frames(3), TIMESTEPS, LABELS).square().mean().backward()
    closed = "attn_temporal.proj.weight" if variant.startswith("split") else "adaLN_modulation.1.weight"
    names = [n for n, p in net.named_parameters() if n.startswith("blocks.") and n.endswith(closed) and not p.any()]
    assert len(names) == (4 if variant.startswith("split") else 2)
    assert all(net.get_parameter(name).grad.any() for name in names)


def test_without_classes_the_null_class_stays():
    state = dit_state()
    net = without_time(latte(variant="split_attention", conditioning="none"))
    load_dit(net, state, labels="drop", temporal="identity")
    x = frames(1)
    null = torch.full((2,), CLASSES)
    torch.testing.assert_close(net(x, TIMESTEPS)[:, 0], dit(state, x[:, 0], TIMESTEPS, null))


def test_new_labels_are_those_of_the_models_own_start():
    net, untouched = latte(num_classes=7), latte(num_classes=7)
    table = load_dit(net, dit_state(), labels="new")
    assert torch.equal(net.y_embedder.embedding_table.weight, untouched.y_embedder.embedding_table.weight)
    assert [(row.part, row.num_parameters) for row in table.rows if row.fate == "new"] == [("label table", 8 * WIDTH)]


@pytest.mark.parametrize("num_images", [0, 2])
def test_a_tubelet_of_equal_frames_is_the_image_of_dit(num_images):
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
def test_the_noise_of_dit_with_or_without_its_variance(theirs, own, patch_embed):
    state = dit_state(channels=theirs * CHANNELS)
    net = without_time(latte(variant="split_attention", learn_sigma=own == 2, patch_embed=patch_embed))
    table = load_dit(net, state, labels="keep", temporal="identity")
    x = frames(1).repeat(1, 2, 1, 1, 1)
    out, expected = net(x, TIMESTEPS, LABELS), dit(state, x[:, 0], TIMESTEPS, LABELS)
    torch.testing.assert_close(out[:, 1, :CHANNELS], expected[:, :CHANNELS])
    assert not out[:, :, CHANNELS:].any()
    variance = (WIDTH + 1) * PATCH**2 * CHANNELS
    fate, count = ("dropped", variance) if own == 1 else ("new", variance * net.temporal_stride)
    assert ("final layer", fate, count) in [row[:3] for row in table.rows]


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
def test_the_table_counts_every_parameter_once(arguments, temporal):
    state, net = dit_state(), latte(**arguments)
    table = load_dit(net, state, labels="keep", temporal=temporal)
    assert table.count("copied", "repeated", "new") == sum(p.numel() for p in net.parameters())
    assert table.count("dropped") <= sum(v.numel() for v in state.values())
    for row in table.rows:
        assert row.part in str(table)
        assert f"{row.num_parameters:,}" in str(table)


def test_the_table_says_what_became_of_each_part():
    rows = [tuple(row) for row in load_dit(latte(), dit_state(), labels="keep", temporal="identity").rows]
    block = 18 * WIDTH**2 + 15 * WIDTH
    assert ("spatial blocks", "copied", 2 * block, "of blocks 0, 2") in rows
    assert ("temporal blocks", "new", 2 * block, "") in rows
    assert ("source's blocks", "dropped", 2 * block, "1, 3") in rows
    assert ("source's pos_embed", "dropped", 6 * WIDTH, "the model computes the same code") in rows
    rows = [tuple(row)[:2] for row in load_dit(latte(depth=8), dit_state(), labels="keep").rows]
    assert ("spatial blocks", "copied") in rows
    assert ("temporal blocks", "repeated") in rows


def test_the_table_says_where_heads_are_merged():
    """The width of size S tells the DiT's heads."""
    shape = {"size": "S", "depth": 1, "input_size": 4, "mlp_ratio": 1.0}
    state = Latte(variant="spatial", **shape).state_dict()
    for heads, said in ((6, True), (12, False)):
        net = Latte(variant="split_heads", num_heads=heads, **shape)
        table = str(load_dit(net, state, labels="drop"))
        assert ("its 6 heads merged in 3, which changes its function" in table) == said
    with pytest.raises(ValueError, match="num_heads 6 and the model 12"):
        load_dit(Latte(variant="split_attention", num_heads=12, **shape), state, labels="drop")


@pytest.mark.parametrize(("own", "expected"), [(23, 0), (20, 0), (1, 0)])
def test_split_blocks_keep_the_first_and_the_last_of_dit(own, expected):
    with torch.device("meta"):
        net = Latte(size="XL", variant="split_heads", depth=own)
    blocks = block_map(net, 28)
    assert len(set(blocks)) == own
    assert blocks == sorted(blocks)
    assert blocks[0] == expected
    assert own == 1 or blocks[-1] == 27


def test_files_of_the_official_layout(tmp_path):
    state = dit_state()
    x = frames(1)
    expected = dit(state, x[:, 0], TIMESTEPS, LABELS)
    wrong = {name: torch.zeros_like(value) for name, value in state.items() if name != "pos_embed"}
    torch.save(state, tmp_path / "release.pt")
    torch.save({"model": wrong, "ema": state, "args": argparse.Namespace(model="DiT-S/2")}, tmp_path / "training.pt")
    save_file(state, tmp_path / "release.safetensors")
    for name in ("release.pt", "training.pt", "release.safetensors"):
        net = latte(variant="spatial")
        load_dit(net, tmp_path / name, labels="keep")
        torch.testing.assert_close(net(x, TIMESTEPS, LABELS)[:, 0], expected)


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": Harm()}, "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read as weights alone"):
        load_dit(latte(), "bad.pt")
    assert not (tmp_path / "harm").exists()


REFUSED = {
    "depth": ({"depth": 6}, {}, r"DiT has 4 blocks and the interleaved model 6: .* 4, or 8"),
    "more split blocks": ({"depth": 5, "variant": "split_heads"}, {}, r"4 blocks .* model 5: .* 4 or fewer"),
    "width": ({"hidden_size": 48}, {}, r"hidden_size 32 and the model 48"),
    "patch": ({"patch_size": 1}, {}, r"patch_size 2 and the model 1"),
    "channels": ({"in_channels": 4}, {}, r"in_channels 3 and the model 4"),
    "perceptron": ({"mlp_ratio": 2.0}, {}, r"mlp_ratio 4.0 and the model 2.0"),
    "queries": ({"qk_norm": True}, {}, r"qk_norm False and the model True"),
    "gates": ({"swiglu": True}, {}, r"swiglu False and the model True"),
    "norms": ({"rms_norm": True}, {}, r"rms_norm False and the model True"),
    "places": ({"spatial_position": "rope"}, {}, r"spatial_position absolute and the model rope"),
    "tokens": ({"injection": "tokens"}, {}, r"injection"),
    "classes": ({"num_classes": 7}, {"labels": "keep"}, r"6 rows and the model's 8 .* labels=\"new\""),
    "labels of a model without": ({"conditioning": "none"}, {"labels": "new"}, r"take labels=\"drop\""),
    "no labels of a model with": ({}, {"labels": "drop"}, r"'class': take labels \"new\" or \"keep\""),
    "a wrong word": ({}, {"temporal": "copied"}, r"one of copy, identity, got 'copied'"),
}


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(arguments, options, message):
    net = latte(**arguments)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_dit(net, dit_state(), **({"labels": "keep"} | options))
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_weights_are_refused(tmp_path):
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
    with pytest.raises(ValueError, match="variant interleaved, the model has split_heads; start from"):
        load_dit(latte(variant="split_heads"), "shapes")


@pytest.mark.parametrize("arguments", [{"variant": "spatial"}, {"variant": "split_attention"}, {"depth": 8}])
def test_a_model_of_captions_starts_as_the_dit_without_a_class(arguments):
    state = dit_state()
    net = latte(conditioning="text", text_dim=3, **arguments)
    table = load_dit(net, state, labels="drop", temporal="identity")
    assert {row.part for row in table.rows if row.fate == "new"} >= {"cross-attention", "caption projection"}
    text = Text(torch.ones(2, 4, 3, dtype=torch.float64), torch.ones(2, 4, dtype=torch.bool))
    x = frames(2)
    expected = [dit(state, x[:, f], TIMESTEPS, torch.tensor([CLASSES] * 2)) for f in range(2)]
    torch.testing.assert_close(without_time(net)(x, TIMESTEPS, text=text), torch.stack(expected, dim=1))


def test_layers_that_read_captions_come_along():
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
def test_a_model_of_captions_starts_as_the_unconditional_part_of_a_class_model(change, tmp_path):
    """What reads captions starts at zero, so any caption gives the class model's output without a class."""
    source = release(tmp_path / "class.safetensors", change)
    net = latte(**change, conditioning="text", num_classes=0, text_dim=6)
    table = load_dit(net, tmp_path / "class.safetensors", labels="drop")
    assert {row.part for row in table.rows if row.fate == "new"} == {"caption projection", "cross-attention"}
    assert "merged" not in str(table)
    x = torch.randn(2, 4, CHANNELS, GRID[0] * PATCH, GRID[1] * PATCH, dtype=torch.float64)
    text = Text(torch.randn(2, 3, 6, dtype=torch.float64), torch.ones(2, 3, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(net(x, TIMESTEPS, text=text), source(x, TIMESTEPS, torch.full((2,), CLASSES)))


RECIPE = {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True}


@pytest.mark.parametrize("arguments", [{"depth": 8}, {"variant": "split_attention"}])
def test_an_image_model_of_the_same_layers_is_a_start(arguments, tmp_path):
    image = release(tmp_path / "image.safetensors", {"variant": "spatial", **RECIPE})
    net = latte(**RECIPE, **arguments)
    load_dit(net, tmp_path / "image.safetensors", labels="keep", temporal="identity")
    x = frames(3)
    expected = image(x, TIMESTEPS, LABELS)
    torch.testing.assert_close(without_time(net)(x, TIMESTEPS, LABELS), expected)


@pytest.mark.parametrize("flag", RECIPE)
def test_an_image_model_of_other_layers_is_refused(flag, tmp_path):
    source = tmp_path / "image.safetensors"
    image = release(source, {"variant": "spatial", flag: RECIPE[flag]})
    with pytest.raises(ValueError, match=f"the DiT has {flag} {RECIPE[flag]} and the model (False|absolute)"):
        load_dit(latte(), source, labels="keep")
    if flag == "qk_norm":  # bare weights tell
        with pytest.raises(ValueError, match="qk_norm True and the model False"):
            load_dit(latte(), image.state_dict(), labels="keep")


@pytest.mark.parametrize(
    ("variant", "change", "said"),
    [
        ("interleaved", {"depth": 8}, "depth 4 and the model 8"),  # as many spatial blocks as the source has blocks
        ("split_heads", {"num_heads": 2}, "num_heads 4 and the model 2"),
    ],
)
def test_a_video_model_starts_one_of_its_own_shape(variant, change, said, tmp_path):
    release(tmp_path / "video.safetensors", {"variant": variant})
    with pytest.raises(ValueError, match=said):
        load_dit(latte(variant=variant, **change), tmp_path / "video.safetensors", labels="keep")
