import ctypes
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare import pipeline, readers
from mosaicbert.data.prepare.partition import PartitionRecord, partition_folder
from mosaicbert.data.prepare.pipeline import check_store, prepare, prepare_and_report
from mosaicbert.data.prepare.plan import PreparePlan
from mosaicbert.data.prepare.readers import BlockCache
from mosaicbert.data.prepare.sources import InputFile, list_input_files
from mosaicbert.data.prepare.tokenize import hash_text, split_of
from mosaicbert.data.store import TRAIN, VALIDATION, StoreRecord, TokenStore, open_tokenizer
from tests.data.corpus import (
    all_samples,
    encode,
    files_of,
    jsonl,
    map_here,
    samples_of,
    short_texts,
    texts,
    use_small_shards,
    wait_until_gone,
    write_jsonl,
    write_tokenizer,
)
from tests.recipes import tiny_recipe

_ROOT = Path(__file__).parents[3]
_INPUT_FILE = InputFile(source="text", path="a.jsonl", kind=".jsonl", text_column="text")


def _recipe(folder, sources, tokenizer=None, **data):
    """Make a recipe for folder/store with sources by name, by default with the tokenizer of `corpus.trained`."""
    folder.mkdir(exist_ok=True)
    configs = {name: SourceConfig(path=str(path)) for name, path in sources.items()}
    tokenizer = {"source": tokenizer or write_tokenizer(folder)}
    return tiny_recipe(
        folder, "", data={"sources": configs, "store": str(folder / "store")} | data, tokenizer=tokenizer
    )


def _staging(recipe):
    return recipe.store_folder.with_name(recipe.store_folder.name + ".partial")


def _expected_samples(documents, validation_fraction=0.2):
    """Compute the expected samples of short texts by split, without duplicates."""
    samples = {TRAIN: [], VALIDATION: []}
    for text in dict.fromkeys(documents):
        samples[split_of(_INPUT_FILE, hash_text(text)[0], validation_fraction)].append(encode(text))
    return samples


@pytest.fixture(scope="module")
def module_source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "docs.jsonl")


