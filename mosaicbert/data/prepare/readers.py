"""Readers: input files to blocks, and blocks to documents.

One process reads the blocks. The documents of a block are decoded in the worker processes.
"""

import json
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mosaicbert.config import ConfigError
from mosaicbert.config.validators import must_be
from mosaicbert.data.prepare.demo_corpus import read_installed_documentation
from mosaicbert.data.prepare.hub import read_hub_shard
from mosaicbert.data.prepare.sources import INSTALLED_DOCUMENTATION, InputFile

BLOCK_BYTES = 2**22  # approximate size of the text that a worker tokenizes at a time
_MAX_DOCUMENT_BYTES = 2**25
_TOO_LONG = "too long", f", more than {_MAX_DOCUMENT_BYTES >> 20} MiB; split it"
_CHUNK_BYTES = 2**18  # bytes of a file per read
_ROWS_PER_BATCH = 1024
_ARROW_FILE_MAGIC = b"ARROW1"
_DOWNLOAD_AGAIN = "Download it again and delete the unfinished store, because text read before may be wrong too"
_CORRUPTION_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class FilePosition:
    """Position in an input file.

    Attributes:
        rows: Number of lines or table rows before the position.
        offset: Number of decompressed bytes before the position, in a file of lines.
    """

    rows: int = 0
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive documents of an input file, before decoding.

    Attributes:
        input_file: Input file of the documents.
        start: Position of the first document.
        end: Position at which the next block starts.
        fraction: Fraction of the input file read at the end of the block; 0 if unknown.
        content: Whole lines, or the texts of a column; None for a single document that is too long.
        corruption: Reason why the input file cannot be read any further, or None.
    """

    input_file: InputFile
    start: FilePosition
    end: FilePosition
    fraction: float
    content: bytes | list[bytes | None] | None
    corruption: str | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the content in bytes. Each text of a column has an overhead of some 40 bytes."""
        texts = self.content if isinstance(self.content, list) else []
        return sys.getsizeof(self.content) + sum(map(sys.getsizeof, texts))


@dataclass(frozen=True)
class InvalidDocument:
    """Document without a readable text.

    Attributes:
        location: File and line or row, for error messages.
        reason: Kind of the error, for counting.
        detail: Further information, for error messages.
    """

    location: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}{self.detail}"


def read_blocks(input_file: InputFile, start: FilePosition) -> Iterator[Block]:
    """Yield the blocks of an input file from a position on.

    Block boundaries depend on the content only, not on the start. The last block of a corrupted file has the readable
    documents and the reason of the corruption.

    Args:
        input_file: Input file to read.
        start: End of a block, or the start of the file.

    Raises:
        ConfigError: If the input file does not have the text column, or a Hub dataset cannot be read.
    """
    if input_file.kind in (".jsonl", ".txt"):
        return _read_lines(input_file, start)
    return _read_columns(input_file, start)


def decode(block: Block) -> Iterator[str | InvalidDocument]:
    """Yield each document of a block: its text, or an `InvalidDocument`."""
    first = block.start.rows + 1
    unit = "line"
    if block.content is None:
        texts = [(first, _TOO_LONG)]
    elif isinstance(block.content, list):
        unit = "row"
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
        yield text if isinstance(text, str) else InvalidDocument(f"{block.input_file}, {unit} {number}", *text)


class BlockCache:
    """First blocks of input files, kept in memory from a first reading for a second one.

    Reading installed documentation or a Hub dataset is slow, and a compressed file is decompressed once instead of
    twice. Threads may read different input files at the same time.

    Args:
        max_bytes: Maximum memory of the contents of all blocks, in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self._num_free_bytes = max_bytes
        self._blocks: dict[InputFile, deque[Block]] = {}
        self._complete: set[InputFile] = set()  # input files without further blocks

    def read_first(self, input_file: InputFile) -> Iterator[Block]:
        """Yield the blocks of an input file, and keep them until the maximum size is reached.

        Args:
            input_file: Input file to read from its start.

        Raises:
            ConfigError: If the input file cannot be read, see `read_blocks`.
        """
        blocks = self._blocks[input_file] = deque[Block]()
        for block in read_blocks(input_file, FilePosition()):
            self._num_free_bytes -= block.num_bytes
            if self._num_free_bytes >= 0:
                blocks.append(block)
                if block.corruption is not None:
                    self._complete.add(input_file)
            yield block
        if self._num_free_bytes >= 0:
            self._complete.add(input_file)

    def read_again(self, input_file: InputFile, start: FilePosition) -> Iterator[Block]:
        """Yield the same blocks as `read_blocks`, first those in memory, which are removed.

        Args:
            input_file: Input file to read.
            start: End of a block, or the start of the file.

        Raises:
            ConfigError: If the input file cannot be read, see `read_blocks`.
        """
        blocks = self._blocks.pop(input_file, None)
        if blocks is not None and start == FilePosition():
            while blocks:
                block = blocks.popleft()
                start = block.end
                yield block
            if input_file in self._complete:
                return
        yield from read_blocks(input_file, start)


def read_texts(blocks: Iterable[Block], skip_invalid: bool) -> Iterator[tuple[InputFile, str]]:
    """Yield the input file and the text of every document, in order.

    Args:
        blocks: Blocks of documents, see `read_blocks`.
        skip_invalid: True to skip documents and rests of files that cannot be read.

    Raises:
        ConfigError: If a document or the rest of an input file cannot be read, and `skip_invalid` is False.
    """
    for block in blocks:
        for document in decode(block):
            if isinstance(document, InvalidDocument):
                check_document(document, skip_invalid)
            else:
                yield block.input_file, replace_lone_surrogates(document)
        check_corruption(block.input_file, block.corruption, skip_invalid)


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates with "?": JSON allows them, but tokenizers raise an error for them."""
    return text.encode("utf-8", "replace").decode()


