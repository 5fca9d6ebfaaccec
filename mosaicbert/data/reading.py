"""Parts to blocks to documents. Blocks are cut fast by one process, and taken apart by many."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mosaicbert.config import ConfigError
from mosaicbert.data.documentation import read_installed_documentation
from mosaicbert.data.hub import read_shard
from mosaicbert.data.sources import INSTALLED_DOCUMENTATION, Part

BLOCK_BYTES = 2**22  # of text, more or less: what one process tokenises at a time
_LONGEST_DOCUMENT = 2**25  # bytes; a file without line breaks shall not fill the memory
_CHUNK_BYTES = 2**18  # read from a file at once
_ROWS_PER_BATCH = 1024
_ARROW_FILE = b"ARROW1"
_WHOLLY_AGAIN = "fetch it again and delete the unfinished store, since what was read before may be wrong as well"
_DAMAGED = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a part has been read.

    Attributes:
        rows: lines, or rows of columns.
        offset: bytes, decompressed, of a part that has lines.
    """

    rows: int = 0
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some consecutive documents of a part, as they were read.

    Attributes:
        part: that they come from.
        start: of the first of them.
        end: where the next block begins.
        fraction: of the part that has been read at its end, 0 if that is not known.
        content: whole lines, or the texts of a column.
        damage: why the part cannot be read any further.
    """

    part: Part
    start: Position
    end: Position
    fraction: float
    content: bytes | list[bytes | None]
    damage: str | None = None


@dataclass(frozen=True)
class BadDocument:
    """A document that has no readable text.

    Attributes:
        place: where it stands, for a person to find.
        kind: what is wrong, for counting.
        detail: what is wrong, for a person.
    """

    place: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}{self.detail}"


def read_blocks(part: Part, start: Position) -> Iterator[Block]:
    """Yields the blocks of a part from a position on, which must be the end of a block.

    Blocks are cut by content alone, so that they are the same wherever reading begins. A damaged part ends with a block
    that holds what could be read and says why no more.

    Raises:
        ConfigError: the part has not the text column, or a Hub dataset cannot be read.
    """
    if part.kind in (".jsonl", ".txt"):
        return _read_lines(part, start)
    return _read_columns(part, start)


def decode(block: Block) -> Iterator[str | BadDocument]:
    """Yields each document of a block: its text, or what is wrong with it."""
    if isinstance(block.content, list):
        place = "row"
        texts = ((number, _decode_value(raw)) for number, raw in enumerate(block.content, block.start.rows + 1))
    elif block.part.kind == ".txt":
        place = "line"
        texts = _split_paragraphs(block.content, block.start.rows + 1)
    else:
        place = "line"
        texts = (
            (number, _decode_json(line, block.part.text_column))
            for number, line in enumerate(block.content.split(b"\n"), block.start.rows + 1)
            if line.strip()
        )
    for number, text in texts:
        yield text if isinstance(text, str) else BadDocument(f"{block.part}, {place} {number}", *text)


def _decode_json(line: bytes, column: str) -> str | tuple[str, str]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return "not UTF-8", f" ({error.reason} at byte {error.start + 1} of the line)"
    except (ValueError, RecursionError) as error:
        return "not JSON", f" ({error})"
    if not isinstance(record, dict):
        return "no JSON object", f" but {type(record).__name__}; write one object per line"
    text: Any = record.get(column)
    if isinstance(text, str):
        return text
    return "no text", f" in column {column!r}, only {sorted(record)}; set text_column of its source"


def _decode_value(raw: bytes | None) -> str | tuple[str, str]:
    if raw is None:
        return "no text", ", the column is empty there"
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return "not UTF-8", f" ({error.reason} at byte {error.start + 1} of the text)"


def _split_paragraphs(content: bytes, first_line: int) -> Iterator[tuple[int, str | tuple[str, str]]]:
    paragraph: list[bytes] = []
    start = first_line
    for number, line in enumerate([*content.split(b"\n"), b""], first_line):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line.rstrip(b"\r"))
        elif paragraph:
            yield start, _decode_value(b"\n".join(paragraph))
            paragraph = []


def _read_lines(part: Part, start: Position) -> Iterator[Block]:
    # Blank lines part the texts of a .txt; a line is a document of a .jsonl.
    boundaries = (b"\n\n", b"\n\r\n") if part.kind == ".txt" else (b"\n",)
    position, buffer = start, bytearray()
    fraction, damage = 0.0, None
    try:
        for chunk, fraction in _decompress(part, start.offset):
            buffer += chunk
            while (end := _first_boundary(buffer, boundaries)) > 0:
                block = _line_block(part, position, bytes(buffer[:end]), fraction)
                yield block
                position = block.end
                del buffer[:end]
            if len(buffer) > _LONGEST_DOCUMENT:
                damage = "behind line", f" stands a document of more than {_LONGEST_DOCUMENT >> 20} MiB; cut it up"
                break
    except _DAMAGED as error:
        if isinstance(error, EOFError):
            damage = "ends too early, behind line", "; fetch it again"
        else:
            damage = "damaged behind line", f" ({_first_line(error)}); {_WHOLLY_AGAIN}"
    if damage is not None:
        ends = [found + len(boundary) for boundary in boundaries if (found := buffer.rfind(boundary)) >= 0]
        block = _line_block(part, position, bytes(buffer[: max(ends, default=0)]), 1.0)
        yield replace(block, damage=f"{damage[0]} {block.end.rows}{damage[1]}")
    elif buffer:
        yield _line_block(part, position, bytes(buffer), 1.0)


def _line_block(part: Part, start: Position, content: bytes, fraction: float) -> Block:
    end = Position(rows=start.rows + content.count(b"\n"), offset=start.offset + len(content))
    return Block(part=part, start=start, end=end, fraction=fraction, content=content)


def _first_boundary(buffer: bytearray, boundaries: tuple[bytes, ...]) -> int:
    """Where the first line or paragraph ends that reaches the size of a block; 0 if that has not been read yet."""
    if len(buffer) < BLOCK_BYTES:
        return 0
    ends = [found + len(end) for end in boundaries if (found := buffer.find(end, BLOCK_BYTES - len(end))) >= 0]
    return min(ends, default=0)


def _decompress(part: Part, skip: int) -> Iterator[tuple[bytes, float]]:
    """Yields (bytes, fraction of the file read), without the first `skip` bytes."""
    size = max(1, part.size)
    with Path(part.path).open("rb") as file:
        if not part.compression:
            file.seek(skip)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk, min(1.0, file.tell() / size)
            return
        # Files may be several compressed streams, one behind the other.
        stream = None
        while raw := file.read(_CHUNK_BYTES):
            if stream is None and file.tell() > len(raw):
                raw = raw.lstrip(b"\0")  # gzip allows zeros behind a stream
            while raw:
                stream = _new_decompressor(part.compression) if stream is None else stream
                chunk = stream.decompress(raw)
                raw = stream.unused_data.lstrip(b"\0") if stream.eof else b""
                stream = None if stream.eof else stream
                skipped = min(skip, len(chunk))
                skip -= skipped
                if len(chunk) > skipped:
                    yield chunk[skipped:], min(1.0, file.tell() / size)
        if stream is not None:
            raise EOFError("the compressed data ends too early")


def _new_decompressor(compression: str) -> Any:
    return zlib.decompressobj(wbits=31) if compression == ".gz" else zstandard.ZstdDecompressor().decompressobj()


def _read_columns(part: Part, start: Position) -> Iterator[Block]:
    position = start
    try:
        for row, texts, fraction in _column_batches(part, start.rows):
            # A batch of long documents becomes several blocks.
            pieces = max(1, min(len(texts), sum(map(len, filter(None, texts))) // BLOCK_BYTES))
            for piece in range(pieces):
                first, behind = len(texts) * piece // pieces, len(texts) * (piece + 1) // pieces
                if start.rows < row + behind:
                    begin, position = Position(rows=row + first), Position(rows=row + behind)
                    content = texts[first:behind]
                    yield Block(part=part, start=begin, end=position, fraction=fraction, content=content)
    except _DAMAGED as error:
        if part.kind == "hub":
            raise
        damage = f"damaged behind row {position.rows} ({_first_line(error)}); {_WHOLLY_AGAIN}"
        yield Block(part=part, start=position, end=position, fraction=1.0, content=[], damage=damage)


def _column_batches(part: Part, rows_read: int) -> Iterator[tuple[int, list[bytes | None], float]]:
    """Yields (number of the first row, texts, fraction of the part); may leave out rows that have been read."""
    if part.kind == INSTALLED_DOCUMENTATION:
        row = 0
        for texts, fraction in read_installed_documentation():
            yield row, [text.encode("utf-8", "replace") for text in texts], fraction  # some hold half characters
            row += len(texts)
    elif part.kind == ".parquet":
        yield from _parquet_batches(part, rows_read)
    elif part.kind == ".arrow":
        yield from _arrow_batches(part)
    else:
        row = 0
        for batch in read_shard(part.path, part.subset, part.hub_split, part.shard):
            yield row, _texts_of(batch, part), 0.0
            row += batch.num_rows


def _parquet_batches(part: Part, rows_read: int) -> Iterator[tuple[int, list[bytes | None], float]]:
    file = pq.ParquetFile(part.path)
    _require_column(file.schema_arrow, part)
    total, row = max(1, file.metadata.num_rows), 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows <= rows_read:
            row += rows
            continue
        for batch in file.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=[part.text_column]):
            yield row, _texts_of(batch, part), (row + batch.num_rows) / total
            row += batch.num_rows


def _arrow_batches(part: Part) -> Iterator[tuple[int, list[bytes | None], float]]:
    # Arrow has a format for files and one for streams, which `datasets` writes; the first bytes tell them apart.
    with Path(part.path).open("rb") as opened:
        is_file = opened.read(len(_ARROW_FILE)) == _ARROW_FILE
    mapped = pa.memory_map(part.path)
    row = 0
    if is_file:
        file = pa.ipc.open_file(mapped)
        _require_column(file.schema, part)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        batches = pa.ipc.open_stream(mapped)
        _require_column(batches.schema, part)
    for batch in batches:
        for first in range(0, batch.num_rows, _ROWS_PER_BATCH):
            piece = batch.slice(first, _ROWS_PER_BATCH)
            yield row, _texts_of(piece, part), min(1.0, mapped.tell() / max(1, part.size))
            row += piece.num_rows


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _texts_of(batch: pa.RecordBatch, part: Part) -> list[bytes | None]:
    _require_column(batch.schema, part)
    column = batch.column(part.text_column)
    try:
        # As bytes, since Arrow believes whoever says that these are UTF-8.
        return column.cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{part}: column {part.text_column!r} holds {column.type}, not text; "
            f"set data.sources.{part.source}.text_column."
        ) from error


def _require_column(schema: pa.Schema, part: Part) -> None:
    if part.text_column not in schema.names:
        raise ConfigError(
            f"{part}: no column {part.text_column!r}, only {schema.names}; set data.sources.{part.source}.text_column."
        )
