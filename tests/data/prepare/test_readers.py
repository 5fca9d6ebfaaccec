import gzip
import itertools
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare import readers
from mosaicbert.data.prepare.readers import BlockCache, FilePosition, InvalidDocument, decode, read_blocks
from mosaicbert.data.prepare.sources import list_input_files
from tests.data.corpus import jsonl, short_texts

_TEXTS = ["The first text.", "The second one,\nwith ünïcödé.", "And a third."]


def _input_file(path, column="text"):
    (input_file,) = list_input_files({"text": SourceConfig(path=str(path), text_column=column)})
    return input_file


def _read(path, column="text"):
    """Read the documents of a file, with invalid documents as error messages."""
    blocks = list(read_blocks(_input_file(path, column), FilePosition()))
    return [doc if isinstance(doc, str) else str(doc) for block in blocks for doc in decode(block)]


def _zstd(content):
    return zstandard.ZstdCompressor().compress(content)


_COMPRESSORS = pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", _zstd)])
_ARROW_FORMATS = pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])


def _write_arrow(path, new, *batches):
    with new(str(path), batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


def _batch(texts, column="text"):
    return pa.record_batch({column: pa.array(texts, pa.string())})


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_each_line_of_a_json_file_is_a_document(tmp_path, name):
    (tmp_path / name).write_bytes(jsonl(_TEXTS))
    assert _read(tmp_path / name) == _TEXTS


def test_the_last_line_of_a_json_file_does_not_need_a_line_break(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(_TEXTS).rstrip())
    assert _read(tmp_path / "a.jsonl") == _TEXTS


def test_json_lines_may_have_windows_line_ends_a_byte_order_mark_and_blank_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(_TEXTS).replace(b"\n", b"\r\n \r\n\r\n"))
    assert _read(tmp_path / "a.jsonl") == _TEXTS


@_COMPRESSORS
def test_compressed_json_is_read(tmp_path, suffix, compress):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(jsonl(_TEXTS)))
    assert _read(tmp_path / f"a.jsonl{suffix}") == _TEXTS


@pytest.mark.parametrize("chunk_bytes", [1, 7, 2**18])
@_COMPRESSORS
def test_concatenated_compressed_streams_are_read_as_one_file(tmp_path, monkeypatch, suffix, compress, chunk_bytes):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
    content = jsonl(_TEXTS)
    cuts = [content[:10], content[10:50], b"", content[50:]]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(map(compress, cuts)))
    assert _read(tmp_path / f"a.jsonl{suffix}") == _TEXTS


@pytest.mark.parametrize("chunk_bytes", [1, 16, 2**18])
def test_zeros_after_a_gzip_stream_are_ignored(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(_TEXTS)) + bytes(100))
    (block,) = read_blocks(_input_file(tmp_path / "a.jsonl.gz"), FilePosition())
    assert block.corruption is None


def test_skippable_frames_of_zstd_are_skipped(tmp_path):
    frame = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    (tmp_path / "a.jsonl.zst").write_bytes(frame + _zstd(jsonl(_TEXTS[:1])) + frame + _zstd(jsonl(_TEXTS[1:])))
    assert _read(tmp_path / "a.jsonl.zst") == _TEXTS


