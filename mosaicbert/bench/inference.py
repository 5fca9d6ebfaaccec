"""Versions of inference: embeddings of documents, the mean of the last hidden states."""

from typing import Any

import torch
from torch import Tensor

from mosaicbert.bench.documents import Workload, cut_in_order, pad_documents, sort_by_length, unmask
from mosaicbert.bench.peers import (
    bert_sizes,
    build_bert,
    build_modernbert,
    modernbert_config,
    modernbert_flops,
    step_flops,
)
from mosaicbert.bench.timing import PhaseClock
from mosaicbert.bench.versions import BERT, MODERNBERT, MOSAICBERT, Subject, Version
from mosaicbert.config import Recipe
from mosaicbert.model.factory import build_model
from mosaicbert.ops.attention import choose_attention

_TRAINING_FACTOR = 3.0  # FLOPs of a training step relative to those of its forward pass


class Embedding(Subject):
    """Embeddings of padded batches of documents, as a user of the Hugging Face API computes them.

    Args:
        family: Name of the model.
        recipe: Recipe with the sizes of the model.
        dtype: dtype of weights and activations.
        device_type: Device, "cuda" or "cpu".
        batch_size: Documents of a batch.
        is_sorted: Whether the documents of a round are sorted by length before they are cut into batches.
    """

    def __init__(
        self, family: str, recipe: Recipe, dtype: torch.dtype, device_type: str, batch_size: int, is_sorted: bool
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.family, self.batch_size, self.is_sorted = family, batch_size, is_sorted
        self.sizes = recipe.model
        if family == MOSAICBERT:
            self.model: Any = getattr(build_model(self.sizes), "model")  # noqa: B009
            self.attention = choose_attention("auto", device_type, dtype, self.sizes.head_dim).name
        else:
            if family == BERT:
                self.model = build_bert(self.sizes, recipe.data.max_seq_len).bert
            else:
                self.model = build_modernbert(self.sizes, sparse_prediction=False).model
            self.model.set_attn_implementation("sdpa")
            self.attention = "sdpa"
        self.model.to(device_type, dtype).eval()
        self.device = torch.device(device_type)

    def load(self, workload: Workload) -> list[Any]:
        documents = [unmask(document) for document in workload.documents]
        if self.is_sorted:
            documents = sort_by_length(documents)
        batches = cut_in_order(documents, -(-len(documents) // self.batch_size))
        padded = (pad_documents(batch, self.sizes.pad_token_id) for batch in batches)
        return [{name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")} for batch in padded]

    @torch.inference_mode()
    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the mean of the last hidden states of each document.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S) int64, 1 for real tokens.

        Returns:
            (B, C).
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, S, C)
        weights = attention_mask.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(1) / weights.sum(1)

    def run(self, batches: list[Any], clock: PhaseClock) -> None:
        for batch in batches:
            self.embed(**batch)
        clock.lap("forward")

    def num_padded_tokens(self, batches: list[Any]) -> int:
        if self.family == MOSAICBERT:  # which removes the padding
            return sum(int(batch["attention_mask"].sum()) for batch in batches)
        return sum(batch["input_ids"].numel() for batch in batches)

    def flops(self, workload: Workload) -> float:
        if self.family == MODERNBERT:
            config = modernbert_config(self.sizes, sparse_prediction=False)
            return modernbert_flops(config, workload.seqlens, num_masked=0) / _TRAINING_FACTOR
        sizes = self.sizes if self.family == MOSAICBERT else bert_sizes(self.sizes)
        return step_flops(sizes, workload.seqlens, num_masked=0) / _TRAINING_FACTOR


def embedding_versions(recipe: Recipe, dtype: torch.dtype, device_type: str, batch_size: int) -> list[Version]:
    """Return the versions of the embeddings, those in the precision of the recipe first.

    Args:
        recipe: Recipe with the sizes of the models.
        dtype: dtype of matrix products of the recipe.
        device_type: Device of all versions, "cuda" or "cpu".
        batch_size: Documents of a batch.
    """
    settings = [(MOSAICBERT, "unpadded", False)]
    settings += [(family, "padded", False) for family in (BERT, MODERNBERT)]
    if batch_size > 1:  # otherwise there is no padding
        settings += [(family, "padded, sorted by length", True) for family in (BERT, MODERNBERT)]

    def version(family: str, setting: str, is_sorted: bool, weight_dtype: torch.dtype) -> Version:
        def start() -> Embedding:
            return Embedding(family, recipe, weight_dtype, device_type, batch_size, is_sorted)

        return Version(family, setting, weight_dtype, start)

    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    return [version(*setting, precision) for precision in (dtype, other) for setting in settings]
