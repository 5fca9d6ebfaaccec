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
from mosaicbert.data.prepare import pipeline as prepare_module
from mosaicbert.data.prepare.partition import PartitionRecord, partition_folder
from mosaicbert.data.prepare.pipeline import check_store, prepare, prepare_and_report
from mosaicbert.data.prepare.plan import PreparePlan
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
    """A recipe for folder/store of some sources by name, with the tokenizer of `corpus.trained`."""
    folder.mkdir(exist_ok=True)
    configs = {name: SourceConfig(path=str(path)) for name, path in sources.items()}
    tokenizer = {"source": tokenizer or write_tokenizer(folder)}
    return tiny_recipe(
        folder, "", data={"sources": configs, "store": str(folder / "store")} | data, tokenizer=tokenizer
    )


def _partial(recipe):
    return recipe.store_folder.with_name(recipe.store_folder.name + ".partial")


def _split(documents, share=0.2):
    """The definition of a store of short texts: each in the split of its hash, the first of equal ones."""
    samples = {TRAIN: [], VALIDATION: []}
    for text in dict.fromkeys(documents):
        samples[split_of(_INPUT_FILE, hash_text(text)[0], share)].append(encode(text))
    return samples


@pytest.fixture(scope="module")
def module_source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "docs.jsonl")


