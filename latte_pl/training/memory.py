"""What a training step holds in memory, counted on fake tensors: nothing is allocated."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latte_pl.nn import Latte
from latte_pl.types import Text

Precision = Literal["float32", "bf16"]


@dataclass
class Memory:
    """Bytes that a training step holds on one device.

    Args:
        weights: The denoiser's parameters; gradients and moving average take the same each, AdamW's moments twice.
        activations: What the forward pass leaves to the backward pass, with weights cast to half precision.
        working: What comes on top at the highest point of the step.
        averages: Averages of the weights beside the moving one.
    """

    weights: int
    activations: int
    working: int
    averages: int = 0

    @property
    def peak(self) -> int:
        """The highest point of a step after the first."""
        return 5 * self.weights + self.averages + self.activations + self.working


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and the most there were."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.bytes = self.highest = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.bytes += storage.nbytes()
                self.highest = max(self.highest, self.bytes)
        return out


class _Step(nn.Module):
    """Forward and backward pass in one call, for checkpointed blocks run again in the latter."""

    def __init__(self, net: Latte, precision: Precision) -> None:
        super().__init__()
        self.net, self.precision = net, precision

    def forward(self, inputs: dict[str, Any], live: _Live) -> tuple[int, int]:
        """Return the bytes alive after, and the most during, the forward pass."""
        with torch.autocast(inputs["x"].device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.net(**inputs).float().square().mean()
        after, during = live.bytes, live.highest
        loss.backward()
        return after, during


def fake_state(net: Latte) -> dict[str, Tensor]:
    """Return fake CPU tensors in the place of parameters and buffers; call it under `FakeTensorMode`.

    They take the attention path of a real step on the CPU; the meta device would not.
    """
    return {
        name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
        for name, value in (*net.named_parameters(), *net.named_buffers())
    }


def fake_inputs(net: Latte, num_images: int, batch_size: int) -> dict[str, Any]:
    """Return the arguments of a forward pass; fake under `FakeTensorMode`."""
    inputs: dict[str, Any] = {
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
    return inputs


def count_memory(
    net: Latte, num_images: int = 0, batch_size: int = 1, precision: Precision = "float32", num_averages: int = 0
) -> Memory:
    """Count what a training step of a micro-batch holds; the model may live on the meta device.

    The figures are those of eager blocks on the CPU, frozen codec and libraries apart. A GPU holds less in bf16: its
    fused attention keeps no scores. Compiled blocks hold less, too.

    Args:
        net: The model; only its shapes and ``activation_checkpointing`` are used.
        num_images: Images N of joint training.
        batch_size: Clips of the micro-batch.
        precision: "bf16" is the trainer's bf16-mixed: products in bf16, weights in float32.
        num_averages: Averages that training keeps beside the moving one, see `latte_pl.training.average`.
    """
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    step = _Step(net, precision)
    with FakeTensorMode():
        state = {f"net.{name}": value for name, value in fake_state(net).items()}
        inputs = fake_inputs(net, num_images, batch_size)
        live = _Live([value for value in (*state.values(), *tree_leaves(inputs)) if isinstance(value, Tensor)])
        with live:
            after, during = functional_call(step, state, (inputs, live))
    # the trainer frees the old gradients between forward and backward pass, in which the new ones grow
    highest = max(during + weights, live.highest)
    return Memory(weights, after, max(highest - weights - after, 0), num_averages * weights)
