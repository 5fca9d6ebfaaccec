"""ModelConfig to a model with a masked-language-modelling head."""

from dataclasses import asdict
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from mosaicbert.config import ModelConfig
from mosaicbert.model.configuration import MosaicBertConfig
from mosaicbert.model.modeling import MosaicBertForMaskedLM
from mosaicbert.ops.attention import choose_attention
from mosaicbert.ops.dispatch import choose_kernels


def build_model(model: ModelConfig) -> PreTrainedModel:
    """A freshly initialised MosaicBERT, or Hugging Face's BERT of the same shape."""
    fields: dict[str, Any] = asdict(model)
    if fields.pop("architecture") == "bert":
        return BertForMaskedLM(BertConfig(**fields))
    del fields["attention_probs_dropout_prob"]
    return MosaicBertForMaskedLM(MosaicBertConfig(**fields))


def describe_attention(model: ModelConfig, device_type: str, dtype: torch.dtype, implementation: str = "auto") -> str:
    """Which attention a model will take on a device, and why, in one line.

    Raises:
        RuntimeError: the implementation asked for does not work here.
    """
    if model.architecture == "bert":
        return "attention: Hugging Face's, padded to the longest sequence"
    return str(choose_attention(implementation, device_type, dtype, model.head_dim))


def describe_kernels(device_type: str) -> str:
    """What computes the memory-bound operations on a device, and why, in one line."""
    return str(choose_kernels(device_type))
