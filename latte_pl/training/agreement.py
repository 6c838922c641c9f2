"""A number that all processes of a training agree on without waiting for each other."""

from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """The largest number that any process proposed, known one step later.

    The reduction runs on the CPU while the processes train, and `result` waits for the one that started a step ago.
    All processes have to build the object and call its methods in the same order.

    Args:
        world_size: Number of processes.
    """

    def __init__(self, world_size: int) -> None:
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._value = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def propose(self, value: int) -> None:
        """Propose a number, and start the reduction."""
        self._value = torch.tensor([value], dtype=torch.int32)
        if self._group is not None:
            self._work = dist.all_reduce(self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def result(self) -> int:
        """Return the largest number that was proposed last; 0 before the first."""
        if self._work is not None:
            self._work.wait()
        return int(self._value)
