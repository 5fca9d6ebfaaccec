"""A slice of the sources to unfinished shards: tokenised on all cores, and continued where it was cut off.

<slice>/progress.json              what is finished; a shard that it does not name is written again
<slice>/<split>-00000.arrow        samples
<slice>/<split>-00000.documents    of its documents, see `DocumentTable`
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
from mosaicbert.data.prepare.prefetch import read_ahead
from mosaicbert.data.prepare.progress_bar import Progress
from mosaicbert.data.prepare.readers import Block, FilePosition, check_damage, check_document, read_blocks
from mosaicbert.data.prepare.sources import Part
from mosaicbert.data.prepare.tokenize import Hashes, SampleRules, Samples, TokenisedBlock, start_tokenising, tokenise
from mosaicbert.data.store import TRAIN, VALIDATION, ShardRecord, write_shard
from mosaicbert.filesystem import lock_folder, write_file
from mosaicbert.processes import count_cpus, map_in_order

_CORES_PER_READER = 4  # a reader that decompresses feeds four processes that tokenise the beginnings of texts
_MOST_READERS = 8
SHARD_TOKENS = 2**26  # 128 MiB of 16-bit ids: what is held in memory, and lost if the process is killed


@dataclass(kw_only=True)
class SliceRecord:
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
        dropped: documents left out, by source and reason.
    """

    tokenizer_sha256: str
    parts: list[str]
    sizes: list[int]
    next_part: int = 0
    position: FilePosition = field(default_factory=FilePosition)
    finished: bool = False
    shards: dict[str, list[ShardRecord]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: []})
    num_shards: int = 0
    documents: dict[str, int] = field(default_factory=dict)
    text_bytes: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shards in self.shards.values() for shard in shards)

    def write(self, folder: Path) -> None:
        """Writes progress.json."""
        write_file(folder / "progress.json", (json.dumps(asdict(self), indent=1) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> "SliceRecord | None":
        """Reads progress.json; None if there is none."""
        path = folder / "progress.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        content["position"] = FilePosition(**content["position"])
        content["shards"] = {
            split: [ShardRecord(**shard) for shard in shards] for split, shards in content["shards"].items()
        }
        return SliceRecord(**content)


def slice_folder(partial: Path, number: int, num_partitions: int) -> Path:
    """Where a slice is prepared."""
    return partial / "slices" / f"{number:05d}-of-{num_partitions:05d}"


def parts_of_slice(parts: Sequence[Part], number: int, num_partitions: int) -> Sequence[Part]:
    """Consecutive parts, nearly as many in every slice; all slices together hold them in order."""
    return parts[len(parts) * number // num_partitions : len(parts) * (number + 1) // num_partitions]


def prepare_slice(
    folder: Path,
    parts: Sequence[Part],
    expected: SliceRecord,
    rules: SampleRules,
    skip_invalid: bool,
    progress: Progress,
    doing: str,
) -> SliceRecord:
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
        record = SliceRecord.read(folder) or expected
        _require_unchanged(folder, record, expected, parts)
        progress.start(doing, parts, record.next_part)
        if record.finished:
            return record
        writer = _SliceWriter(folder, record, skip_invalid)
        numbers = {part: number for number, part in enumerate(parts)}
        for block in map_in_order(tokenise, _blocks(parts, record), start_tokenising, (rules,)):
            writer.add(block, numbers[block.part])
            progress.advance(numbers[block.part], block)
        writer.finish(len(parts))
    return record


def _require_unchanged(folder: Path, record: SliceRecord, expected: SliceRecord, parts: Sequence[Part]) -> None:
    if record.tokenizer_sha256 != expected.tokenizer_sha256:
        raise ConfigError(f"{folder}: was begun with another tokenizer; delete {folder} to begin again.")
    if record.parts != expected.parts:
        differing = sorted(set(record.parts).symmetric_difference(expected.parts))[:2]
        raise ConfigError(
            f"{folder}: was begun when the sources had other files ({', '.join(differing) or 'in another order'}); "
            f"delete {folder} to begin again."
        )
    # The part that is being read may have been mended behind what was read of it.
    for part, size in zip(parts[: record.next_part], record.sizes, strict=False):
        if part.size != size:
            raise ConfigError(
                f"{part}: has changed since it was prepared ({size:,} bytes then, {part.size:,} now); "
                f"delete {folder} to begin again."
            )
    record.sizes = expected.sizes


def _blocks(parts: Sequence[Part], record: SliceRecord) -> Iterator[Block]:
    starts = [record.position, *(FilePosition() for _ in parts)]
    readers = (
        functools.partial(read_blocks, part, start)
        for part, start in zip(parts[record.next_part :], starts, strict=False)
    )
    return read_ahead(readers, num_threads=max(1, min(_MOST_READERS, count_cpus() // _CORES_PER_READER)))


class _SliceWriter:
    """Gathers blocks and writes a shard of each split whenever there are tokens enough."""

    def __init__(self, folder: Path, record: SliceRecord, skip_invalid: bool) -> None:
        self.folder = folder
        self.record = record
        self.skip_invalid = skip_invalid
        self._source: str | None = None
        self._place = record.next_part, record.position
        self._pending: dict[str, list[Samples]] = {TRAIN: [], VALIDATION: []}
        self._pending_tokens = 0
        self._documents: Counter[str] = Counter(record.documents)
        self._text_bytes: Counter[str] = Counter(record.text_bytes)
        self._dropped = {source: Counter(reasons) for source, reasons in record.dropped.items()}

    def add(self, block: TokenisedBlock, part: int) -> None:
        source = block.part.source
        if self._source not in (None, source):
            self._flush()  # a shard holds one source's samples
        self._source = source
        check_document(block.first_bad, self.skip_invalid)
        check_damage(block.part, block.damage, self.skip_invalid)
        for split, samples in block.samples.items():
            self._pending[split].append(samples)
            self._pending_tokens += len(samples.ids)
        dropped = self._dropped.setdefault(source, Counter())
        dropped.update(block.dropped)
        dropped.update(["rest of a damaged file"] * (block.damage is not None))
        self._documents[source] += block.documents
        self._text_bytes[source] += block.text_bytes
        self._place = (part, block.end) if block.damage is None else (part + 1, FilePosition())
        if self._pending_tokens >= SHARD_TOKENS:
            self._flush()

    def finish(self, num_parts: int) -> None:
        self._place = num_parts, FilePosition()
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
        record.next_part, record.position = self._place
        record.documents, record.text_bytes = dict(self._documents), dict(self._text_bytes)
        record.dropped = {source: dict(reasons) for source, reasons in self._dropped.items()}
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

    def first_halves(self) -> NDArray[np.uint64]:
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
