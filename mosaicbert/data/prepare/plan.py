"""The prepare plan: what a recipe says about its token store, resolved once."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, Recipe, SourceConfig
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer
from mosaicbert.filesystem import partial_path


@dataclass(frozen=True, kw_only=True)
class PreparePlan:
    """Everything that a recipe decides about its token store.

    Attributes:
        store_folder: Folder of the finished store.
        sources: Sources by name, in the order in which they are read.
        tokenizer_source: "train", or the tokenizer to load.
        vocab_size: Vocabulary size of the model.
        pad_token_id: Id of [PAD] in the model.
        max_tokens: Maximum number of tokens of a sample, without [CLS] and [SEP].
        sampling: "truncate" or "chunk", see `DataConfig`.
        min_characters: Minimum length of a text in characters.
        validation_fraction: Fraction of the texts in the validation split, of sources without such a split.
        skip_invalid_documents: Skip and count documents that cannot be read, instead of stopping.
        num_partitions: Number of partitions of the input files.
        partition: Number of the only partition to prepare; None prepares the store.
        prepared_from: Recipe keys that decide the content of the store, with their values.
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
        """Collect the values of a recipe."""
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
        """Folder that becomes the store when it is complete."""
        return partial_path(self.store_folder)

    def describe_sources(self) -> str:
        """Name all sources for an error message."""
        return ", ".join(f"data.sources.{name}.path={source.path}" for name, source in self.sources.items())

    def check_store(self) -> StoreRecord:
        """Read the record of the existing store, and check that it is the store of this plan.

        Raises:
            ConfigError: If there is no store, it is corrupted, or it was made from other sources or with another
                tokenizer.
        """
        record = StoreRecord.read(self.store_folder)
        self.check_prepared_from(self.store_folder, record.prepared_from)
        tokenizer = open_tokenizer(self.store_folder, record)
        source = self.tokenizer_source
        if source != "train" and Path(source).exists():
            if hash_tokenizer(load_tokenizer(source)) != hash_tokenizer(tokenizer):
                raise ConfigError(
                    f"{self.store_folder}: was prepared with another tokenizer than tokenizer.source={source}; "
                    "point data.store at another folder, or delete this one."
                )
        self.check_tokenizer(tokenizer)
        return record

    def check_prepared_from(self, folder: Path, prepared_from: Mapping[str, Any]) -> None:
        """Check that a folder was prepared with the values of this plan.

        Args:
            folder: Folder of a store, or staging folder.
            prepared_from: Recipe keys and values that it was prepared with.

        Raises:
            ConfigError: If a value is different.
        """
        for key in dict.fromkeys([*self.prepared_from, *prepared_from]):
            if prepared_from.get(key) != self.prepared_from.get(key):
                raise ConfigError(
                    f"{folder}: was prepared with {key}={prepared_from.get(key)}, the recipe says "
                    f"{self.prepared_from.get(key)}; point data.store at another folder, or delete this one."
                )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Check that the model has an embedding for every id of a tokenizer, and the same id of [PAD].

        Raises:
            ConfigError: If the vocabulary is larger than that of the model, or [PAD] has another id.
        """
        num_entries, pad_token_id = tokenizer.get_vocab_size(), tokenizer.token_to_id("[PAD]")
        if num_entries > self.vocab_size:
            raise ConfigError(
                f"model.vocab_size={self.vocab_size} is smaller than the {num_entries} entries of "
                f"tokenizer.source={self.tokenizer_source}; set model.vocab_size={math.ceil(num_entries / 64) * 64}."
            )
        if pad_token_id != self.pad_token_id:
            raise ConfigError(
                f"model.pad_token_id={self.pad_token_id} is not the [PAD] of "
                f"tokenizer.source={self.tokenizer_source}; set model.pad_token_id={pad_token_id}."
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
