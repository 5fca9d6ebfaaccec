"""A slice of the sources to unfinished shards: tokenised on all cores, and continued where it was cut off.

<partition>/progress.json              what is finished; a shard that it does not name is written again
<partition>/<split>-00000.arrow        samples
<partition>/<split>-00000.documents    of its documents, see `DocumentTable`
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
from mosaicbert.data.prepare.readers import Block, FilePosition, check_corruption, check_document, read_blocks
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

_CPUS_PER_READER = 4  # a reader that decompresses feeds four processes that tokenise the beginnings of texts
_MAX_READERS = 8
SHARD_TOKENS = 2**26  # 128 MiB of 16-bit ids: what is held in memory, and lost if the process is killed


@dataclass(kw_only=True)
class PartitionRecord:
    """The contents of progress.json.

    Attributes:
        tokenizer_sha256: what `hash_tokenizer` says of it.
        parts: of the slice, as messages name them.
        sizes: of these parts in bytes, as they were when reading began.
        next_part: number of the part to go on with, among those of the slice.
        position: in that part.
        finished: whether all of the slice is in shards.
        shards: by split, in the order of their numbers; a split may have no file of a number.
        documents: that were read, by source.
        text_bytes: of them, by source.
        skipped_documents: documents left out, by source and reason.
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
    def tokens(self) -> int:
        return sum(shard.tokens for shards in self.shards.values() for shard in shards)

    def write(self, folder: Path) -> None:
        """Writes progress.json."""
        write_file(folder / "progress.json", (json.dumps(asdict(self), indent=1) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "PartitionRecord | None":
        """Reads progress.json; None if there is none."""
        path = folder / "progress.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        content["position"] = FilePosition(**content["position"])
        content["shards"] = {
            split: [ShardRecord(**shard) for shard in shards] for split, shards in content["shards"].items()
        }
        return PartitionRecord(**content)


def partition_folder(partial: Path, number: int, num_partitions: int) -> Path:
    """Where a slice is prepared."""
    return partial / "partitions" / f"{number:05d}-of-{num_partitions:05d}"


def input_files_of_partition(input_files: Sequence[InputFile], number: int, num_partitions: int) -> Sequence[InputFile]:
    """Consecutive parts, nearly as many in every slice; all slices together hold them in order."""
    return input_files[len(input_files) * number // num_partitions : len(input_files) * (number + 1) // num_partitions]


def prepare_partition(
    folder: Path,
    input_files: Sequence[InputFile],
    expected: PartitionRecord,
    rules: SampleRules,
    skip_invalid: bool,
    progress: Progress,
    activity: str,
) -> PartitionRecord:
    """Makes the shards of a slice, or continues to; finds them made if they are.

    Args:
        folder: of the slice.
        parts: of the slice, in order.
        expected: the record that the slice begins with.
        rules: for samples.
        skip_invalid: go on where a document or the rest of a part cannot be read.
        progress: is kept up to date.
        doing: what it says.

    Raises:
        ConfigError: a document or part cannot be read, a part has changed since it was read, another process prepares
            the same slice, or the folder cannot be written. What is in finished shards stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, f"{folder}: another process is preparing this slice; wait for it, or stop it."):
        record = PartitionRecord.read(folder) or expected
        _check_unchanged(folder, record, expected, input_files)
        progress.start(activity, input_files, record.next_input_file)
        if record.finished:
            return record
        writer = _PartitionWriter(folder, record, skip_invalid)
        numbers = {input_file: number for number, input_file in enumerate(input_files)}
        for block in map_in_order(tokenize_block, _blocks(input_files, record), initialize_worker, (rules,)):
            writer.add(block, numbers[block.input_file])
            progress.advance(numbers[block.input_file], block)
        writer.finish(len(input_files))
    return record


def _check_unchanged(
    folder: Path, record: PartitionRecord, expected: PartitionRecord, input_files: Sequence[InputFile]
) -> None:
    if record.tokenizer_sha256 != expected.tokenizer_sha256:
        raise ConfigError(f"{folder}: was begun with another tokenizer; delete {folder} to begin again.")
    if record.input_files != expected.input_files:
        differing = sorted(set(record.input_files).symmetric_difference(expected.input_files))[:2]
        raise ConfigError(
            f"{folder}: was begun when the sources had other files ({', '.join(differing) or 'in another order'}); "
            f"delete {folder} to begin again."
        )
    # The part that is being read may have been mended behind what was read of it.
    for input_file, size in zip(input_files[: record.next_input_file], record.sizes, strict=False):
        if input_file.size != size:
            raise ConfigError(
                f"{input_file}: has changed since it was prepared ({size:,} bytes then, {input_file.size:,} now); "
                f"delete {folder} to begin again."
            )
    record.sizes = expected.sizes


def _blocks(input_files: Sequence[InputFile], record: PartitionRecord) -> Iterator[Block]:
    starts = [record.position, *(FilePosition() for _ in input_files)]
    readers = (
        functools.partial(read_blocks, input_file, start)
        for input_file, start in zip(input_files[record.next_input_file :], starts, strict=False)
    )
    return prefetch(readers, num_threads=max(1, min(_MAX_READERS, count_cpus() // _CPUS_PER_READER)))


class _PartitionWriter:
    """Gathers blocks and writes a shard of each split whenever there are tokens enough."""

    def __init__(self, folder: Path, record: PartitionRecord, skip_invalid: bool) -> None:
        self.folder = folder
        self.record = record
        self.skip_invalid = skip_invalid
        self._source: str | None = None
        self._place = record.next_input_file, record.position
        self._pending: dict[str, list[Samples]] = {TRAIN: [], VALIDATION: []}
        self._pending_tokens = 0
        self._documents: Counter[str] = Counter(record.documents)
        self._text_bytes: Counter[str] = Counter(record.text_bytes)
        self._skipped_documents = {source: Counter(reasons) for source, reasons in record.skipped_documents.items()}

    def add(self, block: TokenizedBlock, input_file: int) -> None:
        source = block.input_file.source
        if self._source not in (None, source):
            self._flush()  # a shard holds one source's samples
        self._source = source
        check_document(block.first_invalid, self.skip_invalid)
        check_corruption(block.input_file, block.corruption, self.skip_invalid)
        for split, samples in block.samples.items():
            self._pending[split].append(samples)
            self._pending_tokens += len(samples.ids)
        skipped_documents = self._skipped_documents.setdefault(source, Counter())
        skipped_documents.update(block.skipped_documents)
        skipped_documents.update(["rest of a damaged file"] * (block.corruption is not None))
        self._documents[source] += block.documents
        self._text_bytes[source] += block.text_bytes
        self._place = (input_file, block.end) if block.corruption is None else (input_file + 1, FilePosition())
        if self._pending_tokens >= SHARD_TOKENS:
            self._flush()

    def finish(self, num_input_files: int) -> None:
        self._place = num_input_files, FilePosition()
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
        record.next_input_file, record.position = self._place
        record.documents, record.text_bytes = dict(self._documents), dict(self._text_bytes)
        record.skipped_documents = {source: dict(reasons) for source, reasons in self._skipped_documents.items()}
        record.write(self.folder)
        self._pending_tokens = 0


class DocumentTable:
    """The documents of a shard on disk, in the order of their hashes; nothing is kept open, and nothing in memory.

    The file is (3, documents) uint64: the two halves of a text's hash, and its number in the shard << 32 | its samples.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_documents = path.stat().st_size // (3 * 8)

    @staticmethod
    def write(path: Path, hashes: Hashes, samples_per_document: NDArray[np.int32]) -> None:
        """Writes the file.

        Args:
            path: of the file.
            hashes: (documents, 2), in the order of the documents.
            samples_per_document: (documents,).
        """
        high, low = hashes.T
        numbers = np.arange(len(hashes), dtype=np.uint64)
        rows = np.stack([high, low, numbers << np.uint64(32) | samples_per_document.astype(np.uint64)])
        write_file(path, rows[:, np.lexsort((numbers, low, high))].tobytes())

    def read_high_bits(self) -> NDArray[np.uint64]:
        """(documents,) the halves of the hashes that decide on the order, ascending."""
        return np.fromfile(self.path, dtype=np.uint64, count=self.num_documents)

    def read(self, start: int, end: int) -> NDArray[np.uint64]:
        """(3, end - start), some consecutive columns of the table."""
        rows = [
            np.fromfile(self.path, dtype=np.uint64, count=end - start, offset=8 * (row * self.num_documents + start))
            for row in range(3)
        ]
        return np.stack(rows)


def _write_documents(path: Path, pending: Sequence[Samples]) -> None:
    hashes = np.concatenate([samples.hashes for samples in pending])
    DocumentTable.write(path, hashes, np.concatenate([samples.samples_per_document for samples in pending]))
