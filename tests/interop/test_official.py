"""Parity with outputs of the official code on small random models (tests/fixtures/README.md), import and export."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latte_pl.diffusion import GaussianDiffusion
from latte_pl.interop import export_official, load_official
from latte_pl.interop.official import official_config
from latte_pl.nn import Latte, LatteConfig
from latte_pl.nn.positions import sincos_2d

FIXTURES = Path(__file__).parents[1] / "fixtures"
DTYPES = [("out_f32", torch.float32, 1e-5), ("out_f64_full", torch.float64, 1e-10)]
DEFAULTS = {field.name: field.default for field in dataclasses.fields(LatteConfig)}
# all values but the defaults, of each option with a fixed set of values; those of conditioning need other options
CHOICES = {
    name: [value for value in values if value != DEFAULTS[name]]
    for name, values in LatteConfig.choices().items()
    if name not in ("conditioning", "size")
}


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def video() -> dict[str, Tensor]:
    return load_file(FIXTURES / "official_class.safetensors")


@pytest.fixture(scope="module")
def joint() -> dict[str, Tensor]:
    return load_file(FIXTURES / "official_joint.safetensors")


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()


def joint_labels(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors["inputs.y"][:, None], tensors["inputs.y_image"]], dim=1)


@pytest.mark.parametrize(("outputs", "dtype", "tolerance"), DTYPES)
def test_forward_matches_the_official_code(video, outputs, dtype, tolerance):
    model = load_official(part(video, "state_dict."), num_heads=4).to(dtype)
    out = model(video["inputs.x"].to(dtype), video["inputs.t"], video["inputs.y"])
    assert out.dtype == dtype
    assert relative_error(out, video[f"{outputs}.forward"]) < tolerance


@pytest.mark.parametrize(("outputs", "dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("drop", [False, True])
def test_joint_forward_matches_the_official_code(joint, outputs, dtype, tolerance, drop):
    model = load_official(part(joint, "state_dict."), num_heads=4).to(dtype)
    labels = joint_labels(joint)
    if drop:
        dropped = [joint["out_f32.drop_video"][:, None], joint["out_f32.drop_image"][:, None].expand(-1, 3)]
        labels = torch.where(torch.cat(dropped, dim=1), model.null_label, labels)
        assert (labels == model.null_label).any()
    out = model(joint["inputs.x"].to(dtype), joint["inputs.t"], labels, num_images=3)
    reference = joint[f"{outputs}.forward_train_{'drop' if drop else 'nodrop'}"]
    assert relative_error(out, reference) < tolerance


@pytest.mark.parametrize(("outputs", "dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("images", [0, 3])
def test_gradients_match_the_official_code(video, joint, outputs, dtype, tolerance, images):
    tensors = joint if images else video
    model = load_official(part(tensors, "state_dict."), num_heads=4).to(dtype)
    labels = joint_labels(joint) if images else video["inputs.y"]
    loss = GaussianDiffusion().loss(
        lambda x, t: model(x, t, labels, num_images=images),
        tensors["inputs.x_start"].to(dtype),
        tensors["inputs.t"],
        tensors["inputs.noise"].to(dtype),
    )["loss"]
    loss.mean().backward()
    references = part(tensors, f"{outputs}.grads_{'train_nodrop' if images else 'eval'}.")
    assert len(references) > 5
    for key, reference in references.items():
        assert relative_error(model.get_parameter(key).grad, reference) < tolerance, key


def test_round_trip_is_exact(video, tmp_path):
    state = part(video, "state_dict.")
    torch.save({"model": {}, "ema": state}, tmp_path / "official.pt")
    exported = export_official(load_official(tmp_path / "official.pt", num_heads=4))
    assert exported.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(exported[key], value, rtol=0, atol=1e-7 if key.endswith("_embed") else 0, msg=key)


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 4, "input_size": 16, "in_channels": 3, "num_frames": 6, "learn_sigma": False},
        {"mlp_ratio": 2.0, "input_size": 4, "conditioning": "class", "num_classes": 5},
    ],
)
def test_every_option_is_read_from_the_shapes(options):
    source = Latte(hidden_size=384, depth=2, num_heads=6, **options)
    model = load_official({"model": export_official(source)}, class_dropout=0.2)
    assert model.config == dataclasses.replace(source.config, class_dropout=0.2)
    assert official_config({"ema": export_official(source)}) == source.config


def test_non_square_latents_need_input_size(video):
    state = part(video, "state_dict.")
    state["pos_embed"] = sincos_2d(2, 6, 64)[None]
    with pytest.raises(ValueError, match="12 patches per frame, which is not a square; pass input_size"):
        load_official(state, num_heads=4)
    assert load_official(state, num_heads=4, input_size=(4, 12)).config.grid == (2, 6)


def test_all_wrong_keys_are_named(video):
    state = part(video, "state_dict.")
    state["text_embedding_projection.1.weight"] = torch.zeros(2)
    del state["blocks.2.attn.qkv.bias"]
    state["blocks.1.mlp.fc2.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing: blocks.2.attn.qkv.bias; unexpected: text_.*shape: blocks.1.mlp.fc2"
    ):
        load_official(state, num_heads=4)


def test_other_position_tables_are_rejected(video):
    state = part(video, "state_dict.")
    with pytest.raises(ValueError, match="temp_embed"):
        load_official(state | {"temp_embed": state["temp_embed"].flip(1)}, num_heads=4)
    swapped = state["pos_embed"].unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)  # rows for columns
    with pytest.raises(ValueError, match="pos_embed"):
        load_official(state | {"pos_embed": swapped}, num_heads=4)


def test_other_sources_are_rejected(video, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_official(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="pos_embed"):
        load_official({"state_dict": {}})
    with pytest.raises(ValueError, match="hidden_size 64, which is not that of a known size; pass num_heads"):
        load_official(part(video, "state_dict."))


@pytest.mark.parametrize(
    "options",
    [
        *({name: value} for name, values in CHOICES.items() for value in values),
        {"conditioning": "text", "text_dim": 3},
        {"input_size": (4, 8)},
    ],
    ids=str,
)
def test_only_official_options_are_exported(options):
    """Only options that change nothing are exported: token_placement without tokens, and those of training."""
    model = Latte(**({"hidden_size": 32, "depth": 2, "num_heads": 4, "input_size": 8} | options))
    if options.keys() <= {"size", "token_placement", "activation_checkpointing", "learn_sigma"}:
        assert export_official(model).keys() == model.state_dict().keys() | {"pos_embed", "temp_embed"}
        return
    with pytest.raises(ValueError, match=rf"^the official code supports only .*; the model has {next(iter(options))}="):
        export_official(model)