@pytest.fixture(scope="module")
def recipe(module_source, tmp_path_factory):
    """Recipe with a prepared store."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("runs"), module_source)
    prepare(recipe)
    return recipe


@pytest.fixture(scope="module")
def record(recipe):
    return check_store(recipe)


# --- Content of a store.


def test_every_text_is_tokenized_and_in_exactly_one_split(recipe, record):
    tokenizer = open_tokenizer(recipe.store_folder, record)
    max_tokens = recipe.data.max_text_tokens
    expected = sorted(
        tokenizer.encode(text, add_special_tokens=False).ids[:max_tokens] for text in dict.fromkeys(texts())
    )
    assert sorted(ids for samples in all_samples(recipe.store_folder).values() for ids in samples) == expected


def test_a_store_has_the_texts_of_each_split_in_order(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    documents = short_texts(300)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    assert len(prepare(recipe).splits[TRAIN].shards) > 5
    assert all_samples(recipe.store_folder) == _expected_samples(documents)


def test_the_store_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    documents = short_texts(300)
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    parallel = _recipe(tmp_path / "parallel", {"text": source})
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 1000)
    monkeypatch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", 500)
    prepare(parallel)
    serial = _recipe(tmp_path / "serial", {"text": source}, tokenizer=parallel.tokenizer.source)
    use_small_shards(monkeypatch, shard_tokens=500, block_bytes=1000)
    prepare(serial)
    assert files_of(parallel.store_folder) == files_of(serial.store_folder)


def test_the_validation_fraction_is_approximately_as_requested(record):
    samples = {name: split.samples for name, split in record.splits.items()}
    assert 0.1 < samples[VALIDATION] / sum(samples.values()) < 0.3


def test_the_split_of_a_text_does_not_depend_on_other_texts(tmp_path):
    stores = []
    for name, documents in (("a", short_texts(200)), ("b", [*short_texts(50, 500), *reversed(short_texts(200))])):
        recipe = _recipe(tmp_path / name, {"text": write_jsonl(tmp_path / f"{name}.jsonl", documents)})
        prepare(recipe)
        stores.append({split: set(map(tuple, samples)) for split, samples in all_samples(recipe.store_folder).items()})
    assert stores[0][VALIDATION] < stores[1][VALIDATION]
    assert stores[0][TRAIN] < stores[1][TRAIN]


def test_samples_of_a_source_are_consecutive_and_every_shard_records_its_source(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=400)
    documents = {"b": short_texts(100), "a": short_texts(80, first=200), "c": short_texts(60, first=400)}
    sources = {name: write_jsonl(tmp_path / f"{name}.jsonl", documents[name]) for name in documents}
    recipe = _recipe(tmp_path, sources)
    record = prepare(recipe)
    for split in (TRAIN, VALIDATION):
        expected = {name: _expected_samples(documents[name])[split] for name in documents}
        samples = samples_of(recipe.store_folder, split)
        assert samples == [ids for name in documents for ids in expected[name]]
        first = 0
        for shard in record.splits[split].shards:
            assert all(ids in expected[shard.source] for ids in samples[first : first + shard.samples])
            first += shard.samples


def test_every_document_is_stored_or_counted_as_skipped(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    documents = [*short_texts(100), *short_texts(30), "tiny", "\x00" * 20, "tiny"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents) + b"{\n[]\n{\n")
    sources = {"first": tmp_path / "a.jsonl", "second": write_jsonl(tmp_path / "b.jsonl", short_texts(20, first=90))}
    record = prepare(_recipe(tmp_path, sources, skip_invalid_documents=True, min_characters=5))
    assert record.documents == {"first": 136, "second": 20}
    assert record.skipped_documents == {
        "first": {"duplicate": 30, "too short": 2, "no tokens": 1, "not JSON": 2, "not a JSON object": 1},
        "second": {"duplicate": 10},
    }
    stored: Counter[str] = Counter()
    for split in record.splits.values():
        stored.update(split.samples_by_source())
    for name in sources:
        assert record.documents[name] == stored[name] + sum(record.skipped_documents[name].values())


def test_a_store_records_the_size_of_its_text(tmp_path):
    documents = [text + " ü" for text in short_texts(50)]
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    assert prepare(recipe).text_bytes == {"text": sum(len(text.encode()) for text in documents)}


def test_the_chunks_of_a_store_are_its_whole_texts(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=2000, block_bytes=2000)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl")}, sampling="chunk")
    prepare(recipe)
    for split, samples in all_samples(recipe.store_folder).items():
        split_texts = [
            text for text in dict.fromkeys(texts()) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == split
        ]
        assert [token for ids in samples for token in ids] == [
            token for text in split_texts for token in encode(text, None)
        ]
        assert max(map(len, samples)) <= 30


def test_a_store_with_a_large_vocabulary_has_32_bit_ids(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", short_texts(50))
    recipe = _recipe(tmp_path, {"text": source})
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=2**16 + 64))
    prepare(recipe)
    dataset = datasets.load_from_disk(str(recipe.store_folder / TRAIN))
    assert dataset.features["input_ids"].feature.dtype == "uint32"
    assert dataset["input_ids"][:] == _expected_samples(short_texts(50))[TRAIN]


def test_hugging_face_datasets_reads_a_split_of_several_shards(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(100))})
    prepare(recipe)
    dataset = datasets.load_from_disk(str(recipe.store_folder / TRAIN))
    assert dataset["input_ids"][:] == samples_of(recipe.store_folder, TRAIN)


def test_a_lone_surrogate_in_a_text_is_replaced(tmp_path):
    documents = [f"lone surrogate \ud800 in text {number}" for number in range(40)]
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    prepare(recipe)
    assert all_samples(recipe.store_folder) == _expected_samples([text.replace("\ud800", "?") for text in documents])


def test_the_recorded_entropy_is_that_of_the_validation_tokens(recipe, record):
    tokens = np.concatenate(
        TokenStore(recipe.store_folder, VALIDATION).read(np.arange(record.splits[VALIDATION].samples))
    )
    probabilities = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert record.unigram_entropy == pytest.approx(-(probabilities * np.log(probabilities)).sum())


# --- An existing store.


def test_preparing_again_does_not_change_the_store(recipe, record):
    before = (recipe.store_folder / "store.json").stat().st_mtime_ns
    assert prepare(recipe) == record
    assert (recipe.store_folder / "store.json").stat().st_mtime_ns == before


def test_a_store_prepared_with_different_values_raises_an_error(recipe):
    other = replace(recipe, data=replace(recipe.data, max_seq_len=16))
    with pytest.raises(
        ConfigError, match=r"`data\.max_seq_len` must be 32, the value that .* was prepared with, got 16"
    ):
        check_store(other)


def test_a_store_does_not_depend_on_the_weights_of_its_sources(recipe, record):
    source = replace(recipe.data.sources["text"], weight=3.0)
    assert check_store(replace(recipe, data=replace(recipe.data, sources={"text": source}))) == record


def test_a_changed_tokenizer_file_raises_an_error(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    path = Path(recipe.tokenizer.source)
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"`tokenizer\.source` must be the tokenizer that .* was prepared with"):
        check_store(recipe)


def test_a_vocabulary_larger_than_that_of_the_model_raises_an_error_and_leaves_no_files(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    small = replace(recipe, model=replace(recipe.model, vocab_size=448))
    with pytest.raises(ConfigError, match=r"`model\.vocab_size` must be at least 512, .* Set model\.vocab_size=512"):
        prepare(small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tokenizer.json"]


@pytest.mark.parametrize("tokenizer", ["train", None], ids=["trained", "loaded"])
@pytest.mark.parametrize("documents", [[], ["a single text, which is in one split"]], ids=["empty", "one-text"])
def test_a_corpus_with_an_empty_split_raises_an_error_and_leaves_no_files(tmp_path, documents, tokenizer):
    source = write_jsonl(tmp_path / "docs.jsonl", documents)
    recipe = _recipe(tmp_path / "prepared", {"text": source}, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"data\.sources\.text\.path=.* must have text .*, got none"):
        prepare(recipe)
    assert {path.name for path in recipe.store_folder.parent.iterdir()} <= {"tokenizer.json"}


def test_a_folder_named_train_is_not_loaded_as_a_tokenizer(recipe, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert check_store(recipe) == record


def test_a_store_that_cannot_be_written_raises_an_error(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", short_texts(50))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(_recipe(tmp_path, {"text": source}, store=str(tmp_path / "file" / "store")))


def test_the_report_has_the_skipped_documents_of_every_source(tmp_path, console):
    sources = {name: write_jsonl(tmp_path / f"{name}.jsonl", short_texts(50)) for name in ("first", "second")}
    prepare_and_report(_recipe(tmp_path, sources), console)
    text = console.export_text()
    assert "first: 50 documents, 0.0 MB; skipped: none" in text
    assert "second: 50 documents, 0.0 MB; skipped: 50 duplicate" in text


# --- Invalid input.


def _insert_line(line):
    lines = jsonl(short_texts(60)).splitlines(keepends=True)
    return b"".join([*lines[:40], line + b"\n", *lines[40:]])


def _parquet(values, kind=None):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array(values, kind)}), sink, row_group_size=20)
    return sink.getvalue().to_pybytes()


def _arrow(values, new):
    sink = pa.BufferOutputStream()
    table = pa.table({"text": pa.array(values)})
    with new(sink, table.schema) as writer:
        writer.write_table(table, 20)
    return sink.getvalue().to_pybytes()


_VALID = short_texts(60)
_WITH_NULL = [*_VALID[:40], None, *_VALID[40:]]
_WITH_BYTES = [*[text.encode() for text in _VALID[:40]], b"caf\xe9", *[text.encode() for text in _VALID[40:]]]
_REST = "rest of a corrupted file"
# File name, content, expected error message, expected skipped documents.
_INVALID_FILES = {
    "encoding": ("a.jsonl", _insert_line(b'{"text": "caf\xe9"}'), "line 41: not UTF-8", {"not UTF-8": 1}),
    "half-a-line": ("a.jsonl", _insert_line(b'{"text": "ha'), "line 41: not JSON", {"not JSON": 1}),
    "list": ("a.jsonl", _insert_line(b'["text"]'), "line 41: not a JSON object, got list", {"not a JSON object": 1}),
    "column": ("a.jsonl", _insert_line(b'{"body": "b"}'), r"line 41: no text .*columns \['body'\]", {"no text": 1}),
    "null": ("a.jsonl", _insert_line(b'{"text": null}'), "line 41: no text in column 'text'", {"no text": 1}),
    "number": ("a.jsonl", _insert_line(b'{"text": 3}'), "line 41: no text in column 'text'", {"no text": 1}),
    "gzip-line": ("a.jsonl.gz", gzip.compress(_insert_line(b"{")), "line 41: not JSON", {"not JSON": 1}),
    "paragraph": ("a.txt", "\n\n".join(_VALID).encode() + b"\n\ncaf\xe9\n", "line 121: not UTF-8", {"not UTF-8": 1}),
    "gzip-end": (
        "a.jsonl.gz",
        gzip.compress(jsonl(_VALID))[:-30],
        r"gz is truncated after line \d+",
        {_REST: 1},
    ),
    "zstd-end": (
        "a.jsonl.zst",
        zstandard.compress(jsonl(_VALID))[:-30],
        r"zst is truncated after line \d+",
        {_REST: 1},
    ),
    "no-gzip": ("a.jsonl.gz", b"no gzip", r"gz is corrupted after line 0 \(", {_REST: 1}),
    "parquet-null": ("a.parquet", _parquet(_WITH_NULL), "row 41: no text", {"no text": 1}),
    "parquet-bytes": ("a.parquet", _parquet(_WITH_BYTES, pa.binary()), "row 41: not UTF-8", {"not UTF-8": 1}),
    "no-parquet": ("a.parquet", b"no parquet", r"parquet is corrupted after row 0 \(", {_REST: 1}),
    "arrow-null": ("a.arrow", _arrow(_WITH_NULL, pa.ipc.new_file), "row 41: no text", {"no text": 1}),
    "stream-null": ("a.arrow", _arrow(_WITH_NULL, pa.ipc.new_stream), "row 41: no text", {"no text": 1}),
    "stream-end": (
        "a.arrow",
        _arrow(_VALID, pa.ipc.new_stream)[:-400],
        r"arrow is corrupted after row 40 \(",
        {_REST: 1},
    ),
    "no-arrow": ("a.arrow", b"no arrow", r"arrow is corrupted after row 0 \(", {_REST: 1}),
}


@pytest.fixture(params=_INVALID_FILES)
def invalid_source(request, tmp_path):
    """Recipe with a valid and an invalid source, expected error message, and expected skipped documents."""
    name, content, message, skipped_documents = _INVALID_FILES[request.param]
    (tmp_path / name).write_bytes(content)
    valid = write_jsonl(tmp_path / "valid.jsonl", short_texts(60, first=1000))
    return _recipe(tmp_path, {"valid": valid, "invalid": tmp_path / name}), message, skipped_documents


def test_invalid_input_raises_an_error_of_one_line_with_file_position_and_remedy(invalid_source, monkeypatch):
    recipe, message, _ = invalid_source
    use_small_shards(monkeypatch)
    path = recipe.data.sources["invalid"].path
    with pytest.raises(ConfigError, match=rf"{message}.*data\.skip_invalid_documents=true") as caught:
        prepare(recipe)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_invalid_input_can_be_skipped_and_is_counted(invalid_source, monkeypatch):
    recipe, _, skipped_documents = invalid_source
    use_small_shards(monkeypatch)
    record = prepare(replace(recipe, data=replace(recipe.data, skip_invalid_documents=True)))
    assert record.skipped_documents == {"valid": {}, "invalid": skipped_documents}
    if _REST not in skipped_documents:
        assert all_samples(recipe.store_folder) == _expected_samples([*short_texts(60, first=1000), *_VALID])


def _finished_shards(recipe):
    """Return the shards in progress.json, with the inode and modification time of each file."""
    folder = partition_folder(_staging(recipe), 0, 1)
    record = PartitionRecord.read(folder)
    files = [(split, shard.file) for split, shards in record.shards.items() for shard in shards]
    return {file: ((folder / file[1]).stat().st_ino, (folder / file[1]).stat().st_mtime_ns) for file in files}


def _stats(recipe, split):
    return {(path.stat().st_ino, path.stat().st_mtime_ns) for path in (recipe.store_folder / split).glob("data-*")}


@pytest.mark.parametrize("remedy", ["correct", "skip"])
def test_after_a_correction_or_skip_the_run_continues_after_the_finished_shards(tmp_path, monkeypatch, remedy):
    use_small_shards(monkeypatch)
    path = tmp_path / "a.jsonl"
    path.write_bytes(_insert_line(b"{half a line"))
    recipe = _recipe(tmp_path, {"text": path})
    with pytest.raises(ConfigError, match="line 41"):
        prepare(recipe)
    finished = _finished_shards(recipe)
    assert len(finished) > 5
    if remedy == "correct":
        path.write_bytes(jsonl(_VALID))
    prepare(replace(recipe, data=replace(recipe.data, skip_invalid_documents=remedy == "skip")))
    for (split, _), stat in finished.items():
        assert stat in _stats(recipe, split)
    assert all_samples(recipe.store_folder) == _expected_samples(_VALID)


def test_a_corrected_compressed_file_is_read_from_the_last_finished_shard(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, block_bytes=2000)
    monkeypatch.setattr("mosaicbert.data.prepare.readers._CHUNK_BYTES", 500)
    path = tmp_path / "a.jsonl.gz"
    documents = short_texts(1000)
    path.write_bytes(gzip.compress(jsonl(documents))[:-1000])
    recipe = _recipe(tmp_path, {"text": path})
    with pytest.raises(ConfigError, match=r"truncated after line .* \(unexpected end of file\)"):
        prepare(recipe)
    finished = _finished_shards(recipe)
    assert finished
    path.write_bytes(gzip.compress(jsonl(documents)))
    prepare(recipe)
    for (split, _), stat in finished.items():
        assert stat in _stats(recipe, split)
    assert all_samples(recipe.store_folder) == _expected_samples(documents)


def test_the_rest_of_a_corrupted_file_is_counted_once_in_an_interrupted_run(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=0)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(short_texts(100)))[:-30])
    pq.write_table(pa.table({"other": ["x"]}), tmp_path / "b.parquet")
    sources = {"corrupted": tmp_path / "a.jsonl.gz", "later": tmp_path / "b.parquet"}
    recipe = _recipe(tmp_path, sources, skip_invalid_documents=True)
    with pytest.raises(ConfigError, match=r"must be one of the columns \['other'\] of .*b\.parquet, got 'text'"):
        prepare(recipe)
    (tmp_path / "b.parquet").write_bytes(_parquet(_VALID))
    assert prepare(recipe).skipped_documents["corrupted"] == {_REST: 1}


def test_an_invalid_line_before_the_first_shard_leaves_no_files(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(_insert_line(b"{"))
    recipe = _recipe(tmp_path / "prepared", {"text": path}, tokenizer="train")
    with pytest.raises(ConfigError, match="line 41"):
        prepare(recipe)
    assert list((tmp_path / "prepared").iterdir()) == []


# --- Tokenizer training on several sources.


@pytest.fixture
def mixture(tmp_path):
    """Recipe with three weighted sources of equal size."""
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", short_texts(400, first))
        for name, first in zip("abc", (0, 400, 800), strict=True)
    ]
    recipe = _recipe(tmp_path / "prepared", dict(zip("abc", paths, strict=True)), tokenizer="train")
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    sources = {name: replace(source, weight=weights[name]) for name, source in recipe.data.sources.items()}
    return replace(recipe, data=replace(recipe.data, sources=sources))


def _select(recipe):
    """Select the texts to train a tokenizer on."""
    plan = PreparePlan.resolve(recipe)
    return pipeline._select_training_texts(plan, list_input_files(plan.sources), BlockCache(0))


def test_tokenizer_texts_are_proportional_to_the_source_weights(mixture, monkeypatch):
    monkeypatch.setattr(pipeline, "TOKENIZER_CHARACTERS", 8000)
    selected = _select(mixture)
    characters: Counter[str] = Counter()
    for text in selected:
        characters["abc"[int(text.split()[1]) // 400]] += len(text)
    assert {name: round(count / 1000) for name, count in characters.items()} == {"a": 1, "b": 2, "c": 5}


def test_sources_without_weights_have_equal_tokenizer_texts(mixture, monkeypatch):
    monkeypatch.setattr(pipeline, "TOKENIZER_CHARACTERS", 6000)
    sources = {name: replace(source, weight=None) for name, source in mixture.data.sources.items()}
    mixture = replace(mixture, data=replace(mixture.data, sources=sources))
    selected = _select(mixture)
    characters: Counter[str] = Counter()
    for text in selected:
        characters["abc"[int(text.split()[1]) // 400]] += len(text)
    assert {name: round(count / 1000) for name, count in characters.items()} == {"a": 2, "b": 2, "c": 2}


def test_tokenizer_texts_exclude_validation_texts_and_duplicates(mixture):
    selected = _select(mixture)
    assert selected == [text for text in short_texts(1200) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == TRAIN]


def test_tokenizer_texts_exclude_duplicates_across_sources(mixture):
    sources = {
        name: replace(source, path=mixture.data.sources["a"].path) for name, source in mixture.data.sources.items()
    }
    mixture = replace(mixture, data=replace(mixture.data, sources=sources))
    selected = _select(mixture)
    assert selected == [text for text in short_texts(400) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == TRAIN]


def test_the_same_sources_produce_the_same_tokenizer(mixture, tmp_path):
    stores = []
    for name in ("one", "other"):
        recipe = replace(mixture, data=replace(mixture.data, store=str(tmp_path / name)))
        prepare(recipe)
        stores.append(files_of(recipe.store_folder))
    assert stores[0] == stores[1]


@pytest.mark.parametrize("max_cached_bytes", [0, 5_000])
def test_the_store_does_not_depend_on_the_size_of_the_block_cache(mixture, tmp_path, monkeypatch, max_cached_bytes):
    use_small_shards(monkeypatch, shard_tokens=2000)
    monkeypatch.setattr(pipeline, "TOKENIZER_CHARACTERS", 15_000)  # one whole file, and a part of each other file
    prepare(mixture)
    monkeypatch.setattr(pipeline, "_MAX_CACHED_BYTES", max_cached_bytes)
    other = replace(mixture, data=replace(mixture.data, store=str(tmp_path / "other")))
    prepare(other)
    assert files_of(other.store_folder) == files_of(mixture.store_folder)


def test_a_file_read_to_train_the_tokenizer_is_not_read_again(mixture, monkeypatch):
    monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
    read_blocks, paths = readers.read_blocks, []

    def read_and_count(input_file, start):
        paths.append(input_file.path)
        return read_blocks(input_file, start)

    monkeypatch.setattr(readers, "read_blocks", read_and_count)
    prepare(mixture)
    assert paths == [source.path for source in mixture.data.sources.values()]


def test_an_interrupted_run_trains_its_tokenizer_only_once(mixture, monkeypatch):
    use_small_shards(monkeypatch)
    monkeypatch.setattr(pipeline, "TOKENIZER_CHARACTERS", 1000)
    path = Path(mixture.data.sources["c"].path)
    path.write_bytes(path.read_bytes() + b"{\n")
    stats = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="line 401"):
            prepare(mixture)
        stat = (_staging(mixture) / "tokenizer.json").stat()
        stats.append((stat.st_ino, stat.st_mtime_ns))
    assert stats[0] == stats[1]


# --- A full disk.


@pytest.mark.parametrize(
    "file",
    [
        "prepared_from.json",
        "tokenizer.json",
        "partitions/00000-of-00001/train-00000.arrow",
        "partitions/00000-of-00001/validation-00000.documents",
        "partitions/00000-of-00001/progress.json",
        "train/data-00000.arrow",
        "train/dataset_info.json",
        "validation/state.json",
        "store.json",
    ],
)
def test_a_full_disk_raises_an_error_of_one_line_and_the_next_run_finishes(tmp_path, monkeypatch, file):
    use_small_shards(monkeypatch)
    source = write_jsonl(tmp_path / "a.jsonl", [*short_texts(4), *short_texts(60)])
    recipe = _recipe(tmp_path / "prepared", {"text": source}, tokenizer="train")
    whole = _recipe(tmp_path / "whole", {"text": source}, tokenizer="train")
    prepare(whole)
    path = _staging(recipe) / file
    path.parent.mkdir(parents=True)
    full = path.with_name(path.name + ".partial")
    full.symlink_to("/dev/full")
    with pytest.raises(
        ConfigError, match=rf"{path}.*cannot be written \(No space left on device\).* to continue"
    ) as caught:
        prepare(recipe)
    assert "\n" not in str(caught.value)
    full.unlink(missing_ok=True)
    prepare(recipe)
    assert files_of(recipe.store_folder) == files_of(whole.store_folder)


@pytest.fixture
def small_disk(tmp_path):
    """Folder on a file system of 128 KiB, and a function that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(flags, options):
        return libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options)

    if mount(0, b"size=128k") != 0:
        pytest.skip(f"mount is not permitted ({os.strerror(ctypes.get_errno())})")
    try:
        yield folder, lambda: mount(32, b"size=16m")  # MS_REMOUNT
    finally:
        libc.umount2(str(folder).encode(), 2)  # MNT_DETACH


