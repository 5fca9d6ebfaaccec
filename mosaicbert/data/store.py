"""Token store: Arrow shards of token ids, with their origin in store.json.

    <folder>/store.json      hash of the tokenizer, sources, counts, checksums
    <folder>/tokenizer.json
    <folder>/<split>/        shards, opened by `TokenStore` or by `datasets.load_from_disk`

A sample is a document or a chunk of a document: at most max_seq_len - 2 token ids, without [CLS] and [SEP]. The samples
of a source are consecutive.
"""

import hashlib
import itertools
import json
import math
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
_DECODED_SAMPLES = 1024  # decoded at a time
_MAX_IDS = 2**22  # maximum per call of bincount, which converts them to 64 bits


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """Shard of a split.

    Attributes:
        file: Name of the file.
        source: Name of the source of the samples.
        samples: Number of samples.
        tokens: Number of tokens.
        sha256: SHA-256 of the file.
    """

    file: str
    source: str
    samples: int
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """Shards of a split.

    Attributes:
        shards: Shards in the order of their samples.
    """

    shards: list[ShardRecord]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(shard.samples for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(shard.tokens for shard in self.shards)

    def samples_by_source(self) -> dict[str, int]:
        """Count the samples of each source, in the order of the store."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.source] = counts.get(shard.source, 0) + shard.samples
        return counts


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """Contents of store.json.

    Attributes:
        prepared_from: Recipe keys that determine the content of the store, with their values.
        tokenizer_sha256: SHA-256 of tokenizer.json.
        splits: Splits by name.
        revisions: Commit of each source that is a Hub dataset; None for other sources.
        files: Number of files read and their size in bytes (0 for Hub datasets), by source.
        documents: Number of documents read, by source.
        text_bytes: Size of their texts in UTF-8, in bytes, by source.
        skipped_documents: Number of skipped documents, by source and reason.
        unigram_entropy: Entropy of the token frequencies of the validation split, in nats per token. It is the loss of
            a model that predicts these frequencies.
        bytes_per_token: Mean number of UTF-8 bytes per token of the validation split, decoded by the tokenizer.
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
    bytes_per_token: float

    def shard_hashes(self) -> dict[str, list[str]]:
        """Return the SHA-256 of every shard, by split. Stores with equal hashes are identical."""
        return {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss in nats per token to bits per byte, which does not depend on the vocabulary.

        Args:
            loss: Loss in nats per masked token of the validation split.
        """
        return loss / math.log(2) / self.bytes_per_token

    def write(self, folder: Path) -> None:
        """Write store.json atomically.

        Args:
            folder: Folder of the store.
        """
        write_file(folder / "store.json", (json.dumps(asdict(self), indent=2) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "StoreRecord":
        """Read store.json.

        Args:
            folder: Folder of the store.

        Raises:
            ConfigError: If the file does not exist or is corrupted.
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
            raise ConfigError(f"{folder} is not a token store. Prepare it with `mosaicbert prepare RECIPE`.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is corrupted ({error}). Delete {folder} and prepare it again.") from error


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer type for all ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def write_shard(path: Path, source: str, ids: NDArray[Any], seqlens: NDArray[np.int32]) -> ShardRecord:
    """Write samples atomically as one Arrow stream.

    Args:
        path: Path of the file.
        source: Name of the source of the samples.
        ids: (T,) token ids of all samples, concatenated.
        seqlens: (samples,) int32, number of tokens of each sample.

    Returns:
        Record of the shard.
    """
    schema = _features(ids.dtype).arrow_schema
    ends = np.concatenate([[0], np.cumsum(seqlens, dtype=np.int64)])
    column = pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), pa.array(ids))
    # One record batch per shard, so that all its tokens are contiguous.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([column], schema=schema))
    content = memoryview(sink.getvalue())
    write_file(path, content)
    digest = hashlib.sha256(content).hexdigest()
    return ShardRecord(file=path.name, source=source, samples=len(seqlens), tokens=len(ids), sha256=digest)


