"""Parameters and FLOPs of each part of a model, counted on fake tensors, and the table of `latte info`."""

import dataclasses
import inspect
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from latte_pl.nn.blocks import TemporalBlock
from latte_pl.nn.denoiser import Denoiser
from latte_pl.profiling.memory import Precision, count_memory, example_inputs, fake_state

# Part of each module of the model and of its blocks, in the order of the printed table. A module without an entry is a
# part under its own name.
PARTS = {
    "x_embedder": "patch embedding",
    "t_embedder": "timestep and label",
    "y_embedder": "timestep and label",
    "text_embedder": "caption projection",
    "adaLN_modulation": "adaLN modulation",
    "attn": "spatial attention",
    "attn_temporal": "temporal attention",
    "cross_attn": "cross-attention",
    "mlp": "MLP",
    "norm1": "norms",
    "norm2": "norms",
    "final_layer": "final layer",
    "frames": "frame decoder",
}
OTHER = "other"


def _attention_flops(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# torch's FLOP counter (2.14) knows every attention kernel except the one of the CPU
KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass
class Cost:
    """Cost of a model by part.

    Args:
        parameters: Number of parameters of each part.
        flops: FLOPs of each part in the forward pass of one clip; a multiply-add counts as 2.
    """

    parameters: dict[str, int]
    flops: dict[str, int]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(self.parameters.values())

    @property
    def forward_flops(self) -> int:
        """FLOPs of the forward pass of one clip. Forward and backward pass together need three times as many."""
        return sum(self.flops.values())


def parts_by_name(net: Denoiser) -> dict[str, str]:
    """Return the part that each module and each parameter of a model belongs to, by its qualified name."""
    stacked = {id(block) for block in net.blocks}
    blocks = {name: module for name, module in net.named_modules() if id(module) in stacked}
    parts = {}
    for name in (*dict(net.named_modules()), *dict(net.named_parameters())):
        block = next((prefix for prefix in blocks if name.startswith(f"{prefix}.")), None)
        if block is not None:
            child = name.removeprefix(f"{block}.").split(".")[0]
            own_name = f"{block.rpartition('.')[0]}.{child}"  # without the index of the block
            if child == "attn" and isinstance(blocks[block], TemporalBlock):
                child = "attn_temporal"
        else:
            child, *inner = name.split(".")
            own_name = OTHER if name in blocks or not name else child
            child = inner[0] if inner[:1] == ["adaLN_modulation"] else child
        parts[name] = PARTS.get(child, own_name)
    return parts


def count_cost(net: Denoiser, num_images: int = 0) -> Cost:
    """Count parameters and FLOPs of a model, which may be on the meta device.

    Args:
        net: The model. Only its shapes matter.
        num_images: Number of images N that joint training appends to each clip.
    """
    parts = parts_by_name(net)
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in net.named_parameters():
        parameters[parts[name]] += parameter.numel()
    with FakeTensorMode():
        state, inputs = fake_state(net), example_inputs(net, num_images, batch_size=1)
        with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
            functional_call(net, state, kwargs=inputs)
    totals = {  # of each module with its submodules; the counter puts the name of the class first
        module.partition(".")[2]: sum(by_operator.values())
        for module, by_operator in counter.get_flop_counts().items()
        if module != "Global"
    }
    flops: dict[str, int] = defaultdict(int)
    for name, total in totals.items():
        flops[parts[name]] += total
        if name:  # the nearest module around it has counted these FLOPs, too
            parent = name.rpartition(".")[0]
            while parent not in totals:
                parent = parent.rpartition(".")[0]
            flops[parts[parent]] -= total
    return Cost(dict(parameters), {part: count for part, count in flops.items() if count})


def model_options(net: Denoiser) -> dict[str, Any]:
    """Return the options that a model was built with: its dataclass ``config``, or its constructor's arguments."""
    config = getattr(net, "config", None)
    if dataclasses.is_dataclass(config):
        options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    else:
        options = {name: getattr(net, name, None) for name in inspect.signature(type(net)).parameters}
    return {name: value for name, value in options.items() if value is not None}


def cost_table(
    net: Denoiser, num_images: int = 0, batch_size: int = 1, precision: Precision = "float32", num_extra_emas: int = 0
) -> str:
    """Return the options and the cost of a model as a table for the terminal; see `count_memory` for the arguments."""
    cost, options = count_cost(net, num_images), model_options(net)
    known = dict.fromkeys([*PARTS.values(), *cost.parameters, *cost.flops])
    parts = [part for part in known if part in cost.parameters or part in cost.flops]
    parts.sort(key=lambda part: part == OTHER)  # last
    width = 2 + max(map(len, options), default=0)
    lines = [f"{name:<{width}}{value}" for name, value in options.items()]
    width = 2 + max(map(len, (*parts, "forward + backward")))
    lines += ["", f"{'part':<{width}}{'parameters':>14}{'GFLOP per clip':>17}{'share':>8}"]
    for part in parts:
        parameters, flops = cost.parameters.get(part, 0), cost.flops.get(part, 0)
        lines.append(f"{part:<{width}}{parameters:>14,}{flops / 1e9:>17.3f}{flops / cost.forward_flops:>8.1%}")
    checkpointing = options.get("activation_checkpointing")
    how = f", activation_checkpointing {checkpointing}" if checkpointing else ""
    lines += [
        f"{'forward':<{width}}{cost.num_parameters:>14,}{cost.forward_flops / 1e9:>17.3f}",
        f"{'forward + backward':<{width}}{'':>14}{3 * cost.forward_flops / 1e9:>17.3f}",
        "",
        f"memory of a training step with {batch_size} clips on one device ({precision}{how})",
    ]
    memory = count_memory(net, num_images, batch_size, precision, num_extra_emas)
    rows = (
        ("weights", memory.weights),
        ("gradients", memory.weights),
        ("AdamW moments", 2 * memory.weights),
        ("EMA", memory.weights),
        *([("post-hoc EMAs", memory.extra_emas)] if num_extra_emas else []),
        ("activations", memory.activations),
        ("temporary", memory.temporary),
        ("total", memory.peak),
    )
    return "\n".join([*lines, *(f"{name:<20}{size / 2**20:>12,.1f} MiB" for name, size in rows)])