@pytest.mark.parametrize(
    "content",
    [
        b"One\nstill one\n\nTwo",
        b"\n\n\nOne\nstill one\n\n\n\nTwo\n",
        b"One\r\nstill one\r\n\r\nTwo\r\n",
        b"One\nstill one\n \t \nTwo\n",
        b"One\nstill one\n\r\n\n\r\nTwo\n\r\n",
    ],
    ids=["plain", "many-blank-lines", "windows", "white-space", "mixed"],
)
def test_texts_of_a_txt_file_are_separated_by_blank_lines(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert _read(tmp_path / "a.txt") == ["One\nstill one", "Two"]


@_COMPRESSORS
def test_compressed_txt_is_read(tmp_path, suffix, compress):
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(b"One\n\nTwo"))
    assert _read(tmp_path / f"a.txt{suffix}") == ["One", "Two"]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_text_type_of_parquet_is_read(tmp_path, kind):
    column = pa.array(_TEXTS * 3).cast(kind)
    table = pa.table({"number": range(9), "body": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    assert _read(tmp_path / "a.parquet", "body") == _TEXTS * 3


@_ARROW_FORMATS
def test_both_arrow_formats_are_read(tmp_path, new):
    path = _write_arrow(tmp_path / "a.arrow", new, _batch(_TEXTS), _batch([]), _batch(_TEXTS[:1]))
    assert _read(path) == [*_TEXTS, _TEXTS[0]]


@_ARROW_FORMATS
def test_dictionaries_are_read_from_both_arrow_formats(tmp_path, new):
    batch = pa.record_batch({"text": pa.array(_TEXTS * 2).dictionary_encode()})
    assert _read(_write_arrow(tmp_path / "a.arrow", new, batch)) == _TEXTS * 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_has_no_documents(tmp_path, name):
    (tmp_path / name).touch()
    assert _read(tmp_path / name) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "caf\xe9"}', r"not UTF-8 \(invalid continuation byte at byte 14 of the line\)"),
        (b'{"text": "half', r"not JSON \(Unterminated string"),
        (b"[" * 100_000, r"not JSON \("),
        (b'["text"]', "not a JSON object, got list; write one object per line"),
        (b"3", "not a JSON object, got int"),
        (
            b'{"body": "b", "a": 1}',
            r"no text in column 'text', got columns \['a', 'body'\]; set `text_column` of the source",
        ),
        (b'{"text": null}', "no text in column 'text'"),
        (b'{"text": 3}', "no text in column 'text'"),
        (b'{"text": ["a"]}', "no text in column 'text'"),
    ],
    ids=["encoding", "half", "deep", "list", "number", "other-column", "null", "number-for-text", "list-for-text"],
)
def test_an_invalid_line_is_reported_with_its_number_and_the_others_are_read(tmp_path, line, expected):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(_TEXTS[:2]) + b"\n" + line + b"\n" + jsonl(_TEXTS[2:]))
    first, second, message, third = _read(path)
    assert [first, second, third] == _TEXTS
    assert message.startswith(f"{path}, line 4: ")
    assert re.search(expected, message)
    assert len(message.splitlines()) == 1


def test_line_numbers_of_invalid_lines_continue_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    path = tmp_path / "a.jsonl"
    path.write_bytes((jsonl(short_texts(9)) + b"{\n") * 5)
    assert [doc.split(":")[0] for doc in _read(path) if "line" in doc] == [
        f"{path}, line {n}" for n in range(10, 51, 10)
    ]


def test_a_paragraph_that_is_not_utf8_is_reported_with_its_first_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"One\n\n\nTwo\ncaf\xe9\n\nThree\n")
    assert _read(path)[1].startswith(f"{path}, line 4: not UTF-8")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "no text, the value is null"), (b"\xff", "not UTF-8 (invalid start byte at byte 1 of the text)")],
    ids=["null", "encoding"],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_an_invalid_row_is_reported_with_its_number_and_the_others_are_read(tmp_path, name, value, expected):
    raw = [*[text.encode() for text in _TEXTS[:2]], value, _TEXTS[2].encode()]
    table = pa.table({"text": pa.array(raw, pa.binary())})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=2)
    else:
        _write_arrow(tmp_path / name, pa.ipc.new_stream, *table.to_batches())
    assert _read(tmp_path / name) == [*_TEXTS[:2], f"{tmp_path / name}, row 3: {expected}", _TEXTS[2]]


def _write_columns(path, table, new):
    pq.write_table(table, path) if new is None else _write_arrow(path, new, *table.to_batches())
    return path


_COLUMN_FORMATS = pytest.mark.parametrize(
    ("name", "new"),
    [("a.parquet", None), ("a.arrow", pa.ipc.new_file), ("a.arrow", pa.ipc.new_stream)],
    ids=["parquet", "arrow-file", "arrow-stream"],
)


@_COLUMN_FORMATS
def test_a_missing_column_raises_an_error_with_the_existing_columns(tmp_path, name, new):
    path = _write_columns(tmp_path / name, pa.table({"a": ["x"], "b": ["y"]}), new)
    with pytest.raises(ConfigError, match=r"text_column` must be one of the columns \['a', 'b'\] of .*, got 'text'"):
        _read(path)


@pytest.mark.parametrize("values", [[1], [1.5], [True], [["a"]]], ids=["int", "float", "bool", "list"])
@_COLUMN_FORMATS
def test_a_column_without_text_raises_an_error_with_its_type(tmp_path, name, new, values):
    path = _write_columns(tmp_path / name, pa.table({"text": values}), new)
    with pytest.raises(ConfigError, match=rf"text_column` must be a column of text in .*{name}, got 'text' of type "):
        _read(path)


