"""Prepare plan: the values of a recipe that determine its token store."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from mosaicbert.config import Recipe, SourceConfig
from mosaicbert.config.recipe import VOCABULARY_MULTIPLE
from mosaicbert.config.validators import must_be
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer
from mosaicbert.filesystem import partial_path


@dataclass(frozen=True, kw_only=True)
class PreparePlan:
    """Values of a recipe that determine its token store.

    Attributes:
        store_folder: Folder of the finished store.
        sources: Sources by name, in the order in which they are read.
        tokenizer_source: "train", or the path or Hub name of the tokenizer to load.
        vocab_size: Vocabulary size of the model.
        pad_token_id: Id of [PAD] in the model.
        max_tokens: Maximum number of tokens of a sample, without [CLS] and [SEP].
        sampling: "truncate" or "chunk", see `DataConfig`.
        min_characters: Minimum length of a text in characters.
        validation_fraction: Fraction of the texts in the validation split, for sources without a validation split.
        skip_invalid_documents: True to skip and count documents that cannot be read; False stops at the first one.
        num_partitions: Number of partitions of the input files.
        partition: Number of the only partition to prepare; None prepares the whole store.
        prepared_from: Recipe keys that determine the content of the store, with their values.
    """

    store_folder: Path
    sources: Mapping[str, SourceConfig]
    tokenizer_source: str
    vocab_size: int
    pad_token_id: int
    max_tokens: int
    sampling: Literal["truncate", "chunk"]
    min_characters: int
    validation_fraction: float
    skip_invalid_documents: bool
    num_partitions: int
    partition: int | None
    prepared_from: Mapping[str, Any]

    @staticmethod
    def resolve(recipe: Recipe) -> "PreparePlan":
        """Collect the values of a recipe.

        Args:
            recipe: Recipe of a run.
        """
        data = recipe.data
        return PreparePlan(
            store_folder=recipe.store_folder,
            sources=data.sources,
            tokenizer_source=recipe.tokenizer.source,
            vocab_size=recipe.model.vocab_size,
            pad_token_id=recipe.model.pad_token_id,
            max_tokens=data.max_text_tokens,
            sampling=data.sampling,
            min_characters=data.min_characters,
            validation_fraction=data.validation_fraction,
            skip_invalid_documents=data.skip_invalid_documents,
            num_partitions=data.num_partitions,
            partition=data.partition,
            prepared_from=_prepared_from(recipe),
        )

    @property
    def staging_folder(self) -> Path:
        """Staging directory, which is renamed to the store folder at the end."""
        return partial_path(self.store_folder)

    def describe_sources(self) -> str:
        """Format the keys and paths of all sources for an error message."""
        return ", ".join(f"`data.sources.{name}.path={source.path}`" for name, source in self.sources.items())

    def check_store(self) -> StoreRecord:
        """Read the record of the existing store, and check that it is the store of this plan.

        Raises:
            ConfigError: If the store does not exist, is corrupted, or was made from different sources or with a
                different tokenizer.
        """
        record = StoreRecord.read(self.store_folder)
        self.check_prepared_from(self.store_folder, record.prepared_from)
        tokenizer = open_tokenizer(self.store_folder, record)
        source = self.tokenizer_source
        if source != "train" and Path(source).exists():
            if hash_tokenizer(load_tokenizer(source)) != hash_tokenizer(tokenizer):
                raise must_be(
                    "tokenizer.source",
                    f"the tokenizer that {self.store_folder} was prepared with",
                    source,
                    f"Set a different `data.store`, or delete {self.store_folder}.",
                )
        self.check_tokenizer(tokenizer)
        return record

    def check_prepared_from(self, folder: Path, prepared_from: Mapping[str, Any]) -> None:
        """Check that a folder was prepared with the values of this plan.

        Args:
            folder: Folder of a store, or staging directory.
            prepared_from: Recipe keys and values that the folder was prepared with.

        Raises:
            ConfigError: If a value is different.
        """
        for key in dict.fromkeys([*self.prepared_from, *prepared_from]):
            if prepared_from.get(key) != self.prepared_from.get(key):
                raise must_be(
                    key,
                    f"{prepared_from.get(key)!r}, the value that {folder} was prepared with",
                    self.prepared_from.get(key),
                    f"Set a different `data.store`, or delete {folder}.",
                )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that a tokenizer fits the model: its vocabulary size and the id of [PAD].

        Args:
            tokenizer: Tokenizer to check.

        Raises:
            ConfigError: If the vocabulary is larger than that of the model, or the ids of [PAD] are different.
        """
        num_entries, pad_token_id = tokenizer.get_vocab_size(), tokenizer.token_to_id("[PAD]")
        if num_entries > self.vocab_size:
            raise must_be(
                "model.vocab_size",
                f"at least {num_entries}, the vocabulary size of `tokenizer.source={self.tokenizer_source}`",
                self.vocab_size,
                f"Set model.vocab_size={math.ceil(num_entries / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE}.",
            )
        if pad_token_id != self.pad_token_id:
            raise must_be(
                "model.pad_token_id",
                f"{pad_token_id}, the id of [PAD] in `tokenizer.source={self.tokenizer_source}`",
                self.pad_token_id,
            )


def _prepared_from(recipe: Recipe) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, source in recipe.data.sources.items():
        keys |= {f"data.sources.{name}.{key}": value for key, value in asdict(source).items() if key != "weight"}
    for key in ("validation_fraction", "min_characters", "sampling", "max_seq_len"):
        keys[f"data.{key}"] = getattr(recipe.data, key)
    keys["tokenizer.source"] = recipe.tokenizer.source
    if recipe.tokenizer.source == "train":
        keys["model.vocab_size"] = recipe.model.vocab_size
    return keys
