"""Statistics and integrity check of a token store: checksums, ids, lengths, frequencies and duplicates."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mosaicbert.data.store import (
    TRAIN,
    ShardRecord,
    StoreRecord,
    count_ids,
    open_tokenizer,
    read_shard,
    sha256_of,
    unigram_entropy,
)
from mosaicbert.data.tokenizer import vocabulary_of
from mosaicbert.processes import map_in_order

_MAX_HASHES = 2**23  # kept in memory; in a larger store a subset of the samples, selected by hash, is compared


@dataclass(frozen=True, kw_only=True)
class SplitInspection:
    """Statistics of a split.

    Attributes:
        frequencies: (num_entries,) int64, number of occurrences of each token.
        lengths: (max_tokens + 1,) int64, number of samples of each length in tokens, without [CLS] and [SEP].
        duplicate_fraction: Fraction of the samples that are equal to an earlier one. A sample is a prefix or a chunk of
            a document, so different documents may have equal samples.
        unigram_entropy: Entropy of the token frequencies, in nats per token.
    """

    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    duplicate_fraction: float
    unigram_entropy: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Statistics and problems of a token store.

    Attributes:
        record: Contents of store.json.
        num_entries: Number of entries of the tokenizer.
        unk_id: Id of [UNK].
        splits: Statistics of the splits by name.
        validation_overlap: Fraction of the validation samples that are also training samples.
        problems: Reasons why the store must not be used for training, one line each.
    """

    record: StoreRecord
    num_entries: int
    unk_id: int
    splits: dict[str, SplitInspection]
    validation_overlap: float
    problems: list[str]


def inspect_store(folder: Path, record: StoreRecord, max_tokens: int) -> Inspection:
    """Read a whole store on all CPUs, and compute its statistics.

    Args:
        folder: Folder of the store.
        record: Contents of its store.json.
        max_tokens: Maximum number of tokens of a sample, without [CLS] and [SEP].

    Raises:
        ConfigError: If the tokenizer is missing or does not match its hash in store.json.
    """
    tokenizer = open_tokenizer(folder, record)
    num_entries = len(vocabulary_of(tokenizer).is_special)
    total = sum(split.samples for split in record.splits.values())
    hash_limit = min(2**64 - 1, 2**64 * _MAX_HASHES // max(1, total))
    tasks = [
        _Task(folder / name, shard, num_entries, max_tokens, hash_limit)
        for name, split in record.splits.items()
        for shard in split.shards
    ]
    inspections: dict[str, list[_ShardInspection]] = {name: [] for name in record.splits}
    for task, inspection in zip(tasks, map_in_order(_inspect_shard, tasks), strict=True):
        inspections[task.folder.name].append(inspection)
    problems = [problem for shards in inspections.values() for shard in shards for problem in shard.problems]
    splits = {name: _merge(shards, num_entries) for name, shards in inspections.items()}
    validation = np.concatenate(
        [shard.hashes for name, shards in inspections.items() if name != TRAIN for shard in shards]
    )
    training = np.concatenate([shard.hashes for shard in inspections[TRAIN]])
    return Inspection(
        record=record,
        num_entries=num_entries,
        unk_id=tokenizer.token_to_id("[UNK]") or 0,
        splits=splits,
        validation_overlap=float(np.isin(validation, training).mean()) if len(validation) else 0.0,
        problems=problems,
    )


@dataclass(frozen=True)
class _Task:
    folder: Path
    shard: ShardRecord
    num_entries: int
    max_tokens: int
    hash_limit: int


@dataclass(frozen=True)
class _ShardInspection:
    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    problems: list[str]


def _inspect_shard(task: _Task) -> _ShardInspection:
    path = task.folder / task.shard.file
    if not path.is_file():
        return _empty_inspection(task, f"{path} is missing")
    if sha256_of(path) != task.shard.sha256:
        return _empty_inspection(task, f"{path} does not match its SHA-256 in store.json")
    ids, offsets = read_shard(path)
    seqlens = np.diff(offsets)
    problems: list[str] = []
    if (len(seqlens), len(ids)) != (task.shard.samples, task.shard.tokens):
        problems.append(f"{path} has {len(seqlens):,} samples and {len(ids):,} tokens, unlike store.json")
    if len(ids) and (largest := int(ids.max())) >= task.num_entries:
        problems.append(
            f"{path} has the id {largest:,}, but the largest id of the tokenizer is {task.num_entries - 1:,}"
        )
    if len(seqlens) and not 1 <= seqlens.min() <= seqlens.max() <= task.max_tokens:
        problems.append(
            f"{path} has samples of {seqlens.min()} to {seqlens.max()} tokens, outside of 1 to {task.max_tokens}"
        )
    if problems:
        return _empty_inspection(task, *problems)
    content = memoryview(ids).cast("B")  # pyright: ignore[reportArgumentType]
    width = ids.dtype.itemsize
    bounds = (offsets.astype(np.int64) * width).tolist()
    hashes = np.fromiter(
        (xxhash.xxh3_64_intdigest(content[start:end]) for start, end in itertools.pairwise(bounds)),
        dtype=np.uint64,
        count=len(seqlens),
    )
    return _ShardInspection(
        frequencies=count_ids(ids, task.num_entries),
        lengths=np.bincount(seqlens, minlength=task.max_tokens + 1),
        hashes=hashes[hashes <= np.uint64(task.hash_limit)],
        problems=[],
    )


def _empty_inspection(task: _Task, *problems: str) -> _ShardInspection:
    return _ShardInspection(
        frequencies=np.zeros(task.num_entries, dtype=np.int64),
        lengths=np.zeros(task.max_tokens + 1, dtype=np.int64),
        hashes=np.empty(0, dtype=np.uint64),
        problems=list(problems),
    )


def _merge(shards: Sequence[_ShardInspection], num_entries: int) -> SplitInspection:
    frequencies = sum((shard.frequencies for shard in shards), np.zeros(num_entries, dtype=np.int64))
    hashes = np.concatenate([shard.hashes for shard in shards])
    return SplitInspection(
        frequencies=frequencies,
        lengths=sum((shard.lengths for shard in shards[1:]), shards[0].lengths),
        duplicate_fraction=1.0 - len(np.unique(hashes)) / max(1, len(hashes)),
        unigram_entropy=unigram_entropy(frequencies) if frequencies.any() else 0.0,
    )
