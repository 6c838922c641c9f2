"""Cost and memory of models against real forward passes and training steps, and against values computed by hand."""

import copy
import dataclasses
import json
import re
from collections import OrderedDict
from itertools import accumulate, product

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from latte_pl.nn import Latte, LatteConfig
from latte_pl.nn.denoiser import Denoiser
from latte_pl.profiling.cost import KERNELS, cost_table, count_cost
from latte_pl.profiling.memory import count_memory

CHOICES = LatteConfig.choices()


def small(**kwargs):
    shape = {"hidden_size": 32, "depth": 4, "num_heads": 4, "input_size": (4, 6), "num_frames": 4}
    return Latte(**{**shape, "conditioning": "class", "num_classes": 3, **kwargs})


@pytest.mark.parametrize(("variant", "injection"), product(CHOICES["variant"], CHOICES["injection"]))
def test_cost_matches_a_real_forward_pass(variant, injection):
    net = small(variant=variant, injection=injection)
    cost = count_cost(net, num_images=2)
    assert cost.num_parameters == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        net(torch.zeros(1, 6, 4, 4, 6), torch.zeros(1), torch.zeros(1, 3, dtype=torch.long), num_images=2)
    assert cost.forward_flops == pytest.approx(counter.get_total_flops(), rel=1e-2)
    temporal = cost.flops.get("temporal attention", 0)
    assert (temporal > 0) == (variant != "spatial")
    assert cost.flops["spatial attention"] > temporal


def test_text_conditioning_adds_only_its_own_parts():
    plain, text = small(depth=2, conditioning="none"), small(depth=2, conditioning="text", text_dim=6, text_length=5)
    before, after = count_cost(plain), count_cost(text)
    assert after.num_parameters == sum(p.numel() for p in text.parameters())
    assert {part: count for part, count in after.parameters.items() if part in before.parameters} == before.parameters
    assert after.parameters["cross-attention"] == 4 * 32 * 33
    assert after.parameters["caption projection"] == 7 * 32 + 33 * 32 + 32
    queries, tokens = 4 * 6, 1 + 5
    linear = 2 * 32 * 32
    assert after.flops["cross-attention"] >= 2 * queries * linear + 2 * tokens * linear
    assert after.flops["caption projection"] == 5 * (2 * 6 * 32 + linear)


def test_flops_of_blocks_match_values_computed_by_hand():
    net = small(depth=2, conditioning="none")
    tokens, width = 4 * 6, 32
    linear = 2 * tokens * width * width
    cost = count_cost(net)
    assert cost.flops["MLP"] == 2 * 8 * linear
    assert cost.flops["spatial attention"] == 4 * linear + 2 * 2 * tokens * 6 * width
    assert cost.flops["temporal attention"] == 4 * linear + 2 * 2 * tokens * 4 * width


def test_swiglu_keeps_the_cost_and_qk_norm_counts_as_attention():
    shape = {"hidden_size": 96, "variant": "split_attention"}  # a width divisible by 3, for swiglu
    recipe = {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True}
    plain, modern = small(**shape), small(**shape, **recipe)
    before, after = count_cost(plain, num_images=2), count_cost(modern, num_images=2)
    assert after.flops == before.flops
    assert after.num_parameters == sum(p.numel() for p in modern.parameters())
    for part in ("spatial attention", "temporal attention"):
        assert after.parameters[part] == before.parameters[part] + 4 * 2 * 24  # two scales per block
    assert after.parameters["MLP"] == pytest.approx(before.parameters["MLP"], rel=0.01)


def allocated(net, precision, batch_size, trace):
    """Return the peak of the bytes that torch allocates in two training steps, in the order of the trainer."""
    inputs = {"x": torch.randn(batch_size, 4, 4, *net.input_size), "timesteps": torch.ones(batch_size)}
    if net.conditioning == "class":
        inputs["labels"] = torch.ones(batch_size, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model, ema = copy.deepcopy(net), copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**inputs).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 0.1)
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True, "selective"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"injection": "tokens"},
        {"variant": "split_heads", "conditioning": "none"},
        {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True},
    ],
)
def test_memory_matches_what_a_real_step_allocates(options, checkpointing, precision, tmp_path):
    net = small(input_size=(16, 24), activation_checkpointing=checkpointing, **options)
    counted = count_memory(net, batch_size=3, precision=precision).peak
    assert counted == pytest.approx(allocated(net, precision, 3, tmp_path / "trace.json"), rel=0.1)