def read_shard(path: Path) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Map a shard into memory.

    Args:
        path: Path of the file.

    Returns:
        Token ids of all samples (T,), and offset of each sample followed by T (samples + 1,).

    Raises:
        ConfigError: If the file is missing or corrupted.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing. Delete the store and prepare it again.")
    mapped = pa.memory_map(str(path))
    try:
        # Arrow raises OSError also for a file that is not an Arrow stream.
        (batch,) = pa.ipc.open_stream(mapped)
        column = batch.column("input_ids")
        return column.values.to_numpy(), column.offsets.to_numpy()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is corrupted ({error}). Delete the store and prepare it again.") from error
    finally:
        mapped.close()  # closes the file, not the mapping; a store may have more shards than the open-file limit


def write_index(folder: Path, dtype: np.dtype[Any], shards: Sequence[ShardRecord]) -> None:
    """Write the two files that `datasets.load_from_disk` requires.

    Args:
        folder: Folder of the split.
        dtype: Data type of token ids.
        shards: Shards of the split, in order.
    """
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
    """Count the occurrences of each id below `num_ids`: (num_ids,) int64."""
    counts = np.zeros(num_ids, dtype=np.int64)
    for first in range(0, len(ids), _MAX_IDS):
        counts += np.bincount(ids[first : first + _MAX_IDS], minlength=num_ids)
    return counts


def unigram_entropy(frequencies: NDArray[np.int64]) -> float:
    """Compute the entropy of token frequencies in nats: -sum p log p."""
    probabilities = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(probabilities * np.log(probabilities)).sum())


def count_text_bytes(ids: NDArray[Any], offsets: NDArray[np.int32], tokenizer: Tokenizer) -> int:
    """Count the UTF-8 bytes of samples that are decoded by their tokenizer, which may normalize case and spaces.

    Args:
        ids: (T,) token ids of all samples.
        offsets: (samples + 1,) int32, offset of each sample followed by T.
        tokenizer: Tokenizer of the samples.
    """
    num_bytes = 0
    for first in range(0, len(offsets) - 1, _DECODED_SAMPLES):
        bounds = offsets[first : first + _DECODED_SAMPLES + 1].tolist()
        texts = tokenizer.decode_batch([ids[start:end].tolist() for start, end in itertools.pairwise(bounds)])
        num_bytes += sum(len(text.encode()) for text in texts)
    return num_bytes


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class TokenStore:
    """Memory-mapped split of a token store. Each shard is opened at its first use.

    Args:
        folder: Folder of the store.
        split: Name of the split.

    Raises:
        ConfigError: If the store does not exist or its record is corrupted.
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
        return TokenStore, (self.folder, self.split)  # worker processes open the files themselves

    def read(self, samples: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return the token ids of samples, as views of the mapped files.

        Args:
            samples: (N,) indices of the samples.

        Raises:
            ConfigError: If a shard is missing, is corrupted or does not match store.json.
        """
        shards = np.searchsorted(self._first_samples, samples, side="right") - 1
        rows = samples - self._first_samples[shards]
        documents: list[NDArray[Any]] = []
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            open_shard = self._open.get(shard)
            values, offsets = self._open_shard(shard) if open_shard is None else open_shard
            documents.append(values[offsets[row] : offsets[row + 1]])
        return documents

    def _open_shard(self, shard: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
        record = self._shards[shard]
        path = self.folder / self.split / record.file
        values, offsets = read_shard(path)
        if (len(offsets) - 1, len(values)) != (record.samples, record.tokens):
            raise ConfigError(
                f"{path} must have {record.samples:,} samples and {record.tokens:,} tokens, the counts in store.json, "
                f"got {len(offsets) - 1:,} and {len(values):,}. Delete the store and prepare it again."
            )
        self._open[shard] = values, offsets
        return values, offsets


def open_tokenizer(folder: Path, record: StoreRecord) -> Tokenizer:
    """Load the tokenizer of a store.

    Args:
        folder: Folder of the store.
        record: Record of the store.

    Raises:
        ConfigError: If tokenizer.json is missing or does not match its hash in store.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing. Delete {folder} and prepare it again.")
    if sha256_of(path) != record.tokenizer_sha256:
        raise ConfigError(
            f"{path} must be the tokenizer that the store was prepared with, got a different file. "
            f"Delete {folder} and prepare it again."
        )
    return Tokenizer.from_file(str(path))


def _features(dtype: np.dtype[Any]) -> Any:
    import datasets

    return datasets.Features({"input_ids": datasets.List(datasets.Value(dtype.name))})
