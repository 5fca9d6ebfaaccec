"""Construction of models with a masked-language-modeling head."""

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
    """Build an initialized model with a masked-language-modeling head.

    Args:
        model: Architecture and sizes of the model.

    Returns:
        A MosaicBertForMaskedLM, or a Hugging Face BertForMaskedLM of the same sizes if the architecture is "bert".

    Raises:
        ConfigError: If the value of a field is invalid.
    """
    fields: dict[str, Any] = asdict(model)
    if fields.pop("architecture") == "bert":
        return BertForMaskedLM(BertConfig(**fields))
    del fields["attention_probs_dropout_prob"]
    return MosaicBertForMaskedLM(MosaicBertConfig(**fields))


def describe_attention(model: ModelConfig, device_type: str, dtype: torch.dtype, implementation: str = "auto") -> str:
    """Describe the attention backend of a model on a device, and the reason for it, in one line.

    Args:
        model: Architecture and sizes of the model.
        device_type: Device type as in torch.device, for example "cuda".
        dtype: dtype of queries, keys and values.
        implementation: Name of a backend, or "auto" for the first backend that works.

    Returns:
        One line for the console.

    Raises:
        ValueError: If implementation is not a known name.
        RuntimeError: If the requested backend is not supported on this machine.
    """
    if model.architecture == "bert":
        return "attention: Hugging Face BERT, padded to the longest sequence"
    return str(choose_attention(implementation, device_type, dtype, model.head_dim))


def describe_kernels(device_type: str) -> str:
    """Describe the kernels of the memory-bound operations on a device, and the reason for them, in one line.

    Args:
        device_type: Device type as in torch.device, for example "cuda".

    Returns:
        One line for the console.
    """
    return str(choose_kernels(device_type))
