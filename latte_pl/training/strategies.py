"""Sharding over all devices."""

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from latte_pl.training import sharded


class FullyShard(ModelParallelStrategy):
    """FSDP2 with one data-parallel group of all devices of all nodes.

    Checkpoints are single files, which one process gathers and writes, or sharded: every process writes its own part.
    Both can be resumed on any number of devices and with any strategy.

    The "auto" of Lightning's strategy uses the nodes for data parallelism and the devices of a node for tensor
    parallelism.

    Args:
        process_group_backend: Backend of torch.distributed; None chooses by the device.
        sharded_checkpoints: Write folders instead of single files, for models that do not fit the memory of one process
            or take long to gather. The file system has to be shared by all nodes.
    """

    def __init__(self, process_group_backend: str | None = None, sharded_checkpoints: bool = False) -> None:
        self.sharded_checkpoints = sharded_checkpoints
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Set the size of the data-parallel group, which is known only now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint: a file, or a folder if checkpoints are sharded. Every process has to call this.

        Raises:
            OSError: The checkpoint cannot be written; earlier checkpoints are unchanged.
        """
        if self.sharded_checkpoints:
            sharded.write(checkpoint, Path(filepath))
        else:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint into model and optimizer, with ``weights_only=True``, and return its other values."""
        path = Path(checkpoint_path)
        if not sharded.is_sharded(path):
            return super().load_checkpoint(checkpoint_path, weights_only=True)
        assert self.model is not None
        options = StateDictOptions(cpu_offload=True)
        tensors: dict[str, Any] = {"state_dict": get_model_state_dict(self.model, options=options)}
        sharded.load(tensors, path)
        set_model_state_dict(self.model, tensors["state_dict"], options=options)
        meta = sharded.read_meta(path)
        for n, (optimizer, groups) in enumerate(zip(self.optimizers, meta.pop("param_groups"))):
            own = get_optimizer_state_dict(self.model, optimizer, options=options)
            part = {f"optimizer_{n}": own["state"]}
            sharded.load(part, path)
            state = {"state": part[f"optimizer_{n}"], "param_groups": groups}
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return meta
