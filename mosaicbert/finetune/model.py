"""Loading any pretrained encoder with a new classification head."""

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
_CLASSIFIER_PREFIXES = (
    "classifier.",
    "sequence_summary.summary.",
)  # the layer that depends on the task; the latter is XLM's


def load_classifier(name: str, *, num_labels: int, problem_type: str, seed: int) -> PreTrainedModel:
    """A pretrained encoder with a new classifier, fp32, on the CPU.

    Args:
        name: a Hugging Face folder, ours or another's, a published MosaicBERT's among them; or a name on the Hub.
        num_labels: classes, or 1 for a number.
        problem: Hugging Face's problem_type.
        seed: of the new weights.

    Raises:
        ConfigError: there is no such model, or it is no encoder that can be classified with.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem_type, "dtype": torch.float32}
    # A classifier of another task does not fit, and is not wanted.
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        is_mosaicbert = config.get("model_type") == "mosaicbert" or "alibi_starting_size" in config
        model_class: Any = MosaicBertForSequenceClassification if is_mosaicbert else AutoModelForSequenceClassification
        model, loading_info = model_class.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{name}: is no encoder that can be fine-tuned: {reason}") from error
    mismatched_names = loading_info["missing_keys"] | {key for key, *_ in loading_info["mismatched_keys"]}
    mismatched_names = sorted(key for key in mismatched_names if not _HEAD_WEIGHTS.search(key))
    if mismatched_names:
        raise ConfigError(
            f"{name}: its weights are not those of {type(model).__name__}: {mismatched_names[0]} and "
            f"{len(mismatched_names) - 1} more are missing or of another shape; config.json may be another model's, or it may need code of its own."
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
    """The same model before any training."""
    torch.manual_seed(seed)
    return type(model)(model.config)


def load_pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; that of bert-base-uncased for a published MosaicBERT that comes without, as they say.

    Raises:
        ConfigError: it has none, or one with more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        config, _ = PreTrainedConfig.get_config_dict(name)
        num_embeddings = config.get("vocab_size", len(tokenizer))
        if _has_only_special_tokens(tokenizer) and "alibi_starting_size" in config:
            tokenizer = AutoTokenizer.from_pretrained(_DEFAULT_TOKENIZER)
        if _has_only_special_tokens(tokenizer) or len(tokenizer) > num_embeddings:
            raise ValueError(f"{len(tokenizer):,} tokens were found, and the model has {num_embeddings:,}")
        return tokenizer
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{name}: has no tokenizer that fits: {reason}") from error


def _has_only_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has special tokens only: transformers 5 makes such a one where its files are missing."""
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))


def pad_token_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that padding is filled with."""
    return cast(int, tokenizer.pad_token_id or 0)


def max_input_length(model: PreTrainedModel, max_seq_len: int) -> int:
    """How many tokens a model may be given: `max_seq_len`, or its positions where they are fewer."""
    max_length = getattr(model.config, "max_position_embeddings", max_seq_len)
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None  # RoBERTa counts from behind its padding
        ):
            max_length = module.num_embeddings - module.padding_idx - 1
    return min(max_seq_len, max_length)


def is_unpadded(model: PreTrainedModel) -> bool:
    """Whether a model takes documents one behind the other."""
    return isinstance(model, MosaicBertForSequenceClassification)


def save_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a fine-tuned model without its classifier, for another task to begin with."""
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith(_CLASSIFIER_PREFIXES)}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
