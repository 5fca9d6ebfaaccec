import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mosaicbert.config import ConfigError, DataConfig
from mosaicbert.data.sources import read_texts
from tests.data.corpus import write_jsonl

_TEXTS = ["The first text.", "The second one, with ünïcödé.", "And a third."]


def _read(source, **keys):
    return list(read_texts(DataConfig(source=str(source), **keys)))


def test_jsonl_is_read(tmp_path):
    assert _read(write_jsonl(tmp_path / "a.jsonl", _TEXTS)) == _TEXTS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".zst", zstandard.ZstdCompressor().compress)],
    ids=["gzip", "zstandard"],
)
def test_compressed_jsonl_is_read(tmp_path, suffix, compress):
    plain = write_jsonl(tmp_path / "plain.jsonl", _TEXTS).read_bytes()
    (tmp_path / f"b.jsonl{suffix}").write_bytes(compress(plain))
    assert _read(tmp_path / f"b.jsonl{suffix}") == _TEXTS


def test_parquet_is_read(tmp_path):
    pq.write_table(pa.table({"body": _TEXTS}), tmp_path / "c.parquet")
    assert _read(tmp_path / "c.parquet", text_column="body") == _TEXTS


def test_text_files_hold_texts_parted_by_blank_lines(tmp_path):
    (tmp_path / "d.txt").write_text("One\nstill one\n\nTwo\n")
    assert [text.strip() for text in _read(tmp_path / "d.txt")] == ["One\nstill one", "Two"]


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_names(tmp_path):
    for index in (2, 0, 1):
        write_jsonl(tmp_path / f"part-{index}.jsonl", [_TEXTS[index]])
    assert _read(tmp_path) == _TEXTS
    assert _read(tmp_path / "part-*.jsonl") == _TEXTS


def test_installed_documentation_comes_in_a_fixed_order_without_empty_texts():
    first, second = (read_texts(DataConfig(source="installed-documentation")) for _ in range(2))
    heads = [[next(stream) for _ in range(200)] for stream in (first, second)]
    assert heads[0] == heads[1]
    assert all(heads[0])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "missing.jsonl", "no such file"),
        (lambda folder: folder, "holds no .jsonl"),
        (lambda folder: _write(folder / "x.csv", "a,b"), "must all be of one kind"),
        (lambda folder: _write(folder / "x.jsonl", '{"text": "fine"}\n{broken\n'), "cannot be"),
        (lambda folder: _write(folder / "x.jsonl", '{"body": "fine"}\n'), "no text in column 'text'"),
        (lambda folder: _write(folder / "x.jsonl", '{"text": 3}\n'), "no text in column 'text'"),
        (lambda folder: _truncated_gzip(folder / "x.jsonl.gz"), "cannot be"),
    ],
    ids=[
        "missing",
        "empty-folder",
        "unknown-kind",
        "broken-json",
        "other-column",
        "no-string",
        "truncated-gzip",
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_that_names_it(tmp_path, make, expected):
    source = make(tmp_path)
    with pytest.raises(ConfigError, match=expected) as caught:
        _read(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["subset", "validation_split"])
def test_files_have_no_splits_to_ask_for(tmp_path, key):
    source = write_jsonl(tmp_path / "a.jsonl", _TEXTS)
    with pytest.raises(ConfigError, match=f"set data.{key}=null"):
        _read(source, **{key: "validation"})


def _truncated_gzip(path):
    whole = "".join(json.dumps({"text": f"A text of number {number}"}) + "\n" for number in range(2000))
    content = gzip.compress(whole.encode())
    path.write_bytes(content[: len(content) // 2])
    return path


def _write(path, content):
    path.write_text(content)
    return path


def test_a_row_after_good_ones_without_text_is_named_by_its_number(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + json.dumps({"text": None}) + "\n")
    with pytest.raises(ConfigError, match="document 2"):
        _read(path)
