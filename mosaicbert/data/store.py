"""The token store: Arrow shards of token ids with a store.json that says where they came from.

    <folder>/store.json      tokenizer's hash, source, counts, checksums
    <folder>/tokenizer.json
    <folder>/<split>/        opened by `TokenStore`, and by `datasets.load_from_disk` as well

A sample is a document's token ids without [CLS] and [SEP], at most max_seq_len - 2 of them.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError
from mosaicbert.data.tokenizer import hash_tokenizer

SHARD_TOKENS = 2**26  # 128 MiB of 16-bit ids: what preparing holds in memory
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What a split holds; shards maps a file's name to its SHA-256."""

    samples: int
    tokens: int
    shards: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """The contents of store.json.

    Attributes:
        prepared_from: the recipe's keys that decide what the store holds, with their values.
        tokenizer_sha256: of tokenizer.json, see `hash_tokenizer`.
        splits: by name.
        dropped: number of texts left out, by reason.
        unigram_entropy: of the validation split, in nats per token: the loss of a model that knows only how often each
            token occurs in it.
    """

    prepared_from: dict[str, Any]
    tokenizer_sha256: str
    splits: dict[str, SplitCounts]
    dropped: dict[str, int]
    unigram_entropy: float

    def write(self, folder: Path) -> None:
        (folder / "store.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(folder: Path) -> "StoreRecord":
        """Reads store.json.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        path = folder / "store.json"
        try:
            content = json.loads(path.read_text())
            content["splits"] = {name: SplitCounts(**counts) for name, counts in content["splits"].items()}
            return StoreRecord(**content)
        except FileNotFoundError as error:
            raise ConfigError(f"{folder}: no token store there; make one with `mosaicbert prepare RECIPE`.") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: damaged ({error}); delete {folder} and prepare it again.") from error


class SplitWriter:
    """Writes one split of a store, shard by shard."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        import datasets

        folder.mkdir(parents=True)
        self.folder = folder
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self.features = datasets.Features({"input_ids": datasets.List(datasets.Value(self.dtype.name))})
        self.frequencies = np.zeros(vocab_size, dtype=np.int64)
        self.samples = 0
        self.tokens = 0
        self.shards: dict[str, str] = {}
        self._pending: list[NDArray[Any]] = []
        self._pending_tokens = 0

    @property
    def total_tokens(self) -> int:
        return self.tokens + self._pending_tokens

    def write(self, documents: Iterable[list[int]]) -> None:
        """Appends samples: token ids without special tokens."""
        for ids in documents:
            self._pending.append(np.array(ids, dtype=self.dtype))
            self._pending_tokens += len(ids)
            if self._pending_tokens >= SHARD_TOKENS:
                self._flush()

    def close(self) -> SplitCounts:
        """Writes what is left and the files that `datasets.load_from_disk` looks for."""
        import datasets

        self._flush()
        datasets.DatasetInfo(features=self.features).write_to_directory(str(self.folder))
        state = {
            "_data_files": [{"filename": name} for name in self.shards],
            "_fingerprint": hashlib.sha256("".join(self.shards.values()).encode()).hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        return SplitCounts(samples=self.samples, tokens=self.tokens, shards=self.shards)

    def _flush(self) -> None:
        if not self._pending:
            return
        # A shard is one record batch, so that a reader finds all its tokens in one piece.
        values = np.concatenate(self._pending)
        ends = np.cumsum([len(ids) for ids in self._pending])
        column = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), type=pa.int32()), pa.array(values))
        schema = self.features.arrow_schema
        path = self.folder / f"data-{len(self.shards):05d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            stream.write_batch(pa.record_batch([column], schema=schema))
        self.shards[path.name] = _sha256(path)
        self.frequencies += np.bincount(values, minlength=len(self.frequencies))
        self.samples += len(self._pending)
        self.tokens += len(values)
        self._pending, self._pending_tokens = [], 0


class TokenStore:
    """One split of a store, memory-mapped."""

    def __init__(self, folder: Path, counts: SplitCounts) -> None:
        self._origin = (folder, counts)
        self.num_samples = counts.samples
        self._values: list[NDArray[Any]] = []
        self._offsets: list[NDArray[np.int32]] = []
        for name in counts.shards:
            try:
                batches = pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all().to_batches()
            except (OSError, pa.ArrowInvalid) as error:
                raise ConfigError(f"{folder / name}: damaged ({error}); delete the store, prepare it again.") from error
            (column,) = (batch.column("input_ids") for batch in batches)
            self._values.append(column.values.to_numpy())
            self._offsets.append(column.offsets.to_numpy())
        lengths = [len(offsets) - 1 for offsets in self._offsets]
        self._first_samples = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if self._first_samples[-1] != counts.samples:
            raise ConfigError(
                f"{folder}: holds {self._first_samples[-1]} samples, store.json says {counts.samples}; "
                "delete the store, prepare it again."
            )

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path, SplitCounts]]:
        return TokenStore, self._origin  # a worker process opens the files itself

    def read(self, samples: NDArray[np.int64]) -> list[NDArray[Any]]:
        """The token ids of some samples, as views of the mapped file."""
        shards = np.searchsorted(self._first_samples, samples, side="right") - 1
        rows = samples - self._first_samples[shards]
        documents: list[NDArray[Any]] = []
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            offsets = self._offsets[shard]
            documents.append(self._values[shard][offsets[row] : offsets[row + 1]])
        return documents


def open_tokenizer(folder: Path, record: StoreRecord) -> Tokenizer:
    """The tokenizer that a store was made with.

    Raises:
        ConfigError: it is not the one that the store was made with.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; delete {folder} and prepare it again.")
    tokenizer = Tokenizer.from_file(str(path))
    if hash_tokenizer(tokenizer) != record.tokenizer_sha256:
        raise ConfigError(f"{path}: not the tokenizer that the store was made with; delete {folder}, prepare it again.")
    return tokenizer


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