@pytest.fixture(scope="module")
def recipe(module_source, tmp_path_factory):
    """A recipe whose store is made."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("runs"), module_source)
    prepare(recipe)
    return recipe


@pytest.fixture(scope="module")
def record(recipe):
    return check_store(recipe)


# --- What is in a store.


def test_every_text_is_in_exactly_one_split_and_tokenised_as_the_tokenizer_does(recipe, record):
    tokenizer = open_tokenizer(recipe.store_folder, record)
    longest = recipe.data.max_text_tokens
    expected = sorted(tokenizer.encode(text, add_special_tokens=False).ids[:longest] for text in dict.fromkeys(texts()))
    assert sorted(ids for samples in all_samples(recipe.store_folder).values() for ids in samples) == expected


def test_a_store_has_the_texts_of_each_split_in_their_order(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    documents = short_texts(300)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    assert len(prepare(recipe).splits[TRAIN].shards) > 5
    assert all_samples(recipe.store_folder) == _split(documents)


def test_processes_make_the_same_store_as_this_one_does(tmp_path, monkeypatch):
    documents = short_texts(300)
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    shared = _recipe(tmp_path / "shared", {"text": source})
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 1000)
    monkeypatch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", 500)
    prepare(shared)
    alone = _recipe(tmp_path / "alone", {"text": source}, tokenizer=shared.tokenizer.source)
    use_small_shards(monkeypatch, shard_tokens=500, block_bytes=1000)
    prepare(alone)
    assert files_of(shared.store_folder) == files_of(alone.store_folder)


def test_the_held_out_share_is_about_what_was_asked(record):
    samples = {name: split.samples for name, split in record.splits.items()}
    assert 0.1 < samples[VALIDATION] / sum(samples.values()) < 0.3


def test_a_text_is_in_the_same_split_whatever_stands_around_it(tmp_path):
    stores = []
    for name, documents in (("a", short_texts(200)), ("b", [*short_texts(50, 500), *reversed(short_texts(200))])):
        recipe = _recipe(tmp_path / name, {"text": write_jsonl(tmp_path / f"{name}.jsonl", documents)})
        prepare(recipe)
        stores.append({split: set(map(tuple, samples)) for split, samples in all_samples(recipe.store_folder).items()})
    assert stores[0][VALIDATION] < stores[1][VALIDATION]
    assert stores[0][TRAIN] < stores[1][TRAIN]


def test_samples_of_a_source_stand_together_and_every_shard_names_its_source(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=400)
    documents = {"b": short_texts(100), "a": short_texts(80, first=200), "c": short_texts(60, first=400)}
    sources = {name: write_jsonl(tmp_path / f"{name}.jsonl", documents[name]) for name in documents}
    recipe = _recipe(tmp_path, sources)
    record = prepare(recipe)
    for split in (TRAIN, VALIDATION):
        expected = {name: _split(documents[name])[split] for name in documents}
        samples = samples_of(recipe.store_folder, split)
        assert samples == [ids for name in documents for ids in expected[name]]
        first = 0
        for shard in record.splits[split].shards:
            assert all(ids in expected[shard.source] for ids in samples[first : first + shard.samples])
            first += shard.samples


def test_every_document_is_stored_or_counted_among_those_left_out(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    documents = [*short_texts(100), *short_texts(30), "tiny", "\x00" * 20, "tiny"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(documents) + b"{\n[]\n{\n")
    sources = {"first": tmp_path / "a.jsonl", "second": write_jsonl(tmp_path / "b.jsonl", short_texts(20, first=90))}
    record = prepare(_recipe(tmp_path, sources, skip_invalid_documents=True, min_characters=5))
    assert record.documents == {"first": 136, "second": 20}
    assert record.skipped_documents == {
        "first": {"duplicate": 30, "too short": 2, "without a token": 1, "not JSON": 2, "no JSON object": 1},
        "second": {"duplicate": 10},
    }
    stored: Counter[str] = Counter()
    for split in record.splits.values():
        stored.update(split.samples_by_source())
    for name in sources:
        assert record.documents[name] == stored[name] + sum(record.skipped_documents[name].values())


def test_a_store_says_how_many_bytes_of_text_it_was_made_from(tmp_path):
    documents = [text + " ü" for text in short_texts(50)]
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    assert prepare(recipe).text_bytes == {"text": sum(len(text.encode()) for text in documents)}


def test_chunks_of_a_store_are_together_its_texts(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=2000, block_bytes=2000)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl")}, sampling="chunk")
    prepare(recipe)
    for split, samples in all_samples(recipe.store_folder).items():
        held = [text for text in dict.fromkeys(texts()) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == split]
        assert [token for ids in samples for token in ids] == [token for text in held for token in encode(text, None)]
        assert max(map(len, samples)) <= 30


def test_a_store_of_a_large_vocabulary_has_wider_ids(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", short_texts(50))
    recipe = _recipe(tmp_path, {"text": source})
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=2**16 + 64))
    prepare(recipe)
    opened = datasets.load_from_disk(str(recipe.store_folder / TRAIN))
    assert opened.features["input_ids"].feature.dtype == "uint32"
    assert opened["input_ids"][:] == _split(short_texts(50))[TRAIN]


def test_hugging_face_datasets_opens_a_split_of_several_shards(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(100))})
    prepare(recipe)
    opened = datasets.load_from_disk(str(recipe.store_folder / TRAIN))
    assert opened["input_ids"][:] == samples_of(recipe.store_folder, TRAIN)


def test_text_with_half_a_character_is_mended(tmp_path):
    documents = [f"half a pair \ud800 in text {number}" for number in range(40)]
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", documents)})
    prepare(recipe)
    assert all_samples(recipe.store_folder) == _split([text.replace("\ud800", "?") for text in documents])


def test_the_recorded_entropy_is_that_of_the_held_out_tokens(recipe, record):
    tokens = np.concatenate(
        TokenStore(recipe.store_folder, VALIDATION).read(np.arange(record.splits[VALIDATION].samples))
    )
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert record.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())


# --- A store that is there.


def test_preparing_again_finds_the_store_made(recipe, record):
    before = (recipe.store_folder / "store.json").stat().st_mtime_ns
    assert prepare(recipe) == record
    assert (recipe.store_folder / "store.json").stat().st_mtime_ns == before


def test_a_store_made_from_something_else_is_refused(recipe):
    other = replace(recipe, data=replace(recipe.data, max_seq_len=16))
    with pytest.raises(ConfigError, match=r"prepared with data\.max_seq_len=32, the recipe says 16"):
        check_store(other)


def test_another_weight_of_a_source_needs_no_other_store(recipe, record):
    source = replace(recipe.data.sources["text"], weight=3.0)
    assert check_store(replace(recipe, data=replace(recipe.data, sources={"text": source}))) == record


def test_a_tokenizer_file_that_changed_since_is_refused(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    path = Path(recipe.tokenizer.source)
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"another tokenizer than tokenizer\.source"):
        check_store(recipe)


def test_a_vocabulary_larger_than_the_models_is_refused_before_anything_is_written(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    small = replace(recipe, model=replace(recipe.model, vocab_size=448))
    with pytest.raises(ConfigError, match=r"smaller than the 512 entries .* set model\.vocab_size=512"):
        prepare(small)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "tokenizer.json"]


@pytest.mark.parametrize("tokenizer", ["train", None], ids=["trained", "loaded"])
@pytest.mark.parametrize("documents", [[], ["only one text, which is in one split"]], ids=["empty", "one-text"])
def test_a_corpus_with_an_empty_split_is_refused_and_leaves_nothing(tmp_path, documents, tokenizer):
    source = write_jsonl(tmp_path / "docs.jsonl", documents)
    recipe = _recipe(tmp_path / "prepared", {"text": source}, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"data\.sources\.text\.path=.*no text"):
        prepare(recipe)
    assert {path.name for path in recipe.store_folder.parent.iterdir()} <= {"tokenizer.json"}


def test_a_folder_named_train_is_not_taken_for_a_tokenizer(recipe, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert check_store(recipe) == record


def test_a_store_that_cannot_be_written_is_refused(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", short_texts(50))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(_recipe(tmp_path, {"text": source}, store=str(tmp_path / "file" / "store")))


def test_the_report_says_what_became_of_the_documents_of_every_source(tmp_path, console):
    sources = {name: write_jsonl(tmp_path / f"{name}.jsonl", short_texts(50)) for name in ("first", "second")}
    prepare_and_report(_recipe(tmp_path, sources), console)
    text = console.export_text()
    assert "first: 50 documents, 0.0 MB; left out: nothing" in text
    assert "second: 50 documents, 0.0 MB; left out: 50 duplicate" in text


# --- Input that cannot be read.


def _with_line(line):
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
_REST = "rest of a damaged file"
# Name, content, what is said of it, and what is left out of it.
_INVALID = {
    "encoding": ("a.jsonl", _with_line(b'{"text": "caf\xe9"}'), "line 41: not UTF-8", {"not UTF-8": 1}),
    "half-a-line": ("a.jsonl", _with_line(b'{"text": "ha'), "line 41: not JSON", {"not JSON": 1}),
    "list": ("a.jsonl", _with_line(b'["text"]'), "line 41: no JSON object but list", {"no JSON object": 1}),
    "column": ("a.jsonl", _with_line(b'{"body": "b"}'), r"line 41: no text .*only \['body'\]", {"no text": 1}),
    "null": ("a.jsonl", _with_line(b'{"text": null}'), "line 41: no text in column 'text'", {"no text": 1}),
    "number": ("a.jsonl", _with_line(b'{"text": 3}'), "line 41: no text in column 'text'", {"no text": 1}),
    "gzip-line": ("a.jsonl.gz", gzip.compress(_with_line(b"{")), "line 41: not JSON", {"not JSON": 1}),
    "paragraph": ("a.txt", "\n\n".join(_VALID).encode() + b"\n\ncaf\xe9\n", "line 121: not UTF-8", {"not UTF-8": 1}),
    "gzip-end": ("a.jsonl.gz", gzip.compress(jsonl(_VALID))[:-30], r"gz: ends too early, behind line \d+", {_REST: 1}),
    "zstd-end": (
        "a.jsonl.zst",
        zstandard.compress(jsonl(_VALID))[:-30],
        r"zst: ends too early, behind line \d+",
        {_REST: 1},
    ),
    "no-gzip": ("a.jsonl.gz", b"no gzip", r"gz: damaged behind line 0 \(", {_REST: 1}),
    "parquet-null": ("a.parquet", _parquet(_WITH_NULL), "row 41: no text", {"no text": 1}),
    "parquet-bytes": ("a.parquet", _parquet(_WITH_BYTES, pa.binary()), "row 41: not UTF-8", {"not UTF-8": 1}),
    "no-parquet": ("a.parquet", b"no parquet", r"parquet: damaged behind row 0 \(", {_REST: 1}),
    "arrow-null": ("a.arrow", _arrow(_WITH_NULL, pa.ipc.new_file), "row 41: no text", {"no text": 1}),
    "stream-null": ("a.arrow", _arrow(_WITH_NULL, pa.ipc.new_stream), "row 41: no text", {"no text": 1}),
    "stream-end": (
        "a.arrow",
        _arrow(_VALID, pa.ipc.new_stream)[:-400],
        r"arrow: damaged behind row 40 \(",
        {_REST: 1},
    ),
    "no-arrow": ("a.arrow", b"no arrow", r"arrow: damaged behind row 0 \(", {_REST: 1}),
}


@pytest.fixture(params=_INVALID)
def bad(request, tmp_path):
    """A good source before a bad one."""
    name, content, said, left_out = _INVALID[request.param]
    (tmp_path / name).write_bytes(content)
    good = write_jsonl(tmp_path / "good.jsonl", short_texts(60, first=1000))
    return _recipe(tmp_path, {"good": good, "bad": tmp_path / name}), said, left_out


def test_bad_input_is_one_line_that_names_file_and_place_and_says_how_to_go_on(bad, monkeypatch):
    recipe, said, _ = bad
    use_small_shards(monkeypatch)
    path = recipe.data.sources["bad"].path
    with pytest.raises(ConfigError, match=rf"{said}.*data\.skip_invalid_documents=true") as caught:
        prepare(recipe)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_bad_input_can_be_left_out_and_is_counted(bad, monkeypatch):
    recipe, _, left_out = bad
    use_small_shards(monkeypatch)
    record = prepare(replace(recipe, data=replace(recipe.data, skip_invalid_documents=True)))
    assert record.skipped_documents == {"good": {}, "bad": left_out}
    if _REST not in left_out:
        assert all_samples(recipe.store_folder) == _split([*short_texts(60, first=1000), *_VALID])


def _finished_shards(recipe):
    """The shards that progress.json names, and what tells a file that was rewritten."""
    folder = partition_folder(_partial(recipe), 0, 1)
    record = PartitionRecord.read(folder)
    files = [(split, shard.file) for split, shards in record.shards.items() for shard in shards]
    return {file: ((folder / file[1]).stat().st_ino, (folder / file[1]).stat().st_mtime_ns) for file in files}


def _stats(recipe, split):
    return {(path.stat().st_ino, path.stat().st_mtime_ns) for path in (recipe.store_folder / split).glob("data-*")}


@pytest.mark.parametrize("remedy", ["mend", "skip"])
def test_a_remedy_for_a_bad_line_continues_behind_the_finished_shards(tmp_path, monkeypatch, remedy):
    use_small_shards(monkeypatch)
    path = tmp_path / "a.jsonl"
    path.write_bytes(_with_line(b"{half a line"))
    recipe = _recipe(tmp_path, {"text": path})
    with pytest.raises(ConfigError, match="line 41"):
        prepare(recipe)
    finished = _finished_shards(recipe)
    assert len(finished) > 5
    if remedy == "mend":
        path.write_bytes(jsonl(_VALID))
    prepare(replace(recipe, data=replace(recipe.data, skip_invalid_documents=remedy == "skip")))
    for (split, _), stat in finished.items():
        assert stat in _stats(recipe, split)
    assert all_samples(recipe.store_folder) == _split(_VALID)


def test_a_mended_archive_is_read_on_behind_the_finished_shards(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, block_bytes=2000)
    monkeypatch.setattr("mosaicbert.data.prepare.readers._CHUNK_BYTES", 500)
    path = tmp_path / "a.jsonl.gz"
    documents = short_texts(1000)
    path.write_bytes(gzip.compress(jsonl(documents))[:-1000])
    recipe = _recipe(tmp_path, {"text": path})
    with pytest.raises(ConfigError, match="ends too early, behind line"):
        prepare(recipe)
    finished = _finished_shards(recipe)
    assert finished
    path.write_bytes(gzip.compress(jsonl(documents)))
    prepare(recipe)
    for (split, _), stat in finished.items():
        assert stat in _stats(recipe, split)
    assert all_samples(recipe.store_folder) == _split(documents)


def test_the_rest_of_a_damaged_file_is_counted_once_by_a_run_that_was_interrupted_behind_it(tmp_path, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=0)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(short_texts(100)))[:-30])
    pq.write_table(pa.table({"other": ["x"]}), tmp_path / "b.parquet")
    sources = {"damaged": tmp_path / "a.jsonl.gz", "later": tmp_path / "b.parquet"}
    recipe = _recipe(tmp_path, sources, skip_invalid_documents=True)
    with pytest.raises(ConfigError, match=r"b\.parquet: no column 'text'"):
        prepare(recipe)
    (tmp_path / "b.parquet").write_bytes(_parquet(_VALID))
    assert prepare(recipe).skipped_documents["damaged"] == {_REST: 1}


def test_a_bad_line_before_the_first_shard_leaves_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(_with_line(b"{"))
    recipe = _recipe(tmp_path / "prepared", {"text": path}, tokenizer="train")
    with pytest.raises(ConfigError, match="line 41"):
        prepare(recipe)
    assert list((tmp_path / "prepared").iterdir()) == []


# --- A tokenizer trained on several sources.


@pytest.fixture
def mixture(tmp_path):
    """Three sources of equal size."""
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", short_texts(400, first))
        for name, first in zip("abc", (0, 400, 800), strict=True)
    ]
    recipe = _recipe(tmp_path / "prepared", dict(zip("abc", paths, strict=True)), tokenizer="train")
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    sources = {name: replace(source, weight=weights[name]) for name, source in recipe.data.sources.items()}
    return replace(recipe, data=replace(recipe.data, sources=sources))


def test_each_source_gives_the_tokenizer_as_many_characters_as_its_weight_says(mixture, monkeypatch):
    monkeypatch.setattr(prepare_module, "TOKENIZER_CHARACTERS", 8000)
    found = prepare_module._select_training_texts(PreparePlan.resolve(mixture), list_input_files(mixture.data.sources))
    characters: Counter[str] = Counter()
    for text in found:
        characters["abc"[int(text.split()[1]) // 400]] += len(text)
    assert {name: round(count / 1000) for name, count in characters.items()} == {"a": 1, "b": 2, "c": 5}


def test_sources_without_weights_give_the_tokenizer_equally_much(mixture, monkeypatch):
    monkeypatch.setattr(prepare_module, "TOKENIZER_CHARACTERS", 6000)
    sources = {name: replace(source, weight=None) for name, source in mixture.data.sources.items()}
    mixture = replace(mixture, data=replace(mixture.data, sources=sources))
    found = prepare_module._select_training_texts(PreparePlan.resolve(mixture), list_input_files(sources))
    characters: Counter[str] = Counter()
    for text in found:
        characters["abc"[int(text.split()[1]) // 400]] += len(text)
    assert {name: round(count / 1000) for name, count in characters.items()} == {"a": 2, "b": 2, "c": 2}


def test_the_tokenizer_is_trained_on_no_held_out_text_and_on_each_text_once(mixture):
    found = prepare_module._select_training_texts(PreparePlan.resolve(mixture), list_input_files(mixture.data.sources))
    assert found == [text for text in short_texts(1200) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == TRAIN]


def test_sources_that_repeat_each_other_train_the_tokenizer_as_one(mixture):
    sources = {
        name: replace(source, path=mixture.data.sources["a"].path) for name, source in mixture.data.sources.items()
    }
    mixture = replace(mixture, data=replace(mixture.data, sources=sources))
    found = prepare_module._select_training_texts(PreparePlan.resolve(mixture), list_input_files(sources))
    assert found == [text for text in short_texts(400) if split_of(_INPUT_FILE, hash_text(text)[0], 0.2) == TRAIN]


def test_the_same_sources_train_the_same_tokenizer(mixture, tmp_path):
    stores = []
    for name in ("one", "other"):
        recipe = replace(mixture, data=replace(mixture.data, store=str(tmp_path / name)))
        prepare(recipe)
        stores.append(files_of(recipe.store_folder))
    assert stores[0] == stores[1]


def test_an_interrupted_run_trains_its_tokenizer_once(mixture, monkeypatch):
    use_small_shards(monkeypatch)
    monkeypatch.setattr(prepare_module, "TOKENIZER_CHARACTERS", 1000)
    path = Path(mixture.data.sources["c"].path)
    path.write_bytes(path.read_bytes() + b"{\n")
    stats = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="line 401"):
            prepare(mixture)
        stat = (_partial(mixture) / "tokenizer.json").stat()
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
def test_a_full_disk_is_one_line_that_names_the_file_and_a_later_run_finishes(tmp_path, monkeypatch, file):
    use_small_shards(monkeypatch)
    source = write_jsonl(tmp_path / "a.jsonl", [*short_texts(4), *short_texts(60)])
    recipe = _recipe(tmp_path / "prepared", {"text": source}, tokenizer="train")
    whole = _recipe(tmp_path / "whole", {"text": source}, tokenizer="train")
    prepare(whole)
    path = _partial(recipe) / file
    path.parent.mkdir(parents=True)
    full = path.with_name(path.name + ".partial")
    full.symlink_to("/dev/full")
    with pytest.raises(
        ConfigError, match=rf"{path}.*cannot be written \(No space left on device\).* continues"
    ) as caught:
        prepare(recipe)
    assert "\n" not in str(caught.value)
    full.unlink(missing_ok=True)
    prepare(recipe)
    assert files_of(recipe.store_folder) == files_of(whole.store_folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB, and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(flags, options):
        return libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options)

    if mount(0, b"size=128k") != 0:
        pytest.skip(f"no file system can be mounted here ({os.strerror(ctypes.get_errno())})")
    try:
        yield folder, lambda: mount(32, b"size=16m")  # MS_REMOUNT
    finally:
        libc.umount2(str(folder).encode(), 2)  # MNT_DETACH


def test_a_run_that_filled_its_disk_continues_on_a_larger_one(small_disk, tmp_path, monkeypatch):
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
    """Three slices of two sources, with repetitions, one shard of nothing else, and a tokenizer to train."""
    folder.mkdir()
    documents = {"a/0": short_texts(24), "a/1": [short_texts(1)[0]] * 24, "b/0": short_texts(30, first=12)}
    for name, some in documents.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, some)
    return _recipe(folder, {name: folder / name for name in "ab"}, tokenizer="train", num_partitions=2)


def _in_child(function):
    """Runs it in a fork of this process; returns the signal that ended it, or 0."""
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


def _kill_at(number, moment):
    """Kills this process around the number-th change that it makes to the names of files."""
    calls = itertools.count(1)

    def wrap(change):
        def changed(path, *args, **keys):
            now = next(calls) == number
            if now and moment == "before":
                if str(path).endswith(".partial") and os.path.isfile(path):
                    os.truncate(path, os.path.getsize(path) // 2)  # as if killed while it was written
                os.kill(os.getpid(), signal.SIGKILL)
            change(path, *args, **keys)
            if now:
                os.kill(os.getpid(), signal.SIGKILL)

        return changed

    for name in ("rename", "replace", "unlink", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))


def kill_everywhere(folder, moment):
    """Called in a process of its own: kills a run at every change in turn, and lets another finish it.

    Prints how often it did, and each time that the store was not that of a run that was never killed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork
    recipe = _kill_recipe(Path(folder))
    wrong = []
    with pytest.MonkeyPatch.context() as patch:
        use_small_shards(patch, shard_tokens=100, block_bytes=300)

        def run(name):
            prepare(replace(recipe, data=replace(recipe.data, store=str(Path(folder, name)))))

        def run_until(number):
            _kill_at(number, moment)
            run(str(number))

        _in_child(lambda: run("whole"))
        whole = files_of(Path(folder, "whole"))
        for number in itertools.count(1):
            if not _in_child(lambda: run_until(number)):  # noqa: B023
                break
            _in_child(lambda: run(str(number)))  # noqa: B023
            if files_of(Path(folder, str(number))) != whole or Path(folder, f"{number}.partial").exists():
                wrong.append(number)
    print(json.dumps({"kills": number - 1, "files": len(whole), "wrong": wrong}))