def check_document(document: InvalidDocument | None, skip_invalid: bool) -> None:
    """Raise an error for an invalid document, unless invalid documents are skipped.

    Args:
        document: Invalid document, or None.
        skip_invalid: True to skip invalid documents.

    Raises:
        ConfigError: If there is an invalid document, and `skip_invalid` is False.
    """
    if document is not None and not skip_invalid:
        raise ConfigError(
            f"{document}. Correct the document, or set `data.skip_invalid_documents=true` to skip such documents."
        )


def check_corruption(input_file: InputFile, corruption: str | None, skip_invalid: bool) -> None:
    """Raise an error for a corrupted input file, unless the rest of such files is skipped.

    Args:
        input_file: Input file.
        corruption: Reason why the file cannot be read any further, or None.
        skip_invalid: True to skip the rest of the file.

    Raises:
        ConfigError: If the file is corrupted, and `skip_invalid` is False.
    """
    if corruption is not None and not skip_invalid:
        raise ConfigError(
            f"{input_file} is {corruption}. Or set `data.skip_invalid_documents=true` to skip the rest of the file."
        )


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
        return "not a JSON object", f", got {type(record).__name__}; write one object per line"
    text: Any = record.get(column)
    if isinstance(text, str):
        return text
    return "no text", f" in column {column!r}, got columns {sorted(record)}; set `text_column` of the source"


def _decode_value(raw: bytes | None) -> str | tuple[str, str]:
    if raw is None:
        return "no text", ", the value is null"
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
    # Documents of a .txt file are separated by blank lines. Each line of a .jsonl file is a document.
    cutter = _BlockCutter((b"\n\n", b"\n\r\n") if input_file.kind == ".txt" else (b"\n",))
    position, fraction, corruption = start, 0.0, None
    try:
        for chunk, fraction in _decompress(input_file, start.offset):
            for piece in cutter.cut(chunk):
                block = _line_block(input_file, position, piece, fraction)
                yield block
                position = block.end
    except _CORRUPTION_ERRORS as error:
        if isinstance(error, EOFError):
            corruption = "truncated after line", " (unexpected end of file). Download it again"
        else:
            corruption = "corrupted after line", f" ({_first_line(error)}). {_DOWNLOAD_AGAIN}"
    if corruption is not None:
        block = _line_block(input_file, position, cutter.take_complete(), 1.0)
        yield replace(block, corruption=f"{corruption[0]} {block.end.rows}{corruption[1]}")
    elif (piece := cutter.take_rest()).num_bytes:
        yield _line_block(input_file, position, piece, 1.0)


@dataclass(frozen=True)
class _Piece:
    """Whole documents.

    Attributes:
        content: Bytes of the documents; None for a single document that is too long.
        num_bytes: Number of bytes.
        num_lines: Number of line breaks.
    """

    content: bytes | None
    num_bytes: int
    num_lines: int


class _BlockCutter:
    """Cutter of a byte stream into pieces, independent of the chunks in which the stream arrives.

    A piece ends at the first boundary at or after BLOCK_BYTES. If there is no boundary within the next
    _MAX_DOCUMENT_BYTES, the documents before are one piece, and the long document is a piece without content. This
    limits the memory for a file without boundaries.

    Args:
        boundaries: Byte strings that separate documents.
    """

    def __init__(self, boundaries: Sequence[bytes]) -> None:
        self.boundaries = boundaries
        self._buffer = bytearray()
        self._skipped: _Piece | None = None  # discarded bytes of a document that is too long

    def cut(self, chunk: bytes) -> Iterator[_Piece]:
        """Add a chunk of the stream, and yield the pieces that are now complete."""
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

    def take_complete(self) -> _Piece:
        """Return the remaining bytes without an incomplete last document."""
        return self._take(self._find_last(len(self._buffer)) if self._skipped is None else 0)

    def take_rest(self) -> _Piece:
        """Return the remaining bytes at the end of the stream."""
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
        piece = self._take(end)
        self._skipped = _Piece(None, self._skipped.num_bytes + end, self._skipped.num_lines + piece.num_lines)

    def _find(self, min_end: int) -> int:
        ends = [
            start + len(boundary)
            for boundary in self.boundaries
            if (start := self._buffer.find(boundary, max(0, min_end - len(boundary)))) >= 0
        ]
        return min(ends, default=0)

    def _find_last(self, max_end: int) -> int:
        ends = [
            start + len(boundary)
            for boundary in self.boundaries
            if (start := self._buffer.rfind(boundary, 0, max_end)) >= 0
        ]
        return max(ends, default=0)


