"""Peers of MosaicBERT: Hugging Face's BERT and ModernBERT of the same width, depth and vocabulary."""

import importlib.util
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, ModernBertConfig, ModernBertForMaskedLM

from mosaicbert.config import ModelConfig
from mosaicbert.estimate import BERT_MAX_POSITIONS, training_flops

_MODERNBERT_EXPANSION = 1.5  # intermediate_size / hidden_size of ModernBERT-base (arXiv:2412.13663)
_MAX_NUM_GRAPHS = 128  # compiled graphs per module, one for each shape until the compiler makes the shapes dynamic


def bert_sizes(model: ModelConfig) -> ModelConfig:
    """Return the sizes of BERT with the width, depth, vocabulary and dropout of MosaicBERT."""
    return replace(model, architecture="bert", attention_probs_dropout_prob=model.hidden_dropout_prob)


def build_bert(model: ModelConfig, max_seq_len: int) -> Any:
    """Build Hugging Face's BERT for masked language modeling, with logits at all tokens.

    Args:
        model: Sizes of MosaicBERT.
        max_seq_len: Length of the longest document in tokens.
    """
    fields = asdict(bert_sizes(model))
    del fields["architecture"]
    return BertForMaskedLM(BertConfig(**fields, max_position_embeddings=max(BERT_MAX_POSITIONS, max_seq_len)))


def modernbert_config(model: ModelConfig, *, sparse_prediction: bool) -> ModernBertConfig:
    """Return the configuration of ModernBERT with the width, depth and vocabulary of MosaicBERT.

    The feed-forward networks have the relative width of ModernBERT-base. ModernBERT has no dropout.

    Args:
        model: Sizes of MosaicBERT.
        sparse_prediction: Whether logits are computed at masked tokens only.
    """
    special_tokens = dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), model.pad_token_id
    )
    return ModernBertConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=round(_MODERNBERT_EXPANSION * model.hidden_size),
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        sparse_prediction=sparse_prediction,
        **special_tokens,
    )


def build_modernbert(model: ModelConfig, *, sparse_prediction: bool) -> Any:
    """Build Hugging Face's ModernBERT for masked language modeling, see `modernbert_config`."""
    return ModernBertForMaskedLM(modernbert_config(model, sparse_prediction=sparse_prediction))


def fastest_attention(device_type: str) -> str:
    """Return the fastest attention of Hugging Face that is installed: FlashAttention 2 on GPUs, otherwise SDPA."""
    has_flash = device_type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash else "sdpa"


def compile_layers(model: Any) -> None:
    """Compile each layer and the head of a Hugging Face model in place, with dynamic shapes from the second shape on.

    Args:
        model: BertForMaskedLM or ModernBertForMaskedLM.
    """
    torch._dynamo.config.recompile_limit = _MAX_NUM_GRAPHS
    layers, head = (model.bert.encoder.layer, model.cls) if hasattr(model, "bert") else (model.model.layers, model.head)
    for module in (*layers, head):
        module.compile(dynamic=None)


def step_flops(model: ModelConfig, seqlens: Tensor, num_masked: int) -> float:
    """Return the FLOPs of a training step, as in `training_flops`.

    Args:
        model: Sizes of MosaicBERT or BERT.
        seqlens: (B,) length of each document in tokens.
        num_masked: Number of masked tokens.
    """
    squared = float(seqlens.double().square().sum())
    return training_flops(model, num_tokens=int(seqlens.sum()), squared_lengths=squared, num_masked=num_masked)


def modernbert_flops(config: ModernBertConfig, seqlens: Tensor, num_masked: int) -> float:
    """Return the FLOPs of a training step as in `training_flops`, for token pairs within the attention window only.

    Args:
        config: Configuration of the model.
        seqlens: (B,) length of each document in tokens.
        num_masked: Number of masked tokens.
    """
    width, window = config.hidden_size, config.local_attention // 2
    seqlens = seqlens.double()
    local_pairs = torch.where(seqlens > window, seqlens * (2 * window + 1) - window * (window + 1), seqlens.square())
    layer_types = config.layer_types or []
    pairs = layer_types.count("full_attention") * float(seqlens.square().sum())
    pairs += layer_types.count("sliding_attention") * float(local_pairs.sum())
    per_layer = 4 * width * width + 3 * width * config.intermediate_size
    head = width * width + config.vocab_size * width
    matrices = config.num_hidden_layers * per_layer * float(seqlens.sum()) + head * num_masked
    return 6.0 * (matrices + 2 * width * pairs)
