"""Loading of pretrained encoders with a new classification head."""

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mosaicbert.config import ConfigError
from mosaicbert.model.modeling import MosaicBertForSequenceClassification

_DEFAULT_TOKENIZER = "bert-base-uncased"
_HEAD_WEIGHTS = re.compile(r"(^|\.)(pooler|classifier|pre_classifier|head|score|sequence_summary|summary)\.|^dense\.")
_CLASSIFIER_PREFIXES = ("classifier.", "sequence_summary.summary.")  # the output layer; the second name is XLM's


def load_classifier(name: str, *, num_labels: int, problem_type: str, seed: int) -> PreTrainedModel:
    """Load a pretrained encoder with a new classifier, in fp32 on the CPU.

    Args:
        name: Path of a Hugging Face folder, or name of a model on the Hub.
        num_labels: Number of classes; 1 for a regression.
        problem_type: Hugging Face problem type.
        seed: Seed of the new weights.

    Raises:
        ConfigError: If the model does not exist, or is not an encoder with a classification head.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem_type, "dtype": torch.float32}
    # The checkpoint may contain a classifier of a different task, whose shape may differ. It is replaced below.
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        is_mosaicbert = config.get("model_type") == "mosaicbert" or "alibi_starting_size" in config
        model_class: Any = MosaicBertForSequenceClassification if is_mosaicbert else AutoModelForSequenceClassification
        model, loading_info = model_class.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Model {name} cannot be loaded as a classifier ({_first_line(error)}). Check the name, or choose an "
            "encoder with a classification head."
        ) from error
    mismatched_names = loading_info["missing_keys"] | {key for key, *_ in loading_info["mismatched_keys"]}
    mismatched_names = sorted(key for key in mismatched_names if not _HEAD_WEIGHTS.search(key))
    if mismatched_names:
        raise ConfigError(
            f"Weights of {name} must match {type(model).__name__}, got {len(mismatched_names)} missing or "
            f"mismatched weights, such as {mismatched_names[0]}. Check that config.json belongs to the weights; models "
            "with custom code are not supported."
        )
    _reset_classifier(model, seed)
    return model


def _reset_classifier(model: PreTrainedModel, seed: int) -> None:
    torch.manual_seed(seed)
    std = getattr(model.config, "initializer_range", 0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.".startswith(_CLASSIFIER_PREFIXES):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                nn.init.zeros_(module.bias)


def with_random_weights(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a model with the same configuration and random weights.

    Args:
        model: Model with the configuration.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    return type(model)(model.config)


def load_pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    A published MosaicBERT without tokenizer files uses the tokenizer of bert-base-uncased, as its model card states.

    Args:
        name: Path of a Hugging Face folder, or name of a model on the Hub.

    Raises:
        ConfigError: If the model does not have a tokenizer, or its tokenizer has more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config, _ = PreTrainedConfig.get_config_dict(name)
        num_embeddings = config.get("vocab_size", len(tokenizer))
        if _has_only_special_tokens(tokenizer) and "alibi_starting_size" in config:
            tokenizer = AutoTokenizer.from_pretrained(_DEFAULT_TOKENIZER)
        if _has_only_special_tokens(tokenizer):
            raise ValueError(f"it must have tokenizer files, got only {len(tokenizer):,} special tokens")
        if len(tokenizer) > num_embeddings:
            raise ValueError(f"it must have at most the {num_embeddings:,} tokens of the model, got {len(tokenizer):,}")
        return tokenizer
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Model {name} does not have a usable tokenizer ({_first_line(error)}). Check the name, or add the "
            "tokenizer that the model was trained with."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


# Transformers 5 builds a tokenizer with special tokens only if the tokenizer files are missing.
def _has_only_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token id of padding, or 0 if the tokenizer does not define one."""
    return cast(int, tokenizer.pad_token_id or 0)


def max_input_length(model: PreTrainedModel, max_seq_len: int) -> int:
    """Return the maximum number of tokens of an input.

    Args:
        model: Model whose position embeddings limit the length.
        max_seq_len: Configured maximum number of tokens.
    """
    max_length = getattr(model.config, "max_position_embeddings", max_seq_len)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None  # RoBERTa's first position follows padding_idx
        ):
            max_length = module.num_embeddings - module.padding_idx - 1
    return min(max_seq_len, max_length)


def is_unpadded(model: PreTrainedModel) -> bool:
    """Return whether a model accepts unpadded tokens."""
    return isinstance(model, MosaicBertForSequenceClassification)


def save_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a fine-tuned model without its classifier, to initialize other tasks.

    Args:
        model: Fine-tuned model.
        tokenizer: Tokenizer of the model.
        folder: Path of the new Hugging Face folder.
    """
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(_CLASSIFIER_PREFIXES)}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
