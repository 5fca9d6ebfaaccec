"""A look at every byte of a token store: checksums, ids, lengths, frequencies, repetitions."""

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

_MAX_HASHES = 2**23  # hashes held in memory; of a larger store a part of the samples, chosen by hash


@dataclass(frozen=True, kw_only=True)
class SplitInspection:
    """What a split really holds.

    Attributes:
        frequencies: (entries,) int64, how often each token occurs.
        lengths: (longest + 1,) int64, how many samples have each number of tokens, without [CLS] and [SEP].
        repeated: share of the samples that are equal to an earlier one; a sample is the beginning of a document, or a
            piece of it, so documents that differ may share samples.
        unigram_entropy: in nats per token.
    """

    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    duplicate_fraction: float
    unigram_entropy: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a store really holds, and what is wrong with it.

    Attributes:
        record: the contents of store.json.
        entries: of the tokenizer.
        unk_id: the id of [UNK].
        splits: by name.
        held_out_in_training: share of the held-out samples that are also in training.
        problems: why the store must not be trained on; one line each.
    """

    record: StoreRecord
    num_entries: int
    unk_id: int
    splits: dict[str, SplitInspection]
    validation_overlap: float
    problems: list[str]


def inspect_store(folder: Path, record: StoreRecord, max_tokens: int) -> Inspection:
    """Read every byte of a store, on all CPUs.

    Args:
        folder: Folder of the store.
        record: Contents of its store.json.
        max_tokens: Maximum number of tokens of a sample, without [CLS] and [SEP].

    Raises:
        ConfigError: If the tokenizer is not the one that the store was made with.
    """
    tokenizer = open_tokenizer(folder, record)
    num_entries = len(vocabulary_of(tokenizer).is_special)
    total = sum(split.samples for split in record.splits.values())
    below = min(2**64 - 1, 2**64 * _MAX_HASHES // max(1, total))
    tasks = [
        _Task(folder / name, shard, num_entries, max_tokens, below)
        for name, split in record.splits.items()
        for shard in split.shards
    ]
    found: dict[str, list[_ShardInspection]] = {name: [] for name in record.splits}
    for task, inspected in zip(tasks, map_in_order(_inspect_shard, tasks), strict=True):
        found[task.folder.name].append(inspected)
    problems = [problem for shards in found.values() for shard in shards for problem in shard.problems]
    splits = {name: _sum_up(shards, num_entries) for name, shards in found.items()}
    validation = np.concatenate([shard.hashes for name, shards in found.items() if name != TRAIN for shard in shards])
    training = np.concatenate([shard.hashes for shard in found[TRAIN]])
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
    hashes_below: int


@dataclass(frozen=True)
class _ShardInspection:
    frequencies: NDArray[np.int64]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    problems: list[str]


def _inspect_shard(task: _Task) -> _ShardInspection:
    path = task.folder / task.shard.file
    if not path.is_file():
        return _unreadable(task, f"{path}: missing")
    if sha256_of(path) != task.shard.sha256:
        return _unreadable(task, f"{path}: its SHA-256 is not the recorded one, bytes have changed")
    ids, offsets = read_shard(path)
    seqlens = np.diff(offsets)
    problems: list[str] = []
    if (len(seqlens), len(ids)) != (task.shard.samples, task.shard.tokens):
        problems.append(f"{path}: holds {len(seqlens):,} samples of {len(ids):,} tokens, not what store.json says")
    if len(ids) and (largest := int(ids.max())) >= task.num_entries:
        problems.append(f"{path}: holds the id {largest:,}, the tokenizer ends at {task.num_entries - 1:,}")
    if len(seqlens) and not 1 <= seqlens.min() <= seqlens.max() <= task.max_tokens:
        problems.append(
            f"{path}: holds samples of {seqlens.min()} to {seqlens.max()} tokens, not 1 to {task.max_tokens}"
        )
    if problems:
        return _unreadable(task, *problems)
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
        hashes=hashes[hashes <= np.uint64(task.hashes_below)],
        problems=[],
    )


def _unreadable(task: _Task, *problems: str) -> _ShardInspection:
    return _ShardInspection(
        frequencies=np.zeros(task.num_entries, dtype=np.int64),
        lengths=np.zeros(task.max_tokens + 1, dtype=np.int64),
        hashes=np.empty(0, dtype=np.uint64),
        problems=list(problems),
    )


def _sum_up(shards: Sequence[_ShardInspection], num_entries: int) -> SplitInspection:
    frequencies = sum((shard.frequencies for shard in shards), np.zeros(num_entries, dtype=np.int64))
    hashes = np.concatenate([shard.hashes for shard in shards])
    return SplitInspection(
        frequencies=frequencies,
        lengths=sum((shard.lengths for shard in shards[1:]), shards[0].lengths),
        duplicate_fraction=1.0 - len(np.unique(hashes)) / max(1, len(hashes)),
        unigram_entropy=unigram_entropy(frequencies) if frequencies.any() else 0.0,
    )
