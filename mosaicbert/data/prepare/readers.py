"""Parts to blocks to documents. Blocks are cut fast by one process, and taken apart by many."""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare.demo_corpus import read_installed_documentation
from mosaicbert.data.prepare.hub import read_hub_shard
from mosaicbert.data.prepare.sources import INSTALLED_DOCUMENTATION, InputFile

BLOCK_BYTES = 2**22  # of text, more or less: what one process tokenises at a time
_MAX_DOCUMENT_BYTES = 2**25  # bytes
_TOO_LONG = "too long", f", more than {_MAX_DOCUMENT_BYTES >> 20} MiB; cut it up"
_CHUNK_BYTES = 2**18  # read from a file at once
_ROWS_PER_BATCH = 1024
_ARROW_FILE = b"ARROW1"
_FETCH_AGAIN = "fetch it again and delete the unfinished store, since what was read before may be wrong as well"
_CORRUPTION_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class FilePosition:
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
        content: whole lines, or the texts of a column; None for a single document that is too long.
        damage: why the part cannot be read any further.
    """

    input_file: InputFile
    start: FilePosition
    end: FilePosition
    fraction: float
    content: bytes | list[bytes | None] | None
    corruption: str | None = None


@dataclass(frozen=True)
class InvalidDocument:
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


def read_blocks(input_file: InputFile, start: FilePosition) -> Iterator[Block]:
    """Yields the blocks of a part from a position on, which must be the end of a block.

    Blocks are cut by content alone, so that they are the same wherever reading begins. A damaged part ends with a block
    that holds what could be read and says why no more.

    Raises:
        ConfigError: the part has not the text column, or a Hub dataset cannot be read.
    """
    if input_file.kind in (".jsonl", ".txt"):
        return _read_lines(input_file, start)
    return _read_columns(input_file, start)


def decode(block: Block) -> Iterator[str | InvalidDocument]:
    """Yields each document of a block: its text, or what is wrong with it."""
    first = block.start.rows + 1
    place = "line"
    if block.content is None:
        texts = [(first, _TOO_LONG)]
    elif isinstance(block.content, list):
        place = "row"
        texts = ((number, _decode_value(raw)) for number, raw in enumerate(block.content, first))
    elif block.input_file.kind == ".txt":
        texts = _split_paragraphs(block.content, first)
    else:
        texts = (
            (number, _decode_json(line, block.input_file.text_column))
            for number, line in enumerate(block.content.split(b"\n"), first)
            if line.strip()
        )
    for number, text in texts:
        yield text if isinstance(text, str) else InvalidDocument(f"{block.input_file}, {place} {number}", *text)


def read_texts(input_files: Sequence[InputFile], skip_invalid: bool) -> Iterator[tuple[InputFile, str]]:
    """Yield the part and the text of every document, in order.

    Raises:
        ConfigError: If a document or the rest of a part cannot be read, unless `skip_invalid` skips it.
    """
    for input_file in input_files:
        for block in read_blocks(input_file, FilePosition()):
            for document in decode(block):
                if isinstance(document, InvalidDocument):
                    check_document(document, skip_invalid)
                else:
                    yield input_file, clean(document)
            check_corruption(input_file, block.corruption, skip_invalid)


def clean(text: str) -> str:
    """The text without lone surrogates: JSON can write them, but they are no characters, and tokenizers refuse them."""
    return text.encode("utf-8", "replace").decode()


def check_document(document: InvalidDocument | None, skip_invalid: bool) -> None:
    """Stop at a document that cannot be read, unless such documents are skipped.

    Raises:
        ConfigError: If there is such a document.
    """
    if document is not None and not skip_invalid:
        raise ConfigError(f"{document}; mend it, or leave such documents out: data.skip_invalid_documents=true.")


def check_corruption(input_file: InputFile, corruption: str | None, skip_invalid: bool) -> None:
    """Stop where a part cannot be read any further, unless its rest is skipped.

    Raises:
        ConfigError: If the part is corrupted.
    """
    if corruption is not None and not skip_invalid:
        raise ConfigError(f"{input_file}: {corruption}, or leave the rest out: data.skip_invalid_documents=true.")


def _decode_json(line: bytes, column: str) -> str | tuple[str, str]:
    if len(line) > _MAX_DOCUMENT_BYTES:
        return _TOO_LONG
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
    if len(raw) > _MAX_DOCUMENT_BYTES:
        return _TOO_LONG
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


def _read_lines(input_file: InputFile, start: FilePosition) -> Iterator[Block]:
    # Blank lines part the texts of a .txt; a line is a document of a .jsonl.
    cutter = _Cutter((b"\n\n", b"\n\r\n") if input_file.kind == ".txt" else (b"\n",))
    position, fraction, corruption = start, 0.0, None
    try:
        for chunk, fraction in _decompress(input_file, start.offset):
            for piece in cutter.cut(chunk):
                block = _line_block(input_file, position, piece, fraction)
                yield block
                position = block.end
    except _CORRUPTION_ERRORS as error:
        if isinstance(error, EOFError):
            corruption = "ends too early, behind line", "; fetch it again"
        else:
            corruption = "damaged behind line", f" ({_first_line(error)}); {_FETCH_AGAIN}"
    if corruption is not None:
        block = _line_block(input_file, position, cutter.whole_documents(), 1.0)
        yield replace(block, corruption=f"{corruption[0]} {block.end.rows}{corruption[1]}")
    elif (piece := cutter.rest()).num_bytes:
        yield _line_block(input_file, position, piece, 1.0)


@dataclass(frozen=True)
class _Piece:
    """Whole documents; no content if it is one that is too long."""

    content: bytes | None
    num_bytes: int
    num_lines: int


class _Cutter:
    """Cuts a stream into pieces, the same whatever the chunks in which it comes.

    A piece ends at the first boundary from BLOCK_BYTES on. Where a document reaches _MAX_DOCUMENT_BYTES beyond that, the
    documents before it are a piece, and it is one without content: a file without boundaries shall not fill the memory.
    """

    def __init__(self, boundaries: Sequence[bytes]) -> None:
        self.boundaries = boundaries
        self._buffer = bytearray()
        self._skipped: _Piece | None = None  # what is gone of a document that is too long

    def cut(self, chunk: bytes) -> Iterator[_Piece]:
        """Takes the next bytes, and yields the pieces that are complete by them."""
        self._buffer += chunk
        while True:
            if self._skipped is not None:
                end = self._find(0)
                if not end:
                    self._skip(max(0, len(self._buffer) - max(map(len, self.boundaries)) + 1))
                    return
                self._skip(end)
                yield self._skipped
                self._skipped = None
            end = self._find(BLOCK_BYTES) if len(self._buffer) >= BLOCK_BYTES else 0
            if 0 < end <= BLOCK_BYTES + _MAX_DOCUMENT_BYTES:
                yield self._take(end)
            elif len(self._buffer) > BLOCK_BYTES + _MAX_DOCUMENT_BYTES:
                if before := self._find_last(BLOCK_BYTES):
                    yield self._take(before)
                self._skipped = _Piece(None, 0, 0)
            else:
                return

    def whole_documents(self) -> _Piece:
        """What is left, without a document that is not complete."""
        return self._take(self._find_last(len(self._buffer)) if self._skipped is None else 0)

    def rest(self) -> _Piece:
        """What is left at the end of the stream."""
        if self._skipped is None:
            return self._take(len(self._buffer))
        self._skip(len(self._buffer))
        return self._skipped

    def _take(self, end: int) -> _Piece:
        content = bytes(self._buffer[:end])
        del self._buffer[:end]
        return _Piece(content, end, content.count(b"\n"))

    def _skip(self, end: int) -> None:
        assert self._skipped is not None
        gone = self._take(end)
        self._skipped = _Piece(None, self._skipped.num_bytes + end, self._skipped.num_lines + gone.num_lines)

    def _find(self, least: int) -> int:
        ends = [
            found + len(boundary)
            for boundary in self.boundaries
            if (found := self._buffer.find(boundary, max(0, least - len(boundary)))) >= 0
        ]
        return min(ends, default=0)

    def _find_last(self, most: int) -> int:
        ends = [
            found + len(boundary)
            for boundary in self.boundaries
            if (found := self._buffer.rfind(boundary, 0, most)) >= 0
        ]
        return max(ends, default=0)


def _line_block(input_file: InputFile, start: FilePosition, piece: _Piece, fraction: float) -> Block:
    end = FilePosition(rows=start.rows + piece.num_lines, offset=start.offset + piece.num_bytes)
    return Block(input_file=input_file, start=start, end=end, fraction=fraction, content=piece.content)


def _decompress(input_file: InputFile, skip: int) -> Iterator[tuple[bytes, float]]:
    """Yields (bytes, fraction of the file read), without the first `skip` bytes."""
    size = max(1, input_file.size)
    with Path(input_file.path).open("rb") as file:
        if not input_file.compression:
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
                stream = _new_decompressor(input_file.compression) if stream is None else stream
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


def _read_columns(input_file: InputFile, start: FilePosition) -> Iterator[Block]:
    position = start
    try:
        for row, texts, fraction in _column_batches(input_file, start.rows):
            # A batch of long documents becomes several blocks.
            pieces = max(1, min(len(texts), sum(map(len, filter(None, texts))) // BLOCK_BYTES))
            for piece in range(pieces):
                first, behind = len(texts) * piece // pieces, len(texts) * (piece + 1) // pieces
                if start.rows < row + behind:
                    begin, position = FilePosition(rows=row + first), FilePosition(rows=row + behind)
                    content = texts[first:behind]
                    yield Block(input_file=input_file, start=begin, end=position, fraction=fraction, content=content)
    except _CORRUPTION_ERRORS as error:
        if input_file.kind == "hub":
            raise
        corruption = f"damaged behind row {position.rows} ({_first_line(error)}); {_FETCH_AGAIN}"
        yield Block(
            input_file=input_file, start=position, end=position, fraction=1.0, content=[], corruption=corruption
        )


def _column_batches(input_file: InputFile, rows_read: int) -> Iterator[tuple[int, list[bytes | None], float]]:
    """Yields (number of the first row, texts, fraction of the part); may leave out rows that have been read."""
    if input_file.kind == INSTALLED_DOCUMENTATION:
        row = 0
        for texts, fraction in read_installed_documentation():
            yield row, [text.encode("utf-8", "replace") for text in texts], fraction  # some hold half characters
            row += len(texts)
    elif input_file.kind == ".parquet":
        yield from _parquet_batches(input_file, rows_read)
    elif input_file.kind == ".arrow":
        yield from _arrow_batches(input_file)
    else:
        row = 0
        for batch in read_hub_shard(
            input_file.path, input_file.revision, input_file.subset, input_file.hub_split, input_file.shard
        ):
            yield row, _texts_of(batch, input_file), 0.0
            row += batch.num_rows


def _parquet_batches(input_file: InputFile, rows_read: int) -> Iterator[tuple[int, list[bytes | None], float]]:
    file = pq.ParquetFile(input_file.path)
    _check_column(file.schema_arrow, input_file)
    total, row = max(1, file.metadata.num_rows), 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows <= rows_read:
            row += rows
            continue
        rows_at_once = _rows_per_block(rows, _size_of_column(file.metadata.row_group(group), input_file.text_column))
        for batch in file.iter_batches(rows_at_once, row_groups=[group], columns=[input_file.text_column]):
            yield row, _texts_of(batch, input_file), (row + batch.num_rows) / total
            row += batch.num_rows


def _arrow_batches(input_file: InputFile) -> Iterator[tuple[int, list[bytes | None], float]]:
    # Arrow has a format for files and one for streams, which `datasets` writes; the first bytes tell them apart.
    with Path(input_file.path).open("rb") as opened:
        is_file = opened.read(len(_ARROW_FILE)) == _ARROW_FILE
    mapped = pa.memory_map(input_file.path)
    row = 0
    if is_file:
        file = pa.ipc.open_file(mapped)
        _check_column(file.schema, input_file)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        batches = pa.ipc.open_stream(mapped)
        _check_column(batches.schema, input_file)
    for batch in batches:
        rows_at_once = _rows_per_block(batch.num_rows, batch.column(input_file.text_column).nbytes)
        for first in range(0, batch.num_rows, rows_at_once):
            piece = batch.slice(first, rows_at_once)
            yield row, _texts_of(piece, input_file), min(1.0, mapped.tell() / max(1, input_file.size))
            row += piece.num_rows


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _size_of_column(group: pq.RowGroupMetaData, name: str) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == name)


def _rows_per_block(rows: int, size: int) -> int:
    """How many of some rows of a size in bytes are a block, on average."""
    return max(1, min(_ROWS_PER_BATCH, rows * BLOCK_BYTES // max(1, size)))


def _texts_of(batch: pa.RecordBatch, input_file: InputFile) -> list[bytes | None]:
    _check_column(batch.schema, input_file)
    column = batch.column(input_file.text_column)
    try:
        # As bytes, since Arrow believes whoever says that these are UTF-8.
        return column.cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{input_file}: column {input_file.text_column!r} holds {column.type}, not text; "
            f"set data.sources.{input_file.source}.text_column."
        ) from error


def _check_column(schema: pa.Schema, input_file: InputFile) -> None:
    if input_file.text_column not in schema.names:
        raise ConfigError(
            f"{input_file}: no column {input_file.text_column!r}, only {schema.names}; set data.sources.{input_file.source}.text_column."
        )
