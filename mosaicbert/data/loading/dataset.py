"""Datasets of the training steps and the evaluation steps of one rank."""

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from mosaicbert.batch import StepBatch
from mosaicbert.data.loading.collator import MlmCollator
from mosaicbert.data.loading.sample_order import Group, mixed_order, order

_EVAL_SAMPLES_PER_STEP = 1024


class TrainDataset(torch.utils.data.IterableDataset[StepBatch]):
    """Dataset of the training steps of one rank, which starts at any step without reading earlier steps.

    Args:
        collator: Collator of the training split.
        groups: Groups of samples in the store.
        first_sample: Function from a batch index to the position of its first sample in the sample order.
        num_steps: Number of steps of the run; None for an endless dataset.
        mask_rate: Function from a step index to its mask rate.
        first_step: Index of the first step.
        skipped_batches: Indices of the batches to skip. The steps use the remaining batches in order.
    """

    def __init__(
        self,
        collator: MlmCollator,
        *,
        groups: Sequence[Group],
        first_sample: Callable[[int], int],
        num_steps: int | None,
        mask_rate: Callable[[int], float],
        first_step: int = 0,
        skipped_batches: Collection[int] = (),
    ) -> None:
        self.collator = collator
        self.groups = groups
        self.first_sample = first_sample
        self.num_steps = num_steps
        self.mask_rate = mask_rate
        self.first_step = first_step
        self.skipped_batches = sorted(skipped_batches)

    def __getitem__(self, step: int) -> StepBatch:
        batch = self.batch_of(step)
        epochs, samples = self.samples_of(batch)
        return replace(self.collator.collate(epochs, samples, self.mask_rate(step)), batch=batch)

    def __iter__(self) -> Iterator[StepBatch]:
        for step in _worker_steps(self.first_step, self.num_steps):
            yield self[step]

    def batch_of(self, step: int) -> int:
        """Return the index of the batch of a step."""
        batch = step
        for skipped_batch in self.skipped_batches:
            batch += skipped_batch <= batch
        return batch

    def samples_of(self, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the samples of a global batch.

        Returns:
            Epoch (B,) of each sample, and index (B,) of each sample in the store.
        """
        positions = np.arange(self.first_sample(batch), self.first_sample(batch + 1))
        return mixed_order(positions, self.groups, self.collator.seed)


class EvalDataset(torch.utils.data.IterableDataset[StepBatch]):
    """Dataset of the evaluation steps of one rank: a fixed random subset of a split with fixed masks.

    Args:
        collator: Collator of the validation split.
        max_samples: Maximum number of samples.
        mask_rate: Probability that an ordinary token is masked.

    Raises:
        ValueError: If the number of samples is smaller than the number of ranks.
    """

    def __init__(self, collator: MlmCollator, *, max_samples: int, mask_rate: float) -> None:
        self.collator = collator
        self.num_samples = min(max_samples, collator.store.num_samples)
        self.mask_rate = mask_rate
        if self.num_samples < collator.world_size:
            raise ValueError(
                f"The number of validation samples must be at least {collator.world_size}, the number of processes, "
                f"got {self.num_samples}."
            )

    def __len__(self) -> int:
        return max(1, self.num_samples // max(_EVAL_SAMPLES_PER_STEP, self.collator.world_size))

    def __iter__(self) -> Iterator[StepBatch]:
        # Chunks of nearly equal size with a sequence for every rank, so that all ranks have the same number of steps.
        chunks = np.array_split(np.arange(self.num_samples), len(self))
        for step in _worker_steps(0, len(self)):
            epochs, samples = order(chunks[step], self.collator.store.num_samples, self.collator.seed)
            yield self.collator.collate(epochs, samples, self.mask_rate)


def _worker_steps(first: int, end: int | None) -> Iterator[int]:
    # A DataLoader polls its workers in turn, so round-robin assignment preserves the order of the steps.
    worker = torch.utils.data.get_worker_info()
    offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
    steps = itertools.count(first + offset, stride)
    return steps if end is None else itertools.takewhile(lambda step: step < end, steps)
