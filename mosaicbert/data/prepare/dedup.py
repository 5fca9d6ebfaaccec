"""Slices to a store: finds repeated documents, in bounded memory, and puts the shards without them in their places."""

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

_MAX_DOCUMENTS_IN_MEMORY = 2**22  # compared in memory, some 100 bytes each


def assemble(
    store: Path, slices: Sequence[tuple[Path, PartitionRecord]], dtype: np.dtype[Any]
) -> tuple[dict[str, SplitRecord], dict[str, int]]:
    """Moves the shards of all slices into a store, without documents that came before.

    A text that is in both splits stays in training. It may be called again after it was interrupted.

    Args:
        store: folder to fill.
        slices: folder and record of each, in order.
        dtype: of token ids.

    Returns:
        The record of each split, and how many documents of each source were repetitions.

    Raises:
        ConfigError: it was interrupted, and a slice has been prepared again since; or the store cannot be written.
    """
    shards = [
        (split, folder, shard)
        for split in (TRAIN, VALIDATION)
        for folder, record in slices
        for shard in record.shards[split]
    ]
    documents = [DocumentTable((folder / shard.file).with_suffix(".documents")) for _, folder, shard in shards]
    duplicates = find_duplicates(documents)
    _check_same_plan(store, shards, duplicates)
    splits: dict[str, list[ShardRecord]] = {TRAIN: [], VALIDATION: []}
    skipped_documents: dict[str, int] = {}
    for (split, folder, shard), table, numbers in zip(shards, documents, duplicates, strict=True):
        (store / split).mkdir(exist_ok=True)
        target = store / split / f"data-{len(splits[split]):05d}.arrow"
        if len(numbers):
            skipped_documents[shard.source] = skipped_documents.get(shard.source, 0) + len(numbers)
            shard = _write_without_duplicates(folder / shard.file, target, shard, table, numbers)
        elif not target.exists():
            (folder / shard.file).rename(target)
        if shard.samples:
            splits[split].append(replace(shard, file=target.name))
    for split, records in splits.items():
        if records:
            write_index(store / split, dtype, records)
    return {split: SplitRecord(shards=records) for split, records in splits.items()}, skipped_documents


def _check_same_plan(
    store: Path, shards: Sequence[tuple[str, Path, ShardRecord]], duplicates: Sequence[NDArray[np.int64]]
) -> None:
    """Notes where every shard goes: some may have been moved already."""
    lines = [
        f"{split} {folder.name} {shard.file} {shard.sha256} {len(numbers)}"
        for (split, folder, shard), numbers in zip(shards, duplicates, strict=True)
    ]
    plan = ("\n".join(lines) + "\n").encode()
    path = store / "assembly.txt"
    if path.exists() and path.read_bytes() != plan:
        raise ConfigError(f"{store}: a slice has changed while the store was put together; delete it to begin again.")
    write_file(path, plan)


def find_duplicates(tables: Sequence[DocumentTable]) -> list[NDArray[np.int64]]:
    """The documents of each table whose text stood before: earlier in the table, or in an earlier one.

    Args:
        tables: of documents; only a range of their hashes is in memory at a time.

    Returns:
        For each table the numbers of these documents, ascending.
    """
    total = sum(table.num_documents for table in tables)
    num_chunks = max(1, -(-total // _MAX_DOCUMENTS_IN_MEMORY))
    found: list[list[NDArray[np.int64]]] = [[np.empty(0, dtype=np.int64)] for _ in tables]
    # Hashes are spread evenly, so portions of their range hold nearly equal numbers of documents.
    bounds = [2**64 * chunk // num_chunks for chunk in range(num_chunks)]
    starts = [_positions(table, bounds) for table in tables]
    for chunk in range(num_chunks):
        pieces = [table.read(start[chunk], start[chunk + 1]) for table, start in zip(tables, starts, strict=True)]
        high, low, number = np.concatenate([np.empty((3, 0), dtype=np.uint64), *pieces], axis=1)
        owner = np.repeat(np.arange(len(pieces)), [piece.shape[1] for piece in pieces])
        ordered = np.lexsort((low, high))  # stable: equal hashes keep the order of the tables
        high, low, number, owner = high[ordered], low[ordered], number[ordered], owner[ordered]
        again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1])) + 1
        for table in np.unique(owner[again]).tolist():
            numbers = number[again[owner[again] == table]] >> np.uint64(32)
            found[table].append(numbers.astype(np.int64))
    return [np.sort(np.concatenate(numbers)) for numbers in found]


def _positions(table: DocumentTable, bounds: Sequence[int]) -> list[int]:
    inner = np.searchsorted(table.read_high_bits(), np.array(bounds, dtype=np.uint64)).tolist()
    return [*inner, table.num_documents]


def _write_without_duplicates(
    path: Path, target: Path, shard: ShardRecord, documents: DocumentTable, duplicates: NDArray[np.int64]
) -> ShardRecord:
    """Writes a shard without some documents; finds it written if it is."""
    numbers = documents.read(0, documents.num_documents)[2]
    samples_per_document = np.empty(len(numbers), dtype=np.int64)
    samples_per_document[(numbers >> np.uint64(32)).astype(np.int64)] = numbers & np.uint64(2**32 - 1)
    kept_documents = np.ones(len(samples_per_document), dtype=np.bool_)
    kept_documents[duplicates] = False
    kept = np.repeat(kept_documents, samples_per_document)
    if not kept.any():
        path.unlink(missing_ok=True)
        return replace(shard, samples=0, tokens=0)
    if path.exists():
        ids, offsets = read_shard(path)
        seqlens = np.diff(offsets)
        written = write_shard(target, shard.source, ids[np.repeat(kept, seqlens)], seqlens[kept])
        path.unlink()
        return written
    ids, offsets = read_shard(target)
    return replace(shard, samples=len(offsets) - 1, tokens=len(ids), sha256=sha256_of(target))
