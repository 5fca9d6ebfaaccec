import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import SourceConfig
from mosaicbert.data.prepare import dedup
from mosaicbert.data.prepare.dedup import find_duplicates
from mosaicbert.data.prepare.partition import DocumentTable
from mosaicbert.data.prepare.pipeline import prepare
from tests.data.corpus import (
    all_samples,
    encode,
    samples_of,
    short_texts,
    use_small_shards,
    write_jsonl,
    write_tokenizer,
)
from tests.recipes import tiny_recipe

_MAX_HASH = 2**64 - 1


def _find_on_disk(tables):
    """Write tables of hashes to disk, and find their duplicates."""
    with tempfile.TemporaryDirectory() as folder:
        document_tables = []
        for number, hashes in enumerate(tables):
            path = Path(folder) / f"{number}.documents"
            bits = np.array(hashes, dtype=np.uint64).reshape(-1, 2)
            DocumentTable.write(path, bits, np.ones(len(bits), dtype=np.int32))
            document_tables.append(DocumentTable(path))
        return [numbers.tolist() for numbers in find_duplicates(document_tables)]


def _find_with_a_set(tables):
    seen, indices = set(), []
    for hashes in tables:
        indices.append([])
        for number, bits in enumerate(hashes):
            if bits in seen:
                indices[-1].append(number)
            seen.add(bits)
    return indices


_HASHES = st.tuples(
    st.sampled_from([0, 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, _MAX_HASH]), st.sampled_from([0, 1, _MAX_HASH])
)


@given(tables=st.lists(st.lists(_HASHES, max_size=12), max_size=6), max_documents=st.integers(1, 20))
def test_duplicates_are_documents_that_occur_earlier_in_any_table(tables, max_documents):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_MAX_DOCUMENTS_IN_MEMORY", max_documents)
        duplicates = _find_on_disk(tables)
    assert duplicates == _find_with_a_set(tables)


@given(seed=st.integers(0, 2**32), max_documents=st.sampled_from([10, 100, 5000]))
def test_duplicates_among_random_hashes_are_found(seed, max_documents):
    draw = np.random.default_rng(seed)
    distinct = [(int(high), int(low)) for high, low in draw.integers(0, _MAX_HASH, (300, 2), dtype=np.uint64)]
    tables = [[distinct[number] for number in draw.integers(0, 300, size)] for size in (100, 0, 250, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_MAX_DOCUMENTS_IN_MEMORY", max_documents)
        duplicates = _find_on_disk(tables)
    assert duplicates == _find_with_a_set(tables)


def test_only_a_limited_number_of_documents_is_compared_at_a_time(monkeypatch):
    monkeypatch.setattr(dedup, "_MAX_DOCUMENTS_IN_MEMORY", 100)
    sizes = []
    lexsort = np.lexsort
    monkeypatch.setattr(np, "lexsort", lambda keys: (len(keys) == 2 and sizes.append(len(keys[0]))) or lexsort(keys))
    draw = np.random.default_rng(3).integers(0, _MAX_HASH, (4, 1000, 2), dtype=np.uint64)
    _find_on_disk(draw)
    assert sum(sizes) == 4000
    assert max(sizes) < 200


# --- Deduplication in a store.


def _recipe(folder, documents_by_source, **data):
    sources = {}
    for name, documents in documents_by_source.items():
        sources[name] = SourceConfig(path=str(write_jsonl(folder / f"{name}.jsonl", documents)))
    tokenizer = {"source": write_tokenizer(folder)}
    return tiny_recipe(folder, "", data={"sources": sources} | data, tokenizer=tokenizer)


@pytest.fixture(params=[10, 10**9], ids=["many-shards", "one-shard"])
def shards(request, monkeypatch):
    use_small_shards(monkeypatch, shard_tokens=request.param)
    monkeypatch.setattr(dedup, "_MAX_DOCUMENTS_IN_MEMORY", 15)


@pytest.mark.usefixtures("shards")
@pytest.mark.parametrize(
    "order",
    [
        [*range(60), *range(60)],
        [*range(60), 59, 58, 0, 1],
        [0] * 30 + [*range(60)] + [0] * 30,
        [number // 2 for number in range(120)],
        [*range(20), *([5] * 80), *range(60)],
    ],
    ids=["all", "some", "one-text-at-both-ends", "each-twice", "shards-of-duplicates-only"],
)
def test_a_store_prepared_with_duplicates_equals_one_without(tmp_path, order):
    documents = short_texts(60)
    (tmp_path / "once").mkdir()
    once = _recipe(tmp_path / "once", {"text": documents})
    again = _recipe(tmp_path, {"text": [documents[number] for number in order]})
    prepare(once)
    assert prepare(again).skipped_documents == {"text": {"duplicate": len(order) - 60}}
    assert all_samples(again.store_folder) == all_samples(once.store_folder)


@pytest.mark.usefixtures("shards")
def test_a_duplicate_in_a_later_source_is_skipped_in_that_source(tmp_path):
    first, second = short_texts(40), short_texts(40, first=30)
    record = prepare(_recipe(tmp_path, {"first": first, "second": second}))
    assert record.skipped_documents == {"first": {}, "second": {"duplicate": 10}}
    samples = [split.samples_by_source() for split in record.splits.values()]
    assert sum(split["first"] for split in samples) == 40


@pytest.mark.usefixtures("shards")
def test_a_source_with_only_duplicates_has_no_samples(tmp_path):
    recipe = _recipe(tmp_path, {"first": short_texts(40), "second": short_texts(40)})
    record = prepare(recipe)
    assert record.skipped_documents == {"first": {}, "second": {"duplicate": 40}}
    assert {shard.source for split in record.splits.values() for shard in split.shards} == {"first"}


@pytest.mark.usefixtures("shards")
def test_all_chunks_of_a_duplicate_document_are_skipped(tmp_path):
    long_documents = [" ".join(short_texts(20, first=20 * number)) for number in range(30)]
    (tmp_path / "once").mkdir()
    once = _recipe(tmp_path / "once", {"text": long_documents}, sampling="chunk")
    again = _recipe(
        tmp_path, {"text": [*long_documents[:10], *long_documents[5:], long_documents[0]]}, sampling="chunk"
    )
    assert sum(split.samples for split in prepare(once).splits.values()) > 60
    prepare(again)
    assert all_samples(again.store_folder) == all_samples(once.store_folder)


@pytest.mark.usefixtures("shards")
def test_shard_numbers_are_consecutive_and_no_other_files_remain(tmp_path):
    documents = [*short_texts(20), *([short_texts(1)[0]] * 80), *short_texts(40, first=20)]
    recipe = _recipe(tmp_path, {"text": documents})
    record = prepare(recipe)
    for name, split in record.splits.items():
        files = [f"data-{number:05d}.arrow" for number in range(len(split.shards))]
        assert [shard.file for shard in split.shards] == files
        names = sorted(path.name for path in (recipe.store_folder / name).iterdir())
        assert names == [*files, "dataset_info.json", "state.json"]


@pytest.mark.usefixtures("shards")
def test_different_texts_with_the_same_tokens_are_not_duplicates(tmp_path):
    documents = [*short_texts(40), *[text.upper() for text in short_texts(40)]]
    recipe = _recipe(tmp_path, {"text": documents})
    assert prepare(recipe).skipped_documents == {"text": {}}
    samples = sorted(samples_of(recipe.store_folder, "train") + samples_of(recipe.store_folder, "validation"))
    assert samples == sorted([encode(text) for text in short_texts(40)] * 2)
