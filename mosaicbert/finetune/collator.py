"""Tokenization of labeled texts, and collation: unpadded for MosaicBERT, padded for other encoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mosaicbert.finetune.tables import Examples, Label


@dataclass(frozen=True)
class EncodedExample:
    """A tokenized example.

    Attributes:
        ids: Token ids and, if the model uses them, token types, by input name.
        label: Label of the example; None for an example without a label.
    """

    ids: dict[str, list[int]]
    label: Label | None


def encode(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_seq_len: int) -> list[EncodedExample]:
    """Tokenize examples. Truncation shortens the longer text of a pair first.

    Args:
        tokenizer: Tokenizer of the model.
        examples: Texts with or without labels.
        max_seq_len: Maximum number of tokens of an example, including special tokens.
    """
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    pair = examples.texts[1] if len(examples.texts) == 2 else None
    ids: Any = tokenizer(examples.texts[0], pair, truncation=True, max_length=max_seq_len, return_attention_mask=False)
    labels = examples.labels or [None] * len(examples)
    return [EncodedExample({name: ids[name][index] for name in names}, label) for index, label in enumerate(labels)]


class ClassificationCollator:
    """Collator that builds a batch from tokenized examples.

    A batch is a dictionary of the arguments of the model's forward method. Its `labels` are (B,) int64 classes,
    (B,) fp32 numbers, or (B, L) fp32 multi-hot labels. An unpadded batch has input_ids (T,) with cu_seqlens (B + 1,)
    int32 and max_seqlen. A padded batch has input_ids and attention_mask (B, S) int64.

    Args:
        is_unpadded: True for a model that accepts unpadded tokens.
        pad_token_id: Token id of padding.
    """

    def __init__(self, *, is_unpadded: bool, pad_token_id: int) -> None:
        self.is_unpadded = is_unpadded
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[EncodedExample]) -> dict[str, Any]:
        batch = self._concatenate(examples) if self.is_unpadded else self._pad(examples)
        if examples[0].label is not None:
            labels = torch.tensor([example.label for example in examples])
            batch["labels"] = labels.float() if labels.ndim == 2 or labels.is_floating_point() else labels
        return batch

    def _concatenate(self, examples: Sequence[EncodedExample]) -> dict[str, Any]:
        batch: dict[str, Any] = {
            name: torch.tensor([token for example in examples for token in example.ids[name]])
            for name in examples[0].ids
        }
        lengths = [len(example.ids["input_ids"]) for example in examples]
        batch["cu_seqlens"] = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        return batch | {"max_seqlen": max(lengths)}

    def _pad(self, examples: Sequence[EncodedExample]) -> dict[str, Any]:
        max_length = max(len(example.ids["input_ids"]) for example in examples)

        def column(name: str, padding: int) -> Tensor:
            rows = [example.ids[name] for example in examples]
            return torch.tensor([row + [padding] * (max_length - len(row)) for row in rows])

        batch = {name: column(name, self.pad_token_id if name == "input_ids" else 0) for name in examples[0].ids}
        lengths = torch.tensor([len(example.ids["input_ids"]) for example in examples])
        return batch | {"attention_mask": (torch.arange(max_length) < lengths[:, None]).long()}
