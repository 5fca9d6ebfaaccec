"""Preparation of one partition of the input files: shards of samples, and the progress to continue from.

<partition>/progress.json              finished input; shards that it does not list are written again
<partition>/<split>-00000.arrow        samples
<partition>/<split>-00000.documents    table of the documents of a shard, see `DocumentTable`
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.prefetch import prefetch
from mosaicbert.data.prepare.progress_bar import Progress
from mosaicbert.data.prepare.readers import Block, BlockCache, FilePosition, check_corruption, check_document
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.prepare.tokenize import (
    Hashes,
    SampleRules,
    Samples,
    TokenizedBlock,
    initialize_worker,
    tokenize_block,
)
from mosaicbert.data.store import TRAIN, VALIDATION, ShardRecord, write_shard
from mosaicbert.filesystem import lock_folder, write_file
from mosaicbert.processes import count_cpus, map_in_order

_CPUS_PER_READER = 4  # one decompressing reader supplies four processes that tokenize prefixes of texts
_MAX_READERS = 8
SHARD_TOKENS = 2**26  # 128 MiB of 16-bit ids: kept in memory, and lost if the process is killed


@dataclass(kw_only=True)
class PartitionRecord:
    """Contents of progress.json.

    Attributes:
        tokenizer_sha256: Hash of the tokenizer, see `hash_tokenizer`.
        input_files: Input files of the partition, as error messages name them.
        sizes: Sizes of the input files in bytes, at the start of the last session.
        next_input_file: Index of the input file to continue with.
        position: Position in that input file.
        finished: True if the whole partition is in shards.
        shards: Shards by split, ordered by number. A split may lack some numbers.
        num_shards: Number of shards written for both splits together.
        documents: Number of documents read, by source.
        text_bytes: Size of their texts in bytes, by source.
        skipped_documents: Number of skipped documents, by source and reason.
    """

    tokenizer_sha256: str
    input_files: list[str]
    sizes: list[int]
    next_input_file: int = 0
    position: FilePosition = field(default_factory=FilePosition)
    finished: bool = False
    shards: dict[str, list[ShardRecord]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    num_shards: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    text_bytes: dict[str, int] = field(default_factory=dict)
    skipped_documents: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all shards."""
        return sum(shard.tokens for shards in self.shards.values() for shard in shards)

    def write(self, folder: Path) -> None:
        """Write progress.json.

        Args:
            folder: Folder of the partition.
        """
        write_file(folder / "progress.json", (json.dumps(asdict(self), indent=1) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "PartitionRecord | None":
        """Read progress.json.

        Args:
            folder: Folder of the partition.

        Returns:
            Record of the partition; None if the file does not exist.
        """
        path = folder / "progress.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        content["position"] = FilePosition(**content["position"])
        content["shards"] = {
            split: [ShardRecord(**shard) for shard in shards] for split, shards in content["shards"].items()
        }
        return PartitionRecord(**content)


def partition_folder(staging: Path, number: int, num_partitions: int) -> Path:
    """Return the folder of a partition.

    Args:
        staging: Staging directory.
        number: Number of the partition, from 0.
        num_partitions: Number of partitions.
    """
    return staging / "partitions" / f"{number:05d}-of-{num_partitions:05d}"


def input_files_of_partition(input_files: Sequence[InputFile], number: int, num_partitions: int) -> Sequence[InputFile]:
    """Select the input files of a partition: consecutive ones, and nearly the same number in each partition.

    Args:
        input_files: Input files of all partitions, in order.
        number: Number of the partition, from 0.
        num_partitions: Number of partitions.
    """
    return input_files[len(input_files) * number // num_partitions : len(input_files) * (number + 1) // num_partitions]


def prepare_partition(
    folder: Path,
    input_files: Sequence[InputFile],
    cache: BlockCache,
    initial: PartitionRecord,
    rules: SampleRules,
    skip_invalid: bool,
    progress: Progress,
    activity: str,
) -> PartitionRecord:
    """Write the shards of a partition, or continue an interrupted session.

    Args:
        folder: Folder of the partition.
        input_files: Input files of the partition, in order.
        cache: Cache of the blocks that were read to train the tokenizer.
        initial: Record of the partition before the first session.
        rules: Rules for the samples.
        skip_invalid: True to skip documents and rests of input files that cannot be read.
        progress: Progress display to update.
        activity: Description of the activity in the progress display.

    Returns:
        Record of the finished partition.

    Raises:
        ConfigError: If an input file cannot be read or has changed, the partition is in use, or the folder cannot be
            written. Finished shards are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, f"{folder} is in use: another process prepares this partition. Wait for it, or stop it."):
        record = PartitionRecord.read(folder) or initial
        _check_unchanged(folder, record, initial, input_files)
        progress.start(activity, input_files, record.next_input_file)
        if record.finished:
            return record
        writer = _PartitionWriter(folder, record, skip_invalid)
        indices = {input_file: index for index, input_file in enumerate(input_files)}
        remaining = _read_remaining(input_files, cache, record)
        for block in map_in_order(tokenize_block, remaining, initialize_worker, (rules,)):
            writer.add(block, indices[block.input_file])
            progress.advance(indices[block.input_file], block)
        writer.finish(len(input_files))
    return record


def _check_unchanged(
    folder: Path, record: PartitionRecord, initial: PartitionRecord, input_files: Sequence[InputFile]
) -> None:
    remedy = f"Delete {folder} to start again."
    if record.tokenizer_sha256 != initial.tokenizer_sha256:
        raise ConfigError(
            f"`tokenizer.source` must be the tokenizer that {folder} was started with, got a different one. {remedy}"
        )
    if record.input_files != initial.input_files:
        different = sorted(set(record.input_files).symmetric_difference(initial.input_files))[:2]
        difference = f"different files ({', '.join(different)})" if different else "a different order"
        raise ConfigError(
            f"`data.sources` must list the same files as when {folder} was started, got {difference}. {remedy}"
        )
    # An input file that is not finished may have been corrected after the finished rows.
    for input_file, size in zip(input_files[: record.next_input_file], record.sizes, strict=False):
        if input_file.size != size:
            raise ConfigError(
                f"{input_file} must not change after it was read: it had {size:,} bytes, "
                f"got {input_file.size:,} bytes. {remedy}"
            )
    record.sizes = initial.sizes


def _read_remaining(input_files: Sequence[InputFile], cache: BlockCache, record: PartitionRecord) -> Iterator[Block]:
    starts = [record.position, *(FilePosition() for _ in input_files)]
    readers = (
        functools.partial(cache.read_again, input_file, start)
        for input_file, start in zip(input_files[record.next_input_file :], starts, strict=False)
    )
    return prefetch(readers, num_threads=max(1, min(_MAX_READERS, count_cpus() // _CPUS_PER_READER)))


class _PartitionWriter:
    """Writer that collects tokenized blocks and writes one shard per split when it has SHARD_TOKENS tokens.

    Args:
        folder: Folder of the partition.
        record: Record of the partition, updated with each shard.
        skip_invalid: True to skip documents and rests of input files that cannot be read.
    """

    def __init__(self, folder: Path, record: PartitionRecord, skip_invalid: bool) -> None:
        self.folder = folder
        self.record = record
        self.skip_invalid = skip_invalid
        self._source: str | None = None
        self._next = record.next_input_file, record.position
        self._pending: dict[str, list[Samples]] = {TRAIN: [], VALIDATION: []}
        self._num_pending_tokens = 0
        self._documents: Counter[str] = Counter(record.documents)
        self._text_bytes: Counter[str] = Counter(record.text_bytes)
        self._skipped_documents = {source: Counter(reasons) for source, reasons in record.skipped_documents.items()}

    def add(self, block: TokenizedBlock, index: int) -> None:
        """Add a block.

        Args:
            block: Tokenized block.
            index: Index of its input file.
        """
        source = block.input_file.source
        if self._source not in (None, source):
            self._flush()  # a shard has samples of one source only
        self._source = source
        check_document(block.first_invalid, self.skip_invalid)
        check_corruption(block.input_file, block.corruption, self.skip_invalid)
        for split, samples in block.samples.items():
            self._pending[split].append(samples)
            self._num_pending_tokens += len(samples.ids)
        skipped_documents = self._skipped_documents.setdefault(source, Counter())
        skipped_documents.update(block.skipped_documents)
        skipped_documents.update(["rest of a corrupted file"] * (block.corruption is not None))
        self._documents[source] += block.num_documents
        self._text_bytes[source] += block.text_bytes
        self._next = (index, block.end) if block.corruption is None else (index + 1, FilePosition())
        if self._num_pending_tokens >= SHARD_TOKENS:
            self._flush()

    def finish(self, num_input_files: int) -> None:
        """Write the last shards and mark the partition as finished.

        Args:
            num_input_files: Number of input files of the partition.
        """
        self._next = num_input_files, FilePosition()
        self.record.finished = True
        self._flush()

    def _flush(self) -> None:
        record, number = self.record, self.record.num_shards
        for split, pending in self._pending.items():
            if sum(len(samples.seqlens) for samples in pending):
                ids = np.concatenate([samples.ids for samples in pending])
                seqlens = np.concatenate([samples.seqlens for samples in pending])
                path = self.folder / f"{split}-{number:05d}.arrow"
                record.shards[split].append(write_shard(path, str(self._source), ids, seqlens))
                _write_documents(path.with_suffix(".documents"), pending)
            pending.clear()
        record.num_shards += 1
        record.next_input_file, record.position = self._next
        record.documents, record.text_bytes = dict(self._documents), dict(self._text_bytes)
        record.skipped_documents = {source: dict(reasons) for source, reasons in self._skipped_documents.items()}
        record.write(self.folder)
        self._num_pending_tokens = 0


class DocumentTable:
    """Table on disk of the documents of a shard, ordered by hash. No file is kept open, and no data in memory.

    The file is a (3, documents) uint64 array. Its rows are the high and low 64 bits of the text hash, and
    (index in the shard << 32 | number of samples).

    Args:
        path: Path of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_documents = path.stat().st_size // (3 * 8)

    @staticmethod
    def write(path: Path, hashes: Hashes, samples_per_document: NDArray[np.int32]) -> None:
        """Write the file of a table.

        Args:
            path: Path of the file.
            hashes: (documents, 2) uint64, in the order of the documents in the shard.
            samples_per_document: (documents,) int32.
        """
        high, low = hashes.T
        indices = np.arange(len(hashes), dtype=np.uint64)
        rows = np.stack([high, low, indices << np.uint64(32) | samples_per_document.astype(np.uint64)])
        write_file(path, rows[:, np.lexsort((indices, low, high))].tobytes())

    def read_high_bits(self) -> NDArray[np.uint64]:
        """Read the high 64 bits of all hashes: (documents,), ascending."""
        return np.fromfile(self.path, dtype=np.uint64, count=self.num_documents)

    def read(self, start: int, end: int) -> NDArray[np.uint64]:
        """Read consecutive columns of the table: (3, end - start).

        Args:
            start: First column.
            end: Column after the last one.
        """
        rows = [
            np.fromfile(self.path, dtype=np.uint64, count=end - start, offset=8 * (row * self.num_documents + start))
            for row in range(3)
        ]
        return np.stack(rows)


def _write_documents(path: Path, pending: Sequence[Samples]) -> None:
    hashes = np.concatenate([samples.hashes for samples in pending])
    DocumentTable.write(path, hashes, np.concatenate([samples.samples_per_document for samples in pending]))
