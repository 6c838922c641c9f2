"""Sharding over all devices."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class FullyShard(ModelParallelStrategy):
    """FSDP2 with one data-parallel group of all devices of all nodes, and checkpoints that are single files.

    Lightning's "auto" takes the number of nodes for data parallelism and the devices of a node for tensor parallelism.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Size the data-parallel group once the number of devices is known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint without executing anything that it holds."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)