@_COLUMN_FORMATS
def test_each_row_of_a_null_column_is_reported_as_without_text(tmp_path, name, new):
    path = _write_columns(tmp_path / name, pa.table({"text": pa.nulls(2)}), new)
    assert [doc.split(": ")[1] for doc in _read(path)] == ["no text, the value is null"] * 2


def _truncate(content):
    return content[: len(content) * 2 // 3]


def _flip(content):
    half = len(content) * 2 // 3
    return content[:half] + bytes([content[half] ^ 0x55]) + content[half + 1 :]


def _random_texts(num_texts):
    """Make texts that compress badly, so that a file of them has several chunks."""
    draw = random.Random(5)
    return [draw.randbytes(100).hex() for _ in range(num_texts)]


def _read_corrupted(path, content, monkeypatch):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 2**12)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 2**14)
    path.write_bytes(content)
    blocks = list(read_blocks(_input_file(path), FilePosition()))
    return [text for block in blocks for text in decode(block)], blocks[-1].corruption


@_COMPRESSORS
def test_a_truncated_file_is_read_up_to_its_last_complete_line(tmp_path, monkeypatch, suffix, compress):
    documents = _random_texts(1000)
    documents_read, corruption = _read_corrupted(
        tmp_path / f"a.jsonl{suffix}", _truncate(compress(jsonl(documents))), monkeypatch
    )
    assert 500 < len(documents_read) < 800
    assert documents_read == documents[: len(documents_read)]
    assert corruption == f"truncated after line {len(documents_read)} (unexpected end of file). Download it again"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor(write_checksum=True).compress)],
    ids=[".gz", ".zst"],
)
def test_a_changed_byte_in_a_compressed_file_is_detected(tmp_path, monkeypatch, suffix, compress):
    documents = _random_texts(1000)
    documents_read, corruption = _read_corrupted(
        tmp_path / f"a.jsonl{suffix}", _flip(compress(jsonl(documents))), monkeypatch
    )
    assert documents_read[:500] == documents[:500]
    assert corruption.startswith(f"corrupted after line {len(documents_read)} (")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_uncompressed_file_with_a_compression_suffix_is_corrupted_from_the_first_line(tmp_path, suffix):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(jsonl(_TEXTS))
    (block,) = read_blocks(_input_file(tmp_path / f"a.jsonl{suffix}"), FilePosition())
    assert block.corruption.startswith("corrupted after line 0 (")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", [b"", b"no such file format at all", b"ARROW1 and nothing more", b"PAR1"])
