import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mosaicbert.data import store_stats
from mosaicbert.data.prepare.pipeline import check_store, prepare
from mosaicbert.data.store import TokenStore, sha256_of
from mosaicbert.data.store_stats import inspect_store
from tests.data.corpus import texts, write_jsonl
from tests.recipes import tiny_recipe

pytestmark = pytest.mark.usefixtures("forked")  # reading a store starts workers


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Recipe with a prepared store of several shards, which has duplicate samples."""
    folder = tmp_path_factory.mktemp("inspection")
    documents = texts()
    longer = [f"{text} And now for something else." for text in documents[:20] if len(text) > 1000]
    recipe = tiny_recipe(folder, write_jsonl(folder / "docs.jsonl", [*documents, *longer]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", 3000)
        patch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 5000)
        prepare(recipe)
    return recipe


@pytest.fixture
def copy(recipe, tmp_path):
    shutil.copytree(recipe.store_folder, tmp_path / "store")
    return replace(recipe, data=replace(recipe.data, store=str(tmp_path / "store")))


def _inspect(recipe):
    return inspect_store(recipe.store_folder, check_store(recipe), recipe.data.max_text_tokens)


def _samples(recipe, split):
    store = TokenStore(recipe.store_folder, split)
    return [tuple(ids.tolist()) for ids in store.read(np.arange(store.num_samples))]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_lengths_frequencies_and_duplicates_match_the_samples(recipe, split):
    inspection = _inspect(recipe).splits[split]
    samples = _samples(recipe, split)
    assert inspection.lengths.tolist() == np.bincount([len(ids) for ids in samples], minlength=31).tolist()
    assert inspection.frequencies.tolist() == np.bincount(np.concatenate(samples), minlength=512).tolist()
    assert inspection.duplicate_fraction == pytest.approx(1 - len(set(samples)) / len(samples))
    probabilities = inspection.frequencies[inspection.frequencies > 0] / inspection.frequencies.sum()
    assert inspection.unigram_entropy == pytest.approx(-sum(p * math.log(p) for p in probabilities))


def test_the_overlap_is_the_fraction_of_validation_samples_in_training(recipe):
    training, validation = set(_samples(recipe, "train")), _samples(recipe, "validation")
    assert _inspect(recipe).validation_overlap == pytest.approx(
        sum(ids in training for ids in validation) / len(validation)
    )


def test_duplicates_of_a_large_store_are_estimated_from_a_subset(recipe, monkeypatch):
    exact = _inspect(recipe).splits["train"].duplicate_fraction
    monkeypatch.setattr(store_stats, "_MAX_HASHES", 200)
    assert 0 < _inspect(recipe).splits["train"].duplicate_fraction < 3 * exact


def test_a_valid_store_has_no_problems(recipe):
    assert _inspect(recipe).problems == []


def test_every_corrupted_shard_is_reported_with_its_path(copy):
    shards = sorted((copy.store_folder / "train").glob("data-*.arrow"))[:2]
    for shard in shards:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    problems = _inspect(copy).problems
    assert len(problems) == 2
    assert all(str(shard) in problem for shard, problem in zip(shards, problems, strict=True))
    assert all("SHA-256" in problem for problem in problems)


def test_a_missing_shard_is_reported_with_its_path(copy):
    shard = copy.store_folder / "train" / "data-00001.arrow"
    shard.unlink()
    assert _inspect(copy).problems == [f"{shard} is missing"]


def test_an_id_outside_of_the_vocabulary_is_reported_despite_a_correct_checksum(copy):
    _edit_ids(copy, lambda ids: np.where(np.arange(len(ids)) == 5, 600, ids))
    (problem,) = _inspect(copy).problems
    assert "has the id 600, but the largest id of the tokenizer is 511" in problem


def test_counts_that_differ_from_the_record_are_reported(copy):
    path = copy.store_folder / "store.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["shards"][0]["samples"] += 1
    path.write_text(json.dumps(content))
    (problem,) = _inspect(copy).problems
    assert "unlike store.json" in problem


def _edit_ids(recipe, change):
    """Edit the token ids of the first shard, and update its recorded checksum."""
    shard = recipe.store_folder / "train" / "data-00000.arrow"
    (batch,) = pa.ipc.open_stream(shard.read_bytes())
    column = batch.column(0)
    ids = change(column.values.to_numpy()).astype(np.uint16)
    changed = pa.ListArray.from_arrays(column.offsets, pa.array(ids))
    with pa.OSFile(str(shard), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(pa.record_batch([changed], schema=batch.schema))
    path = recipe.store_folder / "store.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["shards"][0]["sha256"] = sha256_of(shard)
    path.write_text(json.dumps(content))