def test_a_run_continues_after_a_full_disk_is_enlarged(small_disk, tmp_path, monkeypatch):
    folder, enlarge = small_disk
    use_small_shards(monkeypatch, shard_tokens=3000, block_bytes=3000)
    source = write_jsonl(tmp_path / "a.jsonl", short_texts(3000))
    whole = _recipe(tmp_path / "whole", {"text": source})
    prepare(whole)
    recipe = _recipe(tmp_path, {"text": source}, tokenizer=whole.tokenizer.source, store=str(folder / "store"))
    with pytest.raises(ConfigError, match=r"disk/store.*cannot be written \(No space left on device\)") as caught:
        prepare(recipe)
    assert "\n" not in str(caught.value)
    finished = _finished_shards(recipe)
    assert len(finished) > 2
    enlarge()
    prepare(recipe)
    assert files_of(recipe.store_folder) == files_of(whole.store_folder)


# --- A killed run.


def _kill_recipe(folder):
    """Make a recipe with two sources, duplicates, a shard of duplicates only, and tokenizer training."""
    folder.mkdir()
    documents = {"a/0": short_texts(24), "a/1": [short_texts(1)[0]] * 24, "b/0": short_texts(30, first=12)}
    for name, file_texts in documents.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, file_texts)
    return _recipe(folder, {name: folder / name for name in "ab"}, tokenizer="train", num_partitions=2)


