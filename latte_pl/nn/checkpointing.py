"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again there."""

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = bool | Literal["selective"]
DEAR = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def checkpointed(block: nn.Module, selective: bool, *args: Any) -> Tensor:
    """Apply a block whose activations are computed again in the backward pass.

    Args:
        block: Called with ``args``.
        selective: Keep what matrix products and attention give, which is dear, and compute norms, modulation,
            activation functions and casts again (selective activation checkpointing, Korthikanti et al. 2022).
        args: Its arguments.
    """
    if not selective:
        return checkpoint(block, *args, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operator: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator.name().startswith(DEAR) else CheckpointPolicy.PREFER_RECOMPUTE
