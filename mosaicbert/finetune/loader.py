"""Data loader of tokenized examples over all epochs."""

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
    num_epochs: int = 1,
    seed: int | None = None,
) -> "DataLoader[EncodedExample]":
    """Build a data loader that iterates over all epochs in sequence.

    The last batch of an epoch may be smaller than the others.

    Args:
        examples: Tokenized examples of one epoch.
        collator: Collator of the batches.
        batch_size: Number of examples per batch.
        num_epochs: Number of epochs.
        seed: Seed of the shuffling, which differs in each epoch; None keeps the order of the examples.
    """
    batches = list(_batch_order(len(examples), batch_size, num_epochs, seed))
    return DataLoader(_ExampleDataset(examples), batch_sampler=batches, collate_fn=collator)


def _batch_order(num_examples: int, batch_size: int, num_epochs: int, seed: int | None) -> Iterator[list[int]]:
    for epoch in range(num_epochs):
        order = np.arange(num_examples)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(num_examples)
        for start in range(0, num_examples, batch_size):
            yield order[start : start + batch_size].tolist()
