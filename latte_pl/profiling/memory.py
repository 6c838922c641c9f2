"""Memory of a training step, counted on fake tensors: nothing is allocated."""

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

from latte_pl.nn.denoiser import Denoiser
from latte_pl.types import Text

Precision = Literal["float32", "bf16"]


@dataclass
class Memory:
    """Bytes that a training step holds on one device.

    Args:
        weights: Parameters of the denoiser. Gradients and EMA take as much each, the two moments of AdamW twice.
        activations: What the forward pass keeps for the backward pass, including weights that autocast has cast.
        temporary: What the step holds on top of all others at its peak.
        extra_emas: EMAs of the weights beside the main one.
    """

    weights: int
    activations: int
    temporary: int
    extra_emas: int = 0

    @property
    def peak(self) -> int:
        """Peak of every step after the first, which allocates the moments of AdamW."""
        return 5 * self.weights + self.extra_emas + self.activations + self.temporary


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that are alive, and their maximum, except for ``known`` tensors."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
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
                self.peak = max(self.peak, self.bytes)
        return out


class _Step(nn.Module):
    """Forward and backward pass in one call, because checkpointed blocks run again in the backward pass."""

    def __init__(self, net: Denoiser, precision: Precision) -> None:
        super().__init__()
        self.net, self.precision = net, precision

    def forward(self, inputs: dict[str, Any], live: _LiveBytes) -> tuple[int, int]:
        """Return the bytes that are alive after the forward pass, and their maximum during it."""
        with torch.autocast(inputs["x"].device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.net(**inputs).float().square().mean()
        after, during = live.bytes, live.peak
        loss.backward()
        return after, during


def fake_state(net: Denoiser) -> dict[str, Tensor]:
    """Return fake CPU tensors in place of all parameters and buffers. Call it under `FakeTensorMode`.

    Fake CPU tensors take the same attention kernels as a real step on the CPU; tensors on the meta device do not.
    """
    return {
        name: torch.empty(value.shape, dtype=value.dtype).requires_grad_(value.requires_grad)
        for name, value in (*net.named_parameters(), *net.named_buffers())
    }


def example_inputs(net: Denoiser, num_images: int, batch_size: int) -> dict[str, Any]:
    """Return arguments of the right shapes for a forward pass; fake tensors under `FakeTensorMode`."""
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
    net: Denoiser, num_images: int = 0, batch_size: int = 1, precision: Precision = "float32", num_extra_emas: int = 0
) -> Memory:
    """Count the memory of a training step on one micro-batch. The model may be on the meta device.

    The numbers are those of uncompiled blocks on the CPU, without the autoencoder and without the libraries. A GPU
    needs less in bf16, because its fused attention stores no attention scores. Compiled blocks also need less.

    Args:
        net: The model. Only its shapes and its activation checkpointing matter.
        num_images: Number of images N that joint training appends to each clip.
        batch_size: Clips of the micro-batch.
        precision: Precision of the trainer. "bf16" is bf16-mixed: matrix products in bf16, weights in float32.
        num_extra_emas: Number of EMAs beside the main one; post-hoc EMA (`latte_pl.training.post_hoc_ema`) has two.
    """
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    step = _Step(net, precision)
    with FakeTensorMode():
        state = {f"net.{name}": value for name, value in fake_state(net).items()}
        inputs = example_inputs(net, num_images, batch_size)
        live = _LiveBytes([value for value in (*state.values(), *tree_leaves(inputs)) if isinstance(value, Tensor)])
        with live:
            after, during = functional_call(step, state, (inputs, live))
    # the trainer frees the old gradients between the forward pass and the backward pass, which allocates new ones
    peak = max(during + weights, live.peak)
    return Memory(weights, after, max(peak - weights - after, 0), num_extra_emas * weights)


def count_sampling_memory(net: Denoiser, batch_size: int, precision: Precision = "float32") -> int:
    """Count the bytes of a forward pass without gradients: weights, EMA, inputs, and what it holds at its peak.

    The model may be on the meta device; see `count_memory` for what is not counted.

    Args:
        net: The model.
        batch_size: Videos of the pass; guidance doubles those that are drawn.
        precision: Precision of the trainer.
    """
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    with FakeTensorMode(), torch.no_grad():
        state, inputs = fake_state(net), example_inputs(net, 0, batch_size)
        live = _LiveBytes([value for value in tree_leaves(state) if isinstance(value, Tensor)])
        with live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            functional_call(net, state, kwargs=inputs)
    return 2 * weights + live.peak
