"""What a model costs: parameters, FLOPs and memory by part, counted on fake tensors."""

import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from latte_pl.nn import Latte
from latte_pl.nn.variants import TemporalBlock
from latte_pl.types import Text

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
    ("final layer", r"final_layer"),
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
        activations: Bytes that one micro-batch's forward pass keeps for the backward pass.
    """

    parameters: dict[str, int]
    flops: dict[str, int]
    activations: int

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


def count_cost(net: Latte, num_images: int = 0, batch_size: int = 1) -> Cost:
    """Count parameters, FLOPs and kept activations of a model, which may live on the meta device.

    Args:
        net: The model; only its shapes are used.
        num_images: Images N of joint training.
        batch_size: Clips of the micro-batch whose activations are counted.
    """
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in net.named_parameters():
        parameters[part_of(name, net)] += parameter.numel()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    # fake CPU tensors take the fused attention path, as a real step does; the meta device would not
    with FakeTensorMode():
        state = {
            name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
            for name, value in (*net.named_parameters(), *net.named_buffers())
        }
        inputs = {
            "x": torch.zeros(batch_size, net.num_frames + num_images, net.in_channels, *net.input_size),
            "timesteps": torch.zeros(batch_size),
            "num_images": num_images,
        }
        if net.conditioning == "class":
            shape = (batch_size, 1 + num_images) if num_images else (batch_size,)
            inputs["labels"] = torch.zeros(shape, dtype=torch.long)
        if net.conditioning == "text":
            tokens = (batch_size, 1 + num_images, net.text_length)
            inputs["text"] = Text(torch.zeros(*tokens, net.text_dim), torch.ones(tokens, dtype=torch.bool))
        counter = FlopCounterMode(display=False, custom_mapping=KERNELS)
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            output = functional_call(net, state, kwargs=inputs)  # held, so that no storage is freed and counted twice
        weights = {tensor.untyped_storage()._cdata for tensor in state.values()}
        del output
    flops: dict[str, int] = defaultdict(int)
    total = counter.get_total_flops() // batch_size
    for module, by_operator in counter.get_flop_counts().items():
        name = module.partition(".")[2]
        if re.fullmatch("|".join(pattern for _, pattern in PARTS), name):
            flops[part_of(name, net)] += sum(by_operator.values()) // batch_size
    flops["other"] = total - sum(flops.values())
    activations = sum(size for storage, size in kept.items() if storage not in weights)
    return Cost(dict(parameters), dict(flops), activations)


def cost_table(net: Latte, num_images: int = 0, batch_size: int = 1) -> str:
    """Return the costs of a model as a table for the terminal; memory is for float32 training."""
    cost = count_cost(net, num_images, batch_size)
    lines = [f"{'part':<20}{'parameters':>14}{'GFLOP a clip':>15}{'share':>8}"]
    for part in [*(part for part, _ in PARTS), "other"]:
        parameters, flops = cost.parameters.get(part, 0), cost.flops.get(part, 0)
        if parameters or flops:
            lines.append(f"{part:<20}{parameters:>14,}{flops / 1e9:>15.3f}{flops / cost.forward_flops:>8.1%}")
    lines += [
        f"{'forward':<20}{cost.num_parameters:>14,}{cost.forward_flops / 1e9:>15.3f}",
        f"{'forward + backward':<34}{3 * cost.forward_flops / 1e9:>15.3f}",
        "",
        f"memory of a training step on {batch_size} clips a device (float32, one device)",
    ]
    weights = cost.num_parameters * 4
    rows = (
        ("weights", weights),
        ("gradients", weights),
        ("AdamW moments", 2 * weights),
        ("moving average", weights),
        ("activations", cost.activations),
    )
    lines += [f"  {name:<18}{size / 2**20:>12,.1f} MiB" for name, size in rows]
    lines.append(f"  {'in all':<18}{sum(size for _, size in rows) / 2**20:>12,.1f} MiB")
    return "\n".join(lines)
