"""Composer model wrapper for masked language modeling, and the specification of its data."""

import contextlib
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric
from transformers import PreTrainedModel

from mosaicbert.batch import MicroBatch, StepBatch
from mosaicbert.model.modeling import MosaicBertForMaskedLM
from mosaicbert.train.composer import ComposerModel, DataSpec, LanguageCrossEntropy, MaskedAccuracy


class MaskedLmComposerModel(ComposerModel):
    """Composer model wrapper of a model with a masked language modeling head.

    Args:
        model: MosaicBERT, or a Hugging Face model that takes padded batches.
        cpu_autocast: dtype of matrix products on the CPU, where Composer itself supports only fp32.
    """

    def __init__(self, model: PreTrainedModel, cpu_autocast: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.cpu_autocast = cpu_autocast

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the summed loss of the masked tokens, and the number of correct predictions, () each.

        Both are sums, not means: the training step divides by the masked tokens of the global batch.
        """
        with self._autocast(batch):
            if isinstance(self.model, MosaicBertForMaskedLM):
                return self.model.masked_lm_loss(batch)
            logits = _predict_padded(self.model, batch)
        loss = F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        return loss, (logits.argmax(dim=-1) == batch.labels).sum()

    def loss(self, outputs: tuple[Tensor, Tensor], *_: Any, **__: Any) -> Tensor:
        return outputs[0]

    def eval_forward(self, batch: MicroBatch, outputs: Tensor | None = None) -> Tensor:
        """Compute the logits of the masked tokens, (M, V)."""
        if outputs is not None:
            return outputs
        with self._autocast(batch):
            if isinstance(self.model, MosaicBertForMaskedLM):
                return self.model.predict(batch)
            return _predict_padded(self.model, batch)

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        return {} if is_train else {"loss": LanguageCrossEntropy(), "accuracy": MaskedAccuracy()}

    def update_metric(self, batch: MicroBatch, outputs: Tensor, metric: Metric) -> None:
        if batch.num_masked:
            metric.update(outputs.float(), batch.labels)

    def _autocast(self, batch: MicroBatch) -> contextlib.AbstractContextManager[Any]:
        if batch.input_ids.is_cuda or self.cpu_autocast == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast("cpu", self.cpu_autocast)


def _predict_padded(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    if not batch.num_sequences:  # only padding, whose first document is used as a sequence
        batch = replace(batch, num_sequences=1, num_tokens=int(batch.cu_seqlens[1]))
    padded = batch.padded(model.config.pad_token_id)
    logits = model(padded["input_ids"], attention_mask=padded["attention_mask"]).logits  # (B, S, V)
    logits = logits[padded["attention_mask"].bool()]  # (num_tokens, V)
    return logits[batch.masked_indices]  # padding has index 0, and no label


def data_spec(loader: DataLoader[StepBatch], device_type: str) -> DataSpec:
    """Describe a data loader to Composer: an item is a step of micro-batches, with the counts of all ranks.

    Args:
        loader: Loader of steps on the CPU.
        device_type: Device to move each micro-batch to; Composer itself moves only tensors, mappings and sequences.
    """
    return DataSpec(
        loader,
        microbatch_transforms=lambda batch: batch.to(device_type, non_blocking=True),
        split_batch=lambda step, _size: step.micro_batches,
        get_num_samples_in_batch=lambda step: step.global_num_samples,
        get_num_tokens_in_batch=lambda step: step.global_num_tokens,
    )