def _in_child(function):
    """Run a function in a fork of this process, and return the signal that killed it, or 0."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _kill_at(number, timing):
    """Kill this process before or after its number-th rename or deletion of a file or folder."""
    calls = itertools.count(1)

    def wrap(change):
        def changed(path, *args, **keys):
            now = next(calls) == number
            if now and timing == "before":
                if str(path).endswith(".partial") and os.path.isfile(path):
                    os.truncate(path, os.path.getsize(path) // 2)  # simulates a kill during the write
                os.kill(os.getpid(), signal.SIGKILL)
            change(path, *args, **keys)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        return changed

    for name in ("rename", "replace", "unlink", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))


def kill_everywhere(folder, timing):
    """Kill a run at each file change in turn, and let a second run finish it. Called in a separate process.

    Print the number of kills, and the changes after which the store differs from that of an uninterrupted run.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    recipe = _kill_recipe(Path(folder))
    different = []
    with pytest.MonkeyPatch.context() as patch:
        use_small_shards(patch, shard_tokens=100, block_bytes=300)

        def run(name):
            prepare(replace(recipe, data=replace(recipe.data, store=str(Path(folder, name)))))

        def run_until(number):
            _kill_at(number, timing)
            run(str(number))

        _in_child(lambda: run("whole"))
        whole = files_of(Path(folder, "whole"))
        for number in itertools.count(1):
            if not _in_child(lambda: run_until(number)):  # noqa: B023
                break
            _in_child(lambda: run(str(number)))  # noqa: B023
            if files_of(Path(folder, str(number))) != whole or Path(folder, f"{number}.partial").exists():
                different.append(number)
    print(json.dumps({"num_kills": number - 1, "different": different}))


