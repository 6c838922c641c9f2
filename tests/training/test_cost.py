import copy
import json
from itertools import accumulate, product
from typing import get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from latte_pl.nn import Latte
from latte_pl.training.cost import KERNELS, cost_table, count_cost
from latte_pl.training.memory import count_memory
from latte_pl.types import Injection, Variant


def small(**kwargs):
    shape = {"hidden_size": 32, "depth": 4, "num_heads": 4, "input_size": (4, 6), "num_frames": 4}
    return Latte(**{**shape, "conditioning": "class", "num_classes": 3, **kwargs})


@pytest.mark.parametrize(("variant", "injection"), product(get_args(Variant), get_args(Injection)))
def test_costs_are_those_of_a_real_forward_pass(variant, injection):
    net = small(variant=variant, injection=injection)
    cost = count_cost(net, num_images=2)
    assert cost.num_parameters == sum(p.numel() for p in net.parameters())
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        net(torch.zeros(1, 6, 4, 4, 6), torch.zeros(1), torch.zeros(1, 3, dtype=torch.long), num_images=2)
    assert cost.forward_flops == pytest.approx(counter.get_total_flops(), rel=1e-2)
    temporal = cost.flops.get("temporal attention", 0)
    assert (temporal > 0) == (variant != "spatial")
    assert cost.flops["spatial attention"] > temporal


def test_captions_have_their_own_parts():
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


def test_the_flops_of_one_block_are_those_counted_by_hand():
    net = small(depth=2, conditioning="none")
    tokens, width = 4 * 6, 32
    linear = 2 * tokens * width * width
    cost = count_cost(net)
    assert cost.flops["MLP"] == 2 * 8 * linear
    assert cost.flops["spatial attention"] == 4 * linear + 2 * 2 * tokens * 6 * width
    assert cost.flops["temporal attention"] == 4 * linear + 2 * 2 * tokens * 4 * width


def test_gated_perceptrons_cost_what_they_replace_and_norms_of_queries_belong_to_attention():
    shape = {"hidden_size": 96, "variant": "split_attention"}  # widths that 2/3 divides
    recipe = {"spatial_position": "rope", "qk_norm": True, "swiglu": True, "rms_norm": True}
    plain, modern = small(**shape), small(**shape, **recipe)
    before, after = count_cost(plain, num_images=2), count_cost(modern, num_images=2)
    assert after.flops == before.flops
    assert after.num_parameters == sum(p.numel() for p in modern.parameters())
    for part in ("spatial attention", "temporal attention"):
        assert after.parameters[part] == before.parameters[part] + 4 * 2 * 24  # two scales a block
    assert after.parameters["MLP"] == pytest.approx(before.parameters["MLP"], rel=0.01)


def allocated(net, precision, batch_size, trace):
    """Return the most bytes that torch's allocator held in two training steps in the trainer's order, all of it."""
    inputs = {"x": torch.randn(batch_size, 4, 4, *net.input_size), "timesteps": torch.ones(batch_size)}
    if net.conditioning == "class":
        inputs["labels"] = torch.ones(batch_size, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model, average = copy.deepcopy(net), copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**inputs).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.1)
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
def test_the_memory_is_what_a_real_step_allocates(options, checkpointing, precision, tmp_path):
    net = small(input_size=(16, 24), activation_checkpointing=checkpointing, **options)
    counted = count_memory(net, batch_size=3, precision=precision).peak
    assert counted == pytest.approx(allocated(net, precision, 3, tmp_path / "trace.json"), rel=0.1)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing_and_in_half_precision():
    one, three = (count_memory(small(), batch_size=n).activations for n in (1, 3))
    assert three == pytest.approx(3 * one, rel=0.02)
    assert count_memory(small(activation_checkpointing=True)).activations < one / 3
    assert count_memory(small(activation_checkpointing="selective")).activations < 0.6 * one
    wide = small(input_size=(16, 24))
    assert count_memory(wide, precision="bf16").activations < 0.9 * count_memory(wide).activations


def test_a_model_without_memory_can_be_counted():
    with torch.device("meta"):
        net = Latte(size="XL", input_size=(32, 32))
    assert count_cost(net).forward_flops == pytest.approx(3.786e12, rel=0.03)
    assert "673,681,568" in cost_table(net)
