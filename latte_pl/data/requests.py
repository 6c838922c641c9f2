"""Requests for samples: the batches of `test_dataloader` and `predict_dataloader`."""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader, IterableDataset


class SampleRequest(TypedDict):
    """One sample to draw. A batch of requests has tensors (B,) and a list of B prompts."""

    index: int
    """Index of the sample in its set; with the seed it determines the sample's noise."""
    label: int
    """Class of the sample; ignored by models without classes."""
    prompt: str
    """Caption of the sample; ignored by models without captions."""


def sample_requests(
    num_samples: int, labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None
) -> list[SampleRequest]:
    """Return requests for the samples 0 to ``num_samples`` - 1.

    Args:
        num_samples: Number of samples, at least 1.
        labels: Classes to cycle through; None for a model without classes.
        prompts: Captions to cycle through; None for a model without captions.

    Raises:
        ValueError: ``num_samples`` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    labels, prompts = labels or [0], prompts or [""]
    return [
        SampleRequest(index=n, label=labels[n % len(labels)], prompt=prompts[n % len(prompts)])
        for n in range(num_samples)
    ]


class RequestBatches(IterableDataset[dict[str, Any]]):
    """Batches of requests for one process.

    Batch k holds the samples k B to (k + 1) B - 1 and belongs to process k modulo the number of processes. So a batch
    consists of the same samples on any number of devices, also when earlier samples exist already. A process without
    samples gets one empty batch, because Lightning calls no hooks for an empty loader, and other processes would wait.

    Args:
        requests: The samples to draw, in any subset of the whole set.
        batch_size: Samples B of a batch, at least 1.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        seed: Seed of the set of samples; None leaves it to the module.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        batch_size: int = 16,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        batches: dict[int, list[SampleRequest]] = {}
        for request in requests:
            batches.setdefault(request["index"] // batch_size, []).append(request)
        self.seed = seed
        self.batches = [batch for k, batch in batches.items() if k % world_size == rank]
        if requests and not self.batches:
            self.batches = [[]]

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches: "index" and "label" (B,) int64, "prompt" a list of B strings, "seed" if there is one."""
        seed = {} if self.seed is None else {"seed": self.seed}
        for batch in self.batches:
            yield seed | {
                "index": torch.tensor([request["index"] for request in batch], dtype=torch.int64),
                "label": torch.tensor([request["label"] for request in batch], dtype=torch.int64),
                "prompt": [request["prompt"] for request in batch],
            }

    def loader(self) -> DataLoader[dict[str, Any]]:
        """Return a DataLoader of these batches."""
        return DataLoader(self, batch_size=None)
