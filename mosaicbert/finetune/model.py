"""Loading of pretrained encoders with a new classification head."""

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mosaicbert.config import ConfigError
from mosaicbert.model.modeling import MosaicBertForSequenceClassification
from mosaicbert.model.pretrained import first_line, is_mosaicbert

_HEAD_WEIGHTS = re.compile(r"(^|\.)(pooler|classifier|pre_classifier|head|score|sequence_summary|summary)\.|^dense\.")
# Names of the output layer. RoBERTa and MosaicBERT have a pooler and an output layer in their classifier. The last name
# is XLM's.
_OUTPUT_LAYER = re.compile(r"^(classifier|classifier\.out_proj|sequence_summary\.summary)\.(weight|bias)$")


def load_classifier(
    name: str, *, num_labels: int, problem_type: str, seed: int, dropout: float | None = None
) -> PreTrainedModel:
    """Load a pretrained encoder with a new classifier, in fp32 on the CPU.

    Args:
        name: Path of a Hugging Face folder, or name of a model on the Hub.
        num_labels: Number of classes; 1 for a regression.
        problem_type: Hugging Face problem type.
        seed: Seed of the new weights.
        dropout: Dropout of embeddings, hidden states and classifier; None for that of the configuration.

    Raises:
        ConfigError: If the model does not exist, is not an encoder with a classification head, or has no field
            `hidden_dropout_prob` although dropout is set.
    """
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem_type, "dtype": torch.float32}
    # The checkpoint may contain a classifier of a different task, whose shape may differ. It is replaced below.
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        if dropout is not None:
            options |= _dropout_options(name, config, dropout)
        model_class: Any = (
            MosaicBertForSequenceClassification if is_mosaicbert(config) else AutoModelForSequenceClassification
        )
        model, loading_info = model_class.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Model {name} cannot be loaded as a classifier ({first_line(error)}). Check the name, or choose an "
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


def _dropout_options(name: str, config: dict[str, Any], dropout: float) -> dict[str, float]:
    if "hidden_dropout_prob" not in config:
        raise ConfigError(
            f"`dropout` must be null for {name}, whose configuration has no `hidden_dropout_prob`, got {dropout}. Set "
            "the dropout in its config.json."
        )
    fields = ("hidden_dropout_prob", "classifier_dropout")  # the second one overrides the first for some encoders
    return {field: dropout for field in fields if config.get(field) is not None}


def _reset_classifier(model: PreTrainedModel, seed: int) -> None:
    torch.manual_seed(seed)
    std = getattr(model.config, "initializer_range", 0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and _OUTPUT_LAYER.search(f"{name}.weight"):
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


def find_output_layer(model: PreTrainedModel) -> nn.Linear:
    """Return the output layer of a regression: the only linear layer with one output.

    Args:
        model: Classifier with one output.

    Raises:
        ConfigError: If the model does not have exactly one such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    if len(layers) != 1:
        raise ConfigError(
            f"{type(model).__name__} must have one linear layer with one output for a regression, got {len(layers)}. "
            "Choose another encoder."
        )
    return layers[0]


def scale_output(layer: nn.Linear, scale: float, offset: float) -> None:
    """Change an output layer in place so that it returns `scale * output + offset`.

    Args:
        layer: Output layer.
        scale: Factor of the output.
        offset: Added to the scaled output; 0 if the layer has no bias.
    """
    with torch.no_grad():
        layer.weight.mul_(scale)
        if layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            layer.bias.mul_(scale).add_(offset)


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
    """Save a fine-tuned model without its output layer, to initialize other tasks.

    Args:
        model: Fine-tuned model.
        tokenizer: Tokenizer of the model.
        folder: Path of the new Hugging Face folder.
    """
    weights = {name: value for name, value in model.state_dict().items() if not _OUTPUT_LAYER.search(name)}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
