"""Texts to batches of a classifier: unpadded for our encoders, padded to the longest for Hugging Face's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from mosaicbert.finetune.tables import Examples, Label


@dataclass(frozen=True)
class Encoded:
    """One example.

    Attributes:
        ids: of its tokens, by the names that the model's tokenizer gives its inputs.
        label: None where nothing is known.
    """

    ids: dict[str, list[int]]
    label: Label | None


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_len: int) -> list[Encoded]:
    """Tokenises all examples; of pairs that are too long the longer text is cut first.

    Args:
        tokenizer: of the model.
        examples: texts with or without labels.
        max_seq_len: tokens of an example at most, special ones included.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    pair = examples.texts[1] if len(examples.texts) == 2 else None
    ids: Any = tokenizer(examples.texts[0], pair, truncation=True, max_length=max_seq_len, return_attention_mask=False)
    labels = examples.labels or [None] * len(examples)
    return [Encoded({name: ids[name][number] for name in names}, label) for number, label in enumerate(labels)]


class Collator:
    """Puts examples together.

    A batch is a dictionary of what the model's forward takes, and `labels`: (B,) int64 classes, (B,) fp32 numbers, or
    (B, classes) fp32. Ours takes input_ids (T,) with cu_seqlens (B + 1,) int32 and max_seqlen; Hugging Face's take
    input_ids and attention_mask (B, S) int64.

    Args:
        is_unpadded: for our classes.
        pad_token_id: what padding is filled with.
    """

    def __init__(self, *, is_unpadded: bool, pad_token_id: int) -> None:
        self.is_unpadded = is_unpadded
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        batch = self._concatenate(examples) if self.is_unpadded else self._pad(examples)
        if examples[0].label is not None:
            labels = torch.tensor([example.label for example in examples])
            batch["labels"] = labels.float() if labels.ndim == 2 or labels.is_floating_point() else labels
        return batch

    def _concatenate(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            name: torch.tensor([token for example in examples for token in example.ids[name]])
            for name in examples[0].ids
        }
        lengths = [len(example.ids["input_ids"]) for example in examples]
        batch["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        return batch | {"max_seqlen": max(lengths)}

    def _pad(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        longest = max(len(example.ids["input_ids"]) for example in examples)

        def column(name: str, filler: int) -> Tensor:
            rows = [example.ids[name] for example in examples]
            return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

        batch = {name: column(name, self.pad_token_id if name == "input_ids" else 0) for name in examples[0].ids}
        lengths = torch.tensor([len(example.ids["input_ids"]) for example in examples])
        return batch | {"attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


class _List(Dataset[Encoded]):
    def __init__(self, examples: list[Encoded]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Encoded:
        return self.examples[index]


def build_loader(
    examples: list[Encoded], collator: Collator, batch_size: int, *, epochs: int = 1, seed: int | None = None
) -> "DataLoader[Encoded]":
    """Batches of several epochs, one behind the other; the last batch of an epoch may be smaller.

    Args:
        examples: to go through.
        collator: puts batches together.
        batch_size: examples of a batch.
        epochs: over all of them.
        seed: of each epoch's order; None leaves them as they stand.
    """
    order = list(_order(len(examples), batch_size, epochs, seed))
    return DataLoader(_List(examples), batch_sampler=order, collate_fn=collator)


def _order(num_examples: int, batch_size: int, epochs: int, seed: int | None) -> Iterator[list[int]]:
    for epoch in range(epochs):
        order = np.arange(num_examples)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(num_examples)
        for first in range(0, num_examples, batch_size):
            yield order[first : first + batch_size].tolist()
