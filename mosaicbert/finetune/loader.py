"""Loader of tokenized examples: all epochs in sequence, shuffled or in order."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mosaicbert.finetune.collator import ClassificationCollator, EncodedExample


class _ExampleDataset(Dataset[EncodedExample]):
    def __init__(self, examples: list[EncodedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.examples[index]


def build_classification_loader(
    examples: list[EncodedExample],
    collator: ClassificationCollator,
    batch_size: int,
    *,
    epochs: int = 1,
    seed: int | None = None,
) -> "DataLoader[EncodedExample]":
    """Build the loader of all epochs in sequence; the last batch of an epoch may be smaller.

    Args:
        examples: Tokenized examples of an epoch.
        collator: Collator of the batches.
        batch_size: Examples per batch.
        epochs: Number of epochs.
        seed: Seed of the shuffling, which differs in each epoch; None keeps the order of the examples.
    """
    batches = list(_batch_order(len(examples), batch_size, epochs, seed))
    return DataLoader(_ExampleDataset(examples), batch_sampler=batches, collate_fn=collator)


def _batch_order(num_examples: int, batch_size: int, epochs: int, seed: int | None) -> Iterator[list[int]]:
    for epoch in range(epochs):
        order = np.arange(num_examples)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(num_examples)
        for first in range(0, num_examples, batch_size):
            yield order[first : first + batch_size].tolist()