def _run_python(code, **keys):
    return subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, text=True, **keys)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_killed_around_any_change_to_its_files_ends_with_the_same_bytes(tmp_path, moment):
    code = f"from tests.data.prepare.test_pipeline import *; kill_everywhere({str(tmp_path / 'kill')!r}, {moment!r})"
    process = _run_python(code, stdout=subprocess.PIPE)
    found = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    assert found["wrong"] == []
    assert found["kills"] > 60


_WITH_PROCESSES = """
from tests.data.prepare.test_pipeline import prepare_with_processes
if __name__ == "__main__":
    prepare_with_processes({folder!r}, {name!r})
"""


def prepare_with_processes(folder, name):
    """Called in a process that is killed: a run of a hundred blocks, each of them a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 1000)
        patch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", 1)
        prepare(_recipe(Path(folder), {"text": Path(folder, "a.jsonl")}, store=str(Path(folder, name))))


def test_a_run_killed_with_its_processes_leaves_none_and_ends_with_the_same_bytes(tmp_path):
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


def test_what_was_left_of_another_recipe_at_the_very_end_is_refused(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    recipe.store_folder.rename(_partial(recipe))  # killed just before the store's folder got its name
    finished = files_of(_partial(recipe))
    with pytest.raises(ConfigError, match=r"prepared with data\.max_seq_len=32, the recipe says 16"):
        prepare(replace(recipe, data=replace(recipe.data, max_seq_len=16)))
    prepare(recipe)
    assert files_of(recipe.store_folder) == finished


def test_files_that_came_since_a_store_was_made_are_noted(tmp_path, console):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe, console)
    prepare(recipe, console)
    assert "note" not in console.export_text()
    write_jsonl(tmp_path / "a.jsonl", short_texts(60))
    prepare(recipe, console)
    assert "a.jsonl holds 1 files of" in console.export_text()
    (tmp_path / "a.jsonl").unlink()
    prepare(recipe, console)
    assert "note" not in console.export_text()


def test_the_beginning_of_a_store_that_another_process_has_finished_is_not_made_again(tmp_path):
    recipe = _recipe(tmp_path, {"text": write_jsonl(tmp_path / "a.jsonl", short_texts(50))})
    prepare(recipe)
    with pytest.raises(ConfigError, match="this store is finished"):
        prepare_module.prepare_single_partition(recipe, 0)
    assert not _partial(recipe).exists()
