"""Deduplication with bounded memory: moves the shards of all partitions into the store, without duplicate documents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.partition import DocumentTable, PartitionRecord
from mosaicbert.data.store import (
    TRAIN,
    VALIDATION,
    ShardRecord,
    SplitRecord,
    read_shard,
    sha256_of,
    write_index,
    write_shard,
)
from mosaicbert.filesystem import write_file

_MAX_DOCUMENTS_IN_MEMORY = 2**22  # about 100 bytes each during the comparison


def assemble(
    store: Path, partitions: Sequence[tuple[Path, PartitionRecord]], dtype: np.dtype[Any]
) -> tuple[dict[str, SplitRecord], dict[str, int]]:
    """Move the shards of all partitions into a store, without duplicate documents.

    A text that is in both splits stays in training. An interrupted call may be repeated.

    Args:
        store: Folder of the store.
        partitions: Folder and record of each partition, in order.
        dtype: Data type of token ids.

    Returns:
        Record of each split, and number of duplicate documents by source.

    Raises:
        ConfigError: If a partition was prepared again after an interrupted call, or the store cannot be written.
    """
    shards = [
        (split, folder, shard)
        for split in (TRAIN, VALIDATION)
        for folder, record in partitions
        for shard in record.shards[split]
    ]
    tables = [DocumentTable((folder / shard.file).with_suffix(".documents")) for _, folder, shard in shards]
    duplicates = find_duplicates(tables)
    _check_same_plan(store, shards, duplicates)
    splits: dict[str, list[ShardRecord]] = {TRAIN: [], VALIDATION: []}
    num_duplicates: dict[str, int] = {}
    for (split, folder, shard), table, indices in zip(shards, tables, duplicates, strict=True):
        (store / split).mkdir(exist_ok=True)
        target = store / split / f"data-{len(splits[split]):05d}.arrow"
        if len(indices):
            num_duplicates[shard.source] = num_duplicates.get(shard.source, 0) + len(indices)
            shard = _write_without_duplicates(folder / shard.file, target, shard, table, indices)
        elif not target.exists():
            (folder / shard.file).rename(target)
        if shard.samples:
            splits[split].append(replace(shard, file=target.name))
    for split, records in splits.items():
        if records:
            write_index(store / split, dtype, records)
    return {split: SplitRecord(shards=records) for split, records in splits.items()}, num_duplicates


def _check_same_plan(
    store: Path, shards: Sequence[tuple[str, Path, ShardRecord]], duplicates: Sequence[NDArray[np.int64]]
) -> None:
    """Record the plan of the moves. An interrupted call has moved some shards, so its plan must be the same."""
    lines = [
        f"{split} {folder.name} {shard.file} {shard.sha256} {len(indices)}"
        for (split, folder, shard), indices in zip(shards, duplicates, strict=True)
    ]
    plan = ("\n".join(lines) + "\n").encode()
    path = store / "assembly.txt"
    if path.exists() and path.read_bytes() != plan:
        raise ConfigError(
            f"Partitions of {store} must not change during its assembly, got different shards. Delete {store} to "
            "start again."
        )
    write_file(path, plan)


def find_duplicates(tables: Sequence[DocumentTable]) -> list[NDArray[np.int64]]:
    """Find the documents whose text occurs earlier, in the same table or in a previous one.

    Only one range of hashes is in memory at a time.

    Args:
        tables: Tables of documents, in order.

    Returns:
        Indices of the duplicate documents of each table, ascending.
    """
    total = sum(table.num_documents for table in tables)
    num_chunks = max(1, -(-total // _MAX_DOCUMENTS_IN_MEMORY))
    indices_by_table: list[list[NDArray[np.int64]]] = [[np.empty(0, dtype=np.int64)] for _ in tables]
    # Hashes are uniformly distributed, so equal ranges have nearly equal numbers of documents.
    bounds = [2**64 * chunk // num_chunks for chunk in range(num_chunks)]
    starts = [_chunk_starts(table, bounds) for table in tables]
    for chunk in range(num_chunks):
        pieces = [table.read(start[chunk], start[chunk + 1]) for table, start in zip(tables, starts, strict=True)]
        high, low, documents = np.concatenate([np.empty((3, 0), dtype=np.uint64), *pieces], axis=1)
        table_indices = np.repeat(np.arange(len(pieces)), [piece.shape[1] for piece in pieces])
        order = np.lexsort((low, high))  # stable: equal hashes keep the order of the tables
        high, low, documents, table_indices = high[order], low[order], documents[order], table_indices[order]
        duplicates = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
        for table in np.unique(table_indices[duplicates]).tolist():
            indices = documents[duplicates[table_indices[duplicates] == table]] >> np.uint64(32)
            indices_by_table[table].append(indices.astype(np.int64))
    return [np.sort(np.concatenate(indices)) for indices in indices_by_table]


def _chunk_starts(table: DocumentTable, bounds: Sequence[int]) -> list[int]:
    starts = np.searchsorted(table.read_high_bits(), np.array(bounds, dtype=np.uint64)).tolist()
    return [*starts, table.num_documents]


def _write_without_duplicates(
    path: Path, target: Path, shard: ShardRecord, table: DocumentTable, duplicates: NDArray[np.int64]
) -> ShardRecord:
    """Write a shard without its duplicate documents, unless an interrupted call has already written it."""
    documents = table.read(0, table.num_documents)[2]
    samples_per_document = np.empty(len(documents), dtype=np.int64)
    samples_per_document[(documents >> np.uint64(32)).astype(np.int64)] = documents & np.uint64(2**32 - 1)
    is_unique = np.ones(len(samples_per_document), dtype=np.bool_)
    is_unique[duplicates] = False
    is_unique = np.repeat(is_unique, samples_per_document)  # of documents -> of samples
    if not is_unique.any():
        path.unlink(missing_ok=True)
        return replace(shard, samples=0, tokens=0)
    if path.exists():
        ids, offsets = read_shard(path)
        seqlens = np.diff(offsets)
        record = write_shard(target, shard.source, ids[np.repeat(is_unique, seqlens)], seqlens[is_unique])
        path.unlink()
        return record
    ids, offsets = read_shard(target)
    return replace(shard, samples=len(offsets) - 1, tokens=len(ids), sha256=sha256_of(target))