def _line_block(input_file: InputFile, start: FilePosition, piece: _Piece, fraction: float) -> Block:
    end = FilePosition(rows=start.rows + piece.num_lines, offset=start.offset + piece.num_bytes)
    return Block(input_file=input_file, start=start, end=end, fraction=fraction, content=piece.content)


def _decompress(input_file: InputFile, skip: int) -> Iterator[tuple[bytes, float]]:
    """Yield chunks of decompressed bytes after the first `skip`, with the fraction of the file read."""
    size = max(1, input_file.size)
    with Path(input_file.path).open("rb") as file:
        if not input_file.compression:
            file.seek(skip)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk, min(1.0, file.tell() / size)
            return
        # A file may consist of several compressed streams.
        stream = None
        while raw := file.read(_CHUNK_BYTES):
            if stream is None and file.tell() > len(raw):
                raw = raw.lstrip(b"\0")  # gzip allows zeros after a stream
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
            raise EOFError("unexpected end of the compressed data")


def _new_decompressor(compression: str) -> Any:
    return zlib.decompressobj(wbits=31) if compression == ".gz" else zstandard.ZstdDecompressor().decompressobj()


def _read_columns(input_file: InputFile, start: FilePosition) -> Iterator[Block]:
    position = start
    try:
        for row, texts, fraction in _column_batches(input_file, start.rows):
            # A batch of long documents is split into several blocks.
            num_pieces = max(1, min(len(texts), sum(map(len, filter(None, texts))) // BLOCK_BYTES))
            for piece in range(num_pieces):
                first, end = len(texts) * piece // num_pieces, len(texts) * (piece + 1) // num_pieces
                if start.rows < row + end:
                    begin, position = FilePosition(rows=row + first), FilePosition(rows=row + end)
                    content = texts[first:end]
                    yield Block(input_file=input_file, start=begin, end=position, fraction=fraction, content=content)
    except _CORRUPTION_ERRORS as error:
        if input_file.kind == "hub":
            raise
        corruption = f"corrupted after row {position.rows} ({_first_line(error)}). {_DOWNLOAD_AGAIN}"
        yield Block(
            input_file=input_file, start=position, end=position, fraction=1.0, content=[], corruption=corruption
        )


def _column_batches(input_file: InputFile, rows_read: int) -> Iterator[tuple[int, list[bytes | None], float]]:
    """Yield the index of the first row, the texts and the fraction read, per batch.

    Rows before `rows_read` may be omitted.
    """
    if input_file.kind == INSTALLED_DOCUMENTATION:
        row = 0
        for texts, fraction in read_installed_documentation():
            yield row, [text.encode("utf-8", "replace") for text in texts], fraction  # replaces lone surrogates
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
            yield row, _column_texts(batch, input_file), 0.0
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
        rows_at_once = _rows_per_block(rows, _column_bytes(file.metadata.row_group(group), input_file.text_column))
        for batch in file.iter_batches(rows_at_once, row_groups=[group], columns=[input_file.text_column]):
            yield row, _column_texts(batch, input_file), (row + batch.num_rows) / total
            row += batch.num_rows


def _arrow_batches(input_file: InputFile) -> Iterator[tuple[int, list[bytes | None], float]]:
    # Arrow has a file format and a stream format; `datasets` writes the latter. Their first bytes differ.
    with Path(input_file.path).open("rb") as opened:
        is_file = opened.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
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
            yield row, _column_texts(piece, input_file), min(1.0, mapped.tell() / max(1, input_file.size))
            row += piece.num_rows


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _column_bytes(group: pq.RowGroupMetaData, name: str) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == name)


def _rows_per_block(rows: int, size: int) -> int:
    """Return the average number of rows in a block, for rows with a total size in bytes."""
    return max(1, min(_ROWS_PER_BATCH, rows * BLOCK_BYTES // max(1, size)))


def _column_texts(batch: pa.RecordBatch, input_file: InputFile) -> list[bytes | None]:
    _check_column(batch.schema, input_file)
    column = batch.column(input_file.text_column)
    try:
        # As bytes, because Arrow does not validate strings as UTF-8.
        return column.cast(pa.large_binary()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"`data.sources.{input_file.source}.text_column` must be a column of text in {input_file}, "
            f"got {input_file.text_column!r} of type {column.type}. Set a column with strings."
        ) from error


def _check_column(schema: pa.Schema, input_file: InputFile) -> None:
    if input_file.text_column not in schema.names:
        raise must_be(
            f"data.sources.{input_file.source}.text_column",
            f"one of the columns {schema.names} of {input_file}",
            input_file.text_column,
        )