def test_activations_depend_on_batch_size_checkpointing_and_precision():
    one, three = (count_memory(small(), batch_size=n).activations for n in (1, 3))
    assert three == pytest.approx(3 * one, rel=0.02)
    assert count_memory(small(activation_checkpointing=True)).activations < one / 3
    assert count_memory(small(activation_checkpointing="selective")).activations < 0.6 * one
    wide = small(input_size=(16, 24))
    assert count_memory(wide, precision="bf16").activations < 0.9 * count_memory(wide).activations


def test_extra_emas_add_their_weights():
    net = small()
    weights = sum(p.nbytes for p in net.parameters())
    assert count_memory(net, num_extra_emas=2).peak - count_memory(net).peak == 2 * weights


def test_model_on_the_meta_device_can_be_counted():
    with torch.device("meta"):
        net = Latte(size="XL", input_size=(32, 32))
    cost = count_cost(net)
    assert cost.num_parameters == 673_681_568
    assert cost.forward_flops == pytest.approx(3.786e12, rel=0.03)


def rows(table):
    """Return the cells of each line of a table by the text in its first column."""
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())}


def test_table_contains_every_option_of_the_model():
    net = small(variant="split_attention", qk_norm=True, activation_checkpointing="selective")
    table = rows(cost_table(net))
    for field in dataclasses.fields(net.config):
        value = getattr(net.config, field.name)
        assert table.get(field.name) == (None if value is None else [str(value)])
    assert table["variant"] == ["split_attention"]
    assert table["input_size"] == ["(4, 6)"]


def test_table_contains_costs_and_memory():
    net = small(depth=2, conditioning="none")
    table = rows(cost_table(net, batch_size=3, num_extra_emas=2))
    flops, mlp = 1e-9 * count_cost(net).forward_flops, 1e-9 * 2 * 8 * (2 * 24 * 32**2)
    weights = sum(p.numel() for p in net.parameters())
    assert table["MLP"] == [f"{2 * (8 * 32**2 + 5 * 32):,}", f"{mlp:.3f}", f"{mlp / flops:.1%}"]
    assert table["forward"] == [f"{weights:,}", f"{flops:.3f}"]
    assert table["forward + backward"] == [f"{3 * flops:.3f}"]
    mebibytes = 4 * weights / 2**20
    assert table["AdamW moments"] == table["post-hoc EMAs"] == [f"{2 * mebibytes:.1f} MiB"]
    assert table["EMA"] == [f"{mebibytes:.1f} MiB"]
    assert table["total"] == [f"{count_memory(net, batch_size=3, num_extra_emas=2).peak / 2**20:.1f} MiB"]
    assert table.keys().isdisjoint({"other", "cross-attention", "caption projection"})


class WithUnknownParts(Denoiser):
    """A denoiser with modules that the table has no names for."""

    in_channels, input_size, num_frames, conditioning = 3, (4, 6), 2, "none"

    def __init__(self, width=5):
        super().__init__()
        self.width = width
        self.stem = torch.nn.Linear(3, width)
        block = [torch.nn.Sequential(OrderedDict(mixer=torch.nn.Linear(width, width))) for _ in range(2)]
        self.blocks = torch.nn.ModuleList(block)
        self.head = torch.nn.Linear(width, 3)

    def forward(self, x, timesteps, num_images=0):
        tokens = x.movedim(2, -1)
        for layer in (self.stem, *self.blocks, self.head):
            tokens = layer(tokens)
        return tokens.movedim(-1, 2) @ x.new_ones(6, 6)

    def init_weights(self, seed=None): ...

    def null_text(self, text): ...


def test_unknown_modules_are_parts_under_their_own_names():
    net, tokens = WithUnknownParts(), 2 * 4 * 6
    cost = count_cost(net)
    assert cost.parameters == {"stem": 20, "blocks.mixer": 2 * 30, "head": 18}
    assert cost.flops == {
        "stem": 2 * tokens * 15,
        "blocks.mixer": 2 * 2 * tokens * 25,
        "head": 2 * tokens * 15,
        "other": 2 * tokens * 3 * 6,
    }
    assert rows(cost_table(net))["width"] == ["5"]
