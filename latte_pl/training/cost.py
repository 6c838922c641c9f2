"""What a model costs: parameters and FLOPs by part, counted on fake tensors, and the table of `latte info`."""

import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from latte_pl.nn import Latte
from latte_pl.nn.variants import TemporalBlock
from latte_pl.training.memory import Precision, count_memory, fake_inputs, fake_state

# the first pattern that fits a module's name decides; the order is that of the printed table
PARTS = (
    ("patch embedding", r"x_embedder"),
    ("timestep and label", r"[ty]_embedder"),
    ("caption projection", r"text_embedder"),
    ("adaLN modulation", r".*adaLN_modulation"),
    ("spatial attention", r"blocks\.\d+\.attn(?!_)"),
    ("temporal attention", r"blocks\.\d+\.attn_temporal"),
    ("cross-attention", r"blocks\.\d+\.cross_attn"),
    ("MLP", r"blocks\.\d+\.mlp"),
    ("final layer", r"final_layer\.(?!adaLN)\w+"),
)


def _attention_flops(query: list[int], key: list[int], value: list[int], *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# torch 2.14 counts every attention kernel but the CPU's
KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass
class Cost:
    """Costs of a model by part, and in all.

    Args:
        parameters: Trainable parameters by part.
        flops: FLOPs (2 x multiply-add) of one clip's forward pass by part.
    """

    parameters: dict[str, int]
    flops: dict[str, int]

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of the model."""
        return sum(self.parameters.values())

    @property
    def forward_flops(self) -> int:
        """FLOPs of one clip's forward pass; with the backward pass three times as many."""
        return sum(self.flops.values())


def part_of(name: str, net: Latte) -> str:
    """Return the part of the model that a parameter or module belongs to."""
    for part, pattern in PARTS:
        if re.match(pattern, name):
            if part == "spatial attention" and isinstance(net.blocks[int(name.split(".")[1])], TemporalBlock):
                return "temporal attention"
            return part
    return "other"


def count_cost(net: Latte, num_images: int = 0) -> Cost:
    """Count parameters and FLOPs of a model, which may live on the meta device.

    Args:
        net: The model; only its shapes are used.
        num_images: Images N of joint training.
    """
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in net.named_parameters():
        parameters[part_of(name, net)] += parameter.numel()
    with FakeTensorMode():
        state, inputs = fake_state(net), fake_inputs(net, num_images, batch_size=1)
        with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
            functional_call(net, state, kwargs=inputs)
    flops: dict[str, int] = defaultdict(int)
    for module, by_operator in counter.get_flop_counts().items():
        name = module.partition(".")[2]
        if re.fullmatch("|".join(pattern for _, pattern in PARTS), name):
            flops[part_of(name, net)] += sum(by_operator.values())
    flops["other"] = counter.get_total_flops() - sum(flops.values())
    return Cost(dict(parameters), dict(flops))


def cost_table(
    net: Latte, num_images: int = 0, batch_size: int = 1, precision: Precision = "float32", num_averages: int = 0
) -> str:
    """Return the costs of a model as a table for the terminal; arguments as of `count_memory`."""
    cost = count_cost(net, num_images)
    lines = [f"{'part':<20}{'parameters':>14}{'GFLOP a clip':>15}{'share':>8}"]
    for part in [*(part for part, _ in PARTS), "other"]:
        parameters, flops = cost.parameters.get(part, 0), cost.flops.get(part, 0)
        if parameters or flops:
            lines.append(f"{part:<20}{parameters:>14,}{flops / 1e9:>15.3f}{flops / cost.forward_flops:>8.1%}")
    which = "selective " if net.activation_checkpointing == "selective" else ""
    how = f"{precision}, {which}activation checkpointing" if net.activation_checkpointing else precision
    lines += [
        f"{'forward':<20}{cost.num_parameters:>14,}{cost.forward_flops / 1e9:>15.3f}",
        f"{'forward + backward':<34}{3 * cost.forward_flops / 1e9:>15.3f}",
        "",
        f"memory of a training step on {batch_size} clips a device ({how}, one device)",
    ]
    memory = count_memory(net, num_images, batch_size, precision, num_averages)
    rows = (
        ("weights", memory.weights),
        ("gradients", memory.weights),
        ("AdamW moments", 2 * memory.weights),
        ("moving average", memory.weights),
        *([("other averages", memory.averages)] if num_averages else []),
        ("activations", memory.activations),
        ("working space", memory.working),
        ("in all", memory.peak),
    )
    return "\n".join([*lines, *(f"  {name:<18}{size / 2**20:>12,.1f} MiB" for name, size in rows)])
