"""Tokenizer and kind of a pretrained model in a Hugging Face folder or on the Hub."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, BertTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from mosaicbert.config import ConfigError
from mosaicbert.model.configuration import PUBLISHED_KEY

_DEFAULT_TOKENIZER = "bert-base-uncased"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")


def is_mosaicbert(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of a MosaicBERT of this package, or of a published one.

    Args:
        config: Contents of the file.
    """
    return config.get("model_type") == "mosaicbert" or PUBLISHED_KEY in config


def load_pretrained_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    A published MosaicBERT without tokenizer files uses the tokenizer of bert-base-uncased, as its model card states.

    Args:
        name: Path of a Hugging Face folder, or name of a model on the Hub.

    Raises:
        ConfigError: If the model does not have a tokenizer, or its tokenizer has more tokens than the model.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        tokenizer = _load_published_tokenizer(name) if PUBLISHED_KEY in config else AutoTokenizer.from_pretrained(name)
        num_embeddings = config.get("vocab_size", len(tokenizer))
        if _has_only_special_tokens(tokenizer):
            raise ValueError(f"it must have tokenizer files, got only {len(tokenizer):,} special tokens")
        if len(tokenizer) > num_embeddings:
            raise ValueError(f"it must have at most the {num_embeddings:,} tokens of the model, got {len(tokenizer):,}")
        return tokenizer
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Model {name} does not have a usable tokenizer ({first_line(error)}). Check the name, or add the "
            "tokenizer that the model was trained with."
        ) from error


def _load_published_tokenizer(name: str) -> PreTrainedTokenizerBase:
    files = [cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in _TOKENIZER_FILES]
    if not any(files):
        return AutoTokenizer.from_pretrained(_DEFAULT_TOKENIZER)
    # BertTokenizer also reads a vocab.txt, which AutoTokenizer does for the model type `bert` only.
    return (BertTokenizer if files == [None, files[1]] else AutoTokenizer).from_pretrained(name)


def first_line(error: Exception) -> str:
    """Return the first line of an error message, without the full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


# Transformers 5 builds a tokenizer with special tokens only if the tokenizer files are missing.
def _has_only_special_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))
