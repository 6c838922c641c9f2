"""Start processes in a SLURM job that runs the command without srun."""

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment


def cluster_environments(accelerator: Any, devices: Any, num_nodes: int) -> list[ClusterEnvironment]:
    """Return the cluster environment that starts the processes which SLURM did not start.

    Lightning takes every process of a SLURM job for a task of srun, and then trains on one device where several are
    asked for. If SLURM started one process only, Lightning's launcher starts the others.

    Args:
        accelerator: ``trainer.accelerator``.
        devices: ``trainer.devices``.
        num_nodes: ``trainer.num_nodes``.

    Returns:
        The plugin for the trainer; empty if Lightning's choice is right.

    Raises:
        ValueError: Several nodes are asked for, but SLURM started one process.
    """
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []
    tasks = int(os.environ["SLURM_NTASKS"])
    if "SLURM_STEP_ID" in os.environ and tasks > 1:  # srun started one process for each task
        return []
    if num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes is {num_nodes}, but SLURM started one process; start the command with srun and set "
            "--ntasks-per-node to the number of devices of a node"
        )
    return [LightningEnvironment()] if tasks > 1 or _count(accelerator, devices) > 1 else []


def _count(accelerator: Any, devices: Any) -> int:
    """Return the number of devices that a trainer's setting asks for."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 1
    return len(devices.split(",")) if "," in str(devices) else int(devices)