def _run_python(code, **keys):
    return subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, text=True, **keys)


@pytest.mark.parametrize("timing", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_a_run_killed_at_any_file_change_produces_the_same_bytes(tmp_path, timing):
    code = f"from tests.data.prepare.test_pipeline import *; kill_everywhere({str(tmp_path / 'kill')!r}, {timing!r})"
    process = _run_python(code, stdout=subprocess.PIPE)
    result = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    assert result["different"] == []
    assert result["num_kills"] > 60


_WITH_PROCESSES = """
from tests.data.prepare.test_pipeline import prepare_with_processes
if __name__ == "__main__":
    prepare_with_processes({folder!r}, {name!r})
"""


def prepare_with_processes(folder, name):
    """Prepare a store of a hundred blocks with one shard each. Called in a process that is killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 1000)
        patch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", 1)
        prepare(_recipe(Path(folder), {"text": Path(folder, "a.jsonl")}, store=str(Path(folder, name))))


def test_a_run_killed_with_its_workers_leaves_no_process_and_produces_the_same_bytes(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", short_texts(2000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
        patch.setattr("os.fsync", lambda _: None)
        prepare_with_processes(str(tmp_path), "whole")
    progress = tmp_path / "killed.partial" / "partitions" / "00000-of-00001" / "progress.json"
    for shards in (1, 20):
        process = _run_python(_WITH_PROCESSES.format(folder=str(tmp_path), name="killed"))
        deadline = time.monotonic() + 60
        while not progress.exists() or json.loads(progress.read_text())["num_shards"] < shards:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert len(children) > 1
        assert wait_until_gone(children)
    killed_at = json.loads(progress.read_text())["num_shards"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        prepare_with_processes(str(tmp_path), "killed")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert 20 <= killed_at < len(StoreRecord.read(tmp_path / "whole").splits[TRAIN].shards)
    assert not (tmp_path / "killed.partial").exists()


def test_an_unpublished_store_of_a_different_recipe_raises_an_error(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    recipe.store_folder.rename(_staging(recipe))  # state after a kill just before the final rename
    finished = files_of(_staging(recipe))
    with pytest.raises(
        ConfigError, match=r"`data\.max_seq_len` must be 32, the value that .* was prepared with, got 16"
    ):
        prepare(replace(recipe, data=replace(recipe.data, max_seq_len=16)))
    prepare(recipe)
    assert files_of(recipe.store_folder) == finished


def test_files_added_after_the_preparation_print_a_note(tmp_path, console):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe, console)
    prepare(recipe, console)
    assert "Note" not in console.export_text()
    write_jsonl(tmp_path / "a.jsonl", short_texts(60))
    prepare(recipe, console)
    assert "a.jsonl has 1 files of" in console.export_text()
    (tmp_path / "a.jsonl").unlink()
    prepare(recipe, console)
    assert "Note" not in console.export_text()


def test_a_partition_of_a_finished_store_creates_no_staging_directory(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    with pytest.raises(ConfigError, match="not supported with the finished store"):
        pipeline.prepare_single_partition(recipe, 0)
    assert not _staging(recipe).exists()
