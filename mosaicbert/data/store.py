"""The token store: Arrow shards of token ids with a store.json that says where they came from.

    <folder>/store.json      tokenizer's hash, sources, counts, checksums
    <folder>/tokenizer.json
    <folder>/<split>/        opened by `TokenStore`, and by `datasets.load_from_disk` as well

A sample is a document, or a piece of one, as token ids without [CLS] and [SEP], at most max_seq_len - 2 of them. The
samples of a source stand together.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import write_file

TRAIN, VALIDATION = "train", "validation"
_MAX_IDS = 2**22


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A file of a split, and what it holds."""

    file: str
    source: str
    samples: int
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The files of a split, in the order of their samples."""

    shards: list[ShardRecord]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def samples_by_source(self) -> dict[str, int]:
        """How many samples each source has, in the order in which they stand."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.source] = counts.get(shard.source, 0) + shard.samples
        return counts


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """The contents of store.json.

    Attributes:
        prepared_from: the recipe's keys that decide what the store holds, with their values.
        tokenizer_sha256: of the file tokenizer.json.
        splits: by name.
        revisions: commit of each source that is a dataset of the Hub.
        files: that were read, by source: how many, and of how many bytes (0 for the Hub).
        documents: that were read, by source.
        text_bytes: of them, in UTF-8, by source.
        skipped_documents: number of documents left out, by source and reason.
        unigram_entropy: of the validation split, in nats per token: the loss of a model that knows only how often each
            token occurs in it.
    """

    prepared_from: dict[str, Any]
    tokenizer_sha256: str
    splits: dict[str, SplitRecord]
    revisions: dict[str, str | None]
    files: dict[str, tuple[int, int]]
    documents: dict[str, int]
    text_bytes: dict[str, int]
    skipped_documents: dict[str, dict[str, int]]
    unigram_entropy: float

    def shard_hashes(self) -> dict[str, list[str]]:
        """What tells stores apart: the SHA-256 of every shard, by split."""
        return {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}

    def write(self, folder: Path) -> None:
        """Writes store.json, which appears only when it is complete."""
        write_file(folder / "store.json", (json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "StoreRecord":
        """Reads store.json.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        path = folder / "store.json"
        try:
            content = json.loads(path.read_text())
            content["splits"] = {
                name: SplitRecord(shards=[ShardRecord(**shard) for shard in split["shards"]])
                for name, split in content["splits"].items()
            }
            content["files"] = {name: tuple(counts) for name, counts in content["files"].items()}
            return StoreRecord(**content)
        except FileNotFoundError as error:
            raise ConfigError(f"{folder}: no token store there; make one with `mosaicbert prepare RECIPE`.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: damaged ({error}); delete {folder} and prepare it again.") from error


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def write_shard(path: Path, source: str, ids: NDArray[Any], seqlens: NDArray[np.int32]) -> ShardRecord:
    """Writes samples as one Arrow stream; the file appears in its place only when it is complete.

    Args:
        path: of the file.
        source: that the samples come from.
        ids: (T,) tokens of all samples, one behind the other.
        seqlens: (samples,) tokens of each.
    """
    schema = _features(ids.dtype).arrow_schema
    ends = np.concatenate([[0], np.cumsum(seqlens, dtype=np.int64)])
    column = pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), pa.array(ids))
    # A shard is one record batch, so that a reader finds all its tokens in one piece.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([column], schema=schema))
    content = memoryview(sink.getvalue())
    write_file(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardRecord(file=path.name, source=source, samples=len(seqlens), tokens=len(ids), sha256=digest)


def read_shard(path: Path) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Maps a shard into memory.

    Returns:
        The tokens of all samples (T,), and where each sample begins, with T at the end (samples + 1,).

    Raises:
        ConfigError: the file is missing or damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: missing; delete the store and prepare it again.")
    mapped = pa.memory_map(str(path))
    try:
        # Arrow also raises OSError for what is no Arrow stream.
        (batch,) = pa.ipc.open_stream(mapped)
        column = batch.column("input_ids")
        return column.values.to_numpy(), column.offsets.to_numpy()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: damaged ({error}); delete the store and prepare it again.") from error
    finally:
        mapped.close()  # the file, not the mapping: stores may have more shards than a process may have open files


def write_index(folder: Path, dtype: np.dtype[Any], shards: Sequence[ShardRecord]) -> None:
    """Writes the two files that `datasets.load_from_disk` looks for."""
    info = {"features": _features(dtype).to_dict()}
    state = {
        "_data_files": [{"filename": shard.file} for shard in shards],
        "_fingerprint": hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_file(folder / "dataset_info.json", (json.dumps(info, indent=2) + "\n").encode())
    write_file(folder / "state.json", (json.dumps(state, indent=2) + "\n").encode())


def count_ids(ids: NDArray[Any], num_ids: int) -> NDArray[np.int64]:
    """How often each id below `num_ids` occurs, (num_ids,)."""
    counts = np.zeros(num_ids, dtype=np.int64)
    for first in range(0, len(ids), _MAX_IDS):  # bincount makes 64 bits of each
        counts += np.bincount(ids[first : first + _MAX_IDS], minlength=num_ids)
    return counts


def unigram_entropy(frequencies: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that gives each token its frequency: -sum p log p."""
    shares = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(shares * np.log(shares)).sum())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class TokenStore:
    """One split of a store, memory-mapped; a shard is opened when it is first asked for.

    Args:
        folder: of the store.
        split: to read.

    Raises:
        ConfigError: there is no store, or its record is damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.split = split
        record = StoreRecord.read(folder).splits[split]
        self.num_samples = record.samples
        self.samples_by_source = record.samples_by_source()
        self._shards = record.shards
        self._first_samples = np.cumsum([0, *(shard.samples for shard in record.shards)])
        self._open: dict[int, tuple[NDArray[Any], NDArray[np.int32]]] = {}

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path, str]]:
        return TokenStore, (self.folder, self.split)  # a worker process opens the files itself

    def read(self, samples: NDArray[np.int64]) -> list[NDArray[Any]]:
        """The token ids of some samples, as views of the mapped files.

        Raises:
            ConfigError: a shard that they are in is missing, damaged or not what store.json says.
        """
        shards = np.searchsorted(self._first_samples, samples, side="right") - 1
        rows = samples - self._first_samples[shards]
        documents: list[NDArray[Any]] = []
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            opened = self._open.get(shard)
            values, offsets = self._open_shard(shard) if opened is None else opened
            documents.append(values[offsets[row] : offsets[row + 1]])
        return documents

    def _open_shard(self, shard: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        record = self._shards[shard]
        path = self.folder / self.split / record.file
        values, offsets = read_shard(path)
        if (len(offsets) - 1, len(values)) != (record.samples, record.tokens):
            raise ConfigError(
                f"{path}: holds {len(offsets) - 1:,} samples of {len(values):,} tokens, store.json says "
                f"{record.samples:,} of {record.tokens:,}; delete the store and prepare it again."
            )
        self._open[shard] = values, offsets
        return values, offsets


def open_tokenizer(folder: Path, record: StoreRecord) -> Tokenizer:
    """The tokenizer that a store was made with.

    Raises:
        ConfigError: it is not the one that the store was made with.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; delete {folder} and prepare it again.")
    if sha256_of(path) != record.tokenizer_sha256:
        raise ConfigError(f"{path}: not the tokenizer that the store was made with; delete {folder}, prepare it again.")
    return Tokenizer.from_file(str(path))


def _features(dtype: np.dtype[Any]) -> Any:
    import datasets

    return datasets.Features({"input_ids": datasets.List(datasets.Value(dtype.name))})