def test_a_file_with_invalid_table_content_is_corrupted_from_the_first_row(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (block,) = read_blocks(_input_file(tmp_path / name), FilePosition())
    assert block.corruption.startswith("corrupted after row 0 (")


def test_a_parquet_file_is_read_up_to_its_corrupted_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": short_texts(40)}), path, row_group_size=20, compression="gzip")
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(content)
    *_, last = blocks = list(read_blocks(_input_file(path), FilePosition()))
    assert [text for block in blocks for text in decode(block)] == short_texts(20)
    assert last.corruption.startswith("corrupted after row 20 (")


def test_a_truncated_arrow_stream_is_read_up_to_its_last_complete_batch(tmp_path):
    path = _write_arrow(tmp_path / "a.arrow", pa.ipc.new_stream, _batch(short_texts(20)), _batch(short_texts(20, 20)))
    path.write_bytes(path.read_bytes()[:-600])
    *_, last = blocks = list(read_blocks(_input_file(path), FilePosition()))
    assert [text for block in blocks for text in decode(block)] == short_texts(20)
    assert last.corruption.startswith("corrupted after row 20 (")


_LONG_POSITIONS = {"one": [3], "two": [0, 3], "at-the-end": [6], "neighbors": [2, 3]}


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("positions", _LONG_POSITIONS.values(), ids=_LONG_POSITIONS.keys())
@pytest.mark.parametrize("block_bytes", [50, 3000], ids=["small-blocks", "large-blocks"])
def test_a_document_that_is_too_long_is_skipped_and_the_others_are_read(
    tmp_path, monkeypatch, suffix, positions, block_bytes
):
    monkeypatch.setattr(readers, "_MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    documents = [f"short text {number}" for number in range(7)]
    for index in positions:
        documents[index] = "long " * 20_000
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(jsonl(documents)) if suffix.endswith("gz") else jsonl(documents))
    results = [doc for block in read_blocks(_input_file(path), FilePosition()) for doc in decode(block)]
    invalid = {index for index, doc in enumerate(results) if not isinstance(doc, str)}
    assert invalid == set(positions)
    assert [doc for doc in results if isinstance(doc, str)] == [doc for doc in documents if len(doc) < 100]
    assert all(results[index].reason == "too long" for index in invalid)
    assert all(results[index].location == f"{path}, line {index + 1}" for index in invalid)


@pytest.mark.parametrize("chunk", [7, 1000])
def test_a_file_without_line_breaks_is_one_document_that_is_too_long(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(readers, "_MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 3000)
    monkeypatch.setattr(readers, "_CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(b"x" * 50_000)
    (block,) = read_blocks(_input_file(tmp_path / "a.txt"), FilePosition())
    assert block.content is None
    assert block.end.offset == 50_000
    assert [doc.reason for doc in decode(block)] == ["too long"]


# --- Independence of the start position, and of the sizes of blocks and chunks.


def _compress_in_two_streams(content, compress):
    middle = len(content) // 3
    return compress(content[:middle]) + compress(content[middle:])


def _write_random(path, documents, group):
    """Write documents in the format of the file name."""
    if path.suffix == ".parquet":
        return pq.write_table(pa.table({"text": pa.array(documents, pa.string())}), path, row_group_size=group)
    if path.suffix == ".arrow":
        table = pa.table({"text": pa.array(documents, pa.string())})
        return _write_arrow(path, pa.ipc.new_stream, *(table.to_batches(group) or [_batch([])]))
    if ".txt" in path.name:
        content = "\n\n".join(documents).encode()
    else:
        content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)
    if path.suffix in (".gz", ".zst"):
        content = _compress_in_two_streams(content, gzip.compress if path.suffix == ".gz" else _zstd)
    return path.write_bytes(content)


_NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz", "a.parquet", "a.arrow"]
_DOCUMENTS = st.lists(st.text(alphabet="aé \n\r\t中", max_size=40), max_size=30)


def _contents(blocks):
    return [(block.start, block.end, block.content, block.corruption) for block in blocks]


@pytest.mark.parametrize("name", _NAMES)
@given(
    documents=_DOCUMENTS,
    chunk_bytes=st.integers(1, 50),
    block_bytes=st.integers(3, 100),
    rows=st.integers(1, 10),
    truncated=st.booleans(),
)
def test_reading_from_the_end_of_any_block_yields_the_remaining_blocks(
    tmp_path_factory, name, documents, chunk_bytes, block_bytes, rows, truncated
):
    path = tmp_path_factory.mktemp("random") / name
    _write_random(path, documents, group=7)
    if truncated:
        path.write_bytes(_truncate(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(readers, "BLOCK_BYTES", block_bytes)
        patch.setattr(readers, "_ROWS_PER_BATCH", rows)
        input_file = _input_file(path)
        blocks = list(read_blocks(input_file, FilePosition()))
        for number, block in enumerate(blocks):
            if block.corruption is None:
                assert _contents(read_blocks(input_file, block.end)) == _contents(blocks[number + 1 :])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
@given(
    documents=_DOCUMENTS,
    num_read=st.integers(0, 20),
    max_bytes=st.integers(0, 3000),
    start=st.integers(0, 20),
    truncated=st.booleans(),
)
def test_a_second_reading_with_a_cache_yields_the_same_blocks(
    tmp_path_factory, name, documents, num_read, max_bytes, start, truncated
):
    path = tmp_path_factory.mktemp("random") / name
    _write_random(path, documents, group=7)
    if truncated:
        path.write_bytes(_truncate(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", 50)
        input_file = _input_file(path)
        blocks = list(read_blocks(input_file, FilePosition()))
        positions = [FilePosition(), *(block.end for block in blocks if block.corruption is None)]
        position = positions[start % len(positions)]
        cache = BlockCache(max_bytes)
        assert list(itertools.islice(cache.read_first(input_file), num_read)) == blocks[:num_read]
        assert list(cache.read_again(input_file, position)) == list(read_blocks(input_file, position))


def test_a_cached_file_is_not_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(short_texts(20)))
    input_file = _input_file(path)
    cache = BlockCache(10_000)
    blocks = list(cache.read_first(input_file))
    path.unlink()
    assert len(blocks) > 10
    assert list(cache.read_again(input_file, FilePosition())) == blocks


def test_the_cache_is_limited_by_its_memory(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 2000}), tmp_path / "a.parquet")
    cache = BlockCache(10_000)  # more than the number of characters, less than their memory as 2,000 texts
    input_file = _input_file(tmp_path / "a.parquet")
    assert sum(len(block.content) for block in cache.read_first(input_file)) == 2000
    (tmp_path / "a.parquet").unlink()
    (block,) = cache.read_again(input_file, FilePosition())
    assert block.corruption.startswith("corrupted after row 0 ")


@pytest.mark.parametrize("name", _NAMES)
@given(
    documents=_DOCUMENTS,
    chunk_bytes=st.integers(1, 50),
    block_bytes=st.integers(3, 100),
    rows=st.integers(1, 10),
)
def test_documents_do_not_depend_on_the_sizes_of_blocks_and_chunks(
    tmp_path_factory, name, documents, chunk_bytes, block_bytes, rows
):
    path = tmp_path_factory.mktemp("random") / name
    _write_random(path, documents, group=7)
    whole = _read(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
        patch.setattr(readers, "BLOCK_BYTES", block_bytes)
        patch.setattr(readers, "_ROWS_PER_BATCH", rows)
        assert _read(path) == whole
    if ".txt" not in name:
        assert whole == documents


_LINES = st.lists(st.sampled_from(["a", "bcd", "", "\r", " ", "a\r"]), min_size=30, max_size=60).map("\n".join)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
@given(content=_LINES, chunk_bytes=st.integers(1, 9), block_bytes=st.integers(3, 30))
def test_block_boundaries_depend_on_the_content_only(tmp_path_factory, name, content, chunk_bytes, block_bytes):
    path = tmp_path_factory.mktemp("random") / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", block_bytes)
        whole = _contents(read_blocks(_input_file(path), FilePosition()))
        patch.setattr(readers, "_CHUNK_BYTES", chunk_bytes)
        assert _contents(read_blocks(_input_file(path), FilePosition())) == whole


def _paragraphs(content):
    """Split into runs of lines that are not blank, each with the number of its first line. Reference implementation."""
    paragraphs, run = [], []
    for number, line in enumerate([*content.split(b"\n"), b""], 1):
        if line.strip():
            run.append((number, line.rstrip(b"\r")))
        elif run:
            paragraphs.append((run[0][0], b"\n".join(line for _, line in run)))
            run = []
    return paragraphs


@given(content=st.text(alphabet="a\xff \n\n\n\r", max_size=120).map(lambda text: text.encode("latin-1")))
def test_texts_and_line_numbers_of_a_txt_file_match_the_reference(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("random") / "a.txt"
    path.write_bytes(content)
    expected = [
        text.decode() if b"\xff" not in text else f"{path}, line {number}" for number, text in _paragraphs(content)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_CHUNK_BYTES", 5)
        patch.setattr(readers, "BLOCK_BYTES", 8)
        assert [doc.split(":")[0] for doc in _read(path)] == expected


def test_blocks_have_approximately_the_configured_size(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(short_texts(500)))
    *blocks, last = read_blocks(_input_file(path), FilePosition())
    max_line_bytes = max(map(len, jsonl(short_texts(500)).splitlines())) + 1
    assert all(1000 <= len(block.content) < 1000 + max_line_bytes for block in blocks)
    assert len(last.content) < 1000 + max_line_bytes


def test_a_batch_of_long_rows_is_split_into_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 500] * 50}), path)
    assert max(len(b"".join(block.content)) for block in read_blocks(_input_file(path), FilePosition())) <= 1500


def test_only_the_remaining_row_groups_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": short_texts(40)}), path, row_group_size=10)
    content = bytearray(path.read_bytes())
    first = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = first.dictionary_page_offset or first.data_page_offset
    content[start : start + first.total_compressed_size] = b"\xff" * first.total_compressed_size
    path.write_bytes(content)
    blocks = read_blocks(_input_file(path), FilePosition(rows=10))
    assert [text for block in blocks for text in decode(block)] == short_texts(30, 10)


def test_the_fraction_read_increases_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_CHUNK_BYTES", 500)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(short_texts(300)))
    fractions = [block.fraction for block in read_blocks(_input_file(path), FilePosition())]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.2
    assert fractions[-1] == 1.0


def test_the_message_of_an_invalid_document_has_its_location_and_reason():
    assert (
        str(InvalidDocument("a.jsonl, line 3", "no text", "; only a picture"))
        == "a.jsonl, line 3: no text; only a picture"
    )
