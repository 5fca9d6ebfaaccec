"""Composer model wrapper of a classifier: forward pass and loss."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION
from mosaicbert.train.composer import ComposerModel


class ClassifierComposerModel(ComposerModel):
    """Composer model wrapper that maps batches of `ClassificationCollator` to logits (B, L).

    Args:
        model: Classifier returned by `load_classifier`.
        problem_type: Hugging Face problem type.
        cpu_autocast: Dtype of matrix products on the CPU, where Composer supports only fp32.
        class_weights: Weight of each class in the loss; of multi-hot labels, that of its positive examples. None for
            equal weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        problem_type: str,
        cpu_autocast: torch.dtype,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)
        self.model = model
        self.problem_type = problem_type
        self.cpu_autocast = cpu_autocast

    def forward(self, batch: dict[str, Any]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        on_cpu = not inputs["input_ids"].is_cuda
        with torch.autocast("cpu", self.cpu_autocast, enabled=on_cpu and self.cpu_autocast != torch.float32):
            return self.model(**inputs).logits

    def loss(self, outputs: Tensor, batch: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        logits, labels = outputs.float(), batch["labels"]
        if self.problem_type == REGRESSION:
            return F.mse_loss(logits[:, 0], labels.float())
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.problem_type == MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)
        return F.cross_entropy(logits, labels, weights)
