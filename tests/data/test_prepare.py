import json
import math
import pickle
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest

from mosaicbert.config import ConfigError
from mosaicbert.data.prepare import check_store, open_store, prepare, unigram_entropy
from mosaicbert.data.store import TokenStore, open_tokenizer
from tests.data.corpus import texts, write_jsonl
from tests.recipes import tiny_recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("source") / "docs.jsonl")


@pytest.fixture(scope="module")
def recipe(source, tmp_path_factory):
    """A recipe whose store is made."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("runs"), source)
    prepare(recipe)
    return recipe


@pytest.fixture(scope="module")
def record(recipe):
    return check_store(recipe)


def test_every_text_is_in_exactly_one_split_and_tokenised_as_the_tokenizer_does(recipe, record):
    tokenizer = open_tokenizer(recipe.store_folder, record)
    longest = recipe.data.max_seq_len - 2
    expected = sorted(tokenizer.encode(text, add_special_tokens=False).ids[:longest] for text in texts())
    stored = []
    for split in ("train", "validation"):
        samples = np.arange(record.splits[split].samples)
        stored += [ids.tolist() for ids in open_store(recipe, split).read(samples)]
    assert sorted(stored) == expected


def test_the_held_out_share_is_about_what_was_asked(record):
    samples = {name: split.samples for name, split in record.splits.items()}
    assert 0.1 < samples["validation"] / sum(samples.values()) < 0.3


def test_hugging_face_datasets_opens_a_split(recipe, record):
    opened = datasets.load_from_disk(str(recipe.store_folder / "train"))
    ours = open_store(recipe, "train").read(np.arange(record.splits["train"].samples))
    assert [row["input_ids"] for row in opened] == [ids.tolist() for ids in ours]
    assert opened.features["input_ids"].feature.dtype == "uint16"


def test_several_shards_read_as_one(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("mosaicbert.data.store.SHARD_TOKENS", 500)
    small = replace(recipe, data=replace(recipe.data, store=str(tmp_path / "store")))
    shards = prepare(small).splits["train"].shards
    assert len(shards) > 3
    whole, parts = open_store(recipe, "train"), open_store(small, "train")
    some = np.array([0, whole.num_samples - 1, 17, 3])
    assert [ids.tolist() for ids in parts.read(some)] == [ids.tolist() for ids in whole.read(some)]


def test_the_recorded_entropy_is_that_of_the_held_out_tokens(recipe, record):
    tokens = np.concatenate(open_store(recipe, "validation").read(np.arange(record.splits["validation"].samples)))
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert record.unigram_entropy == pytest.approx(-(shares * np.log(shares)).sum())


def test_entropy_of_an_even_distribution_is_the_logarithm_of_its_size():
    assert unigram_entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))


def test_duplicates_and_short_texts_are_left_out_and_counted(tmp_path):
    documents = texts()[:40]
    source = write_jsonl(tmp_path / "docs.jsonl", [*documents, *documents[:7], "short", "too"])
    recipe = tiny_recipe(tmp_path, source, data={"deduplicate": True, "min_characters": 6})
    record = prepare(recipe)
    assert record.dropped == {"duplicate": 7, "too short": 2}
    assert sum(split.samples for split in record.splits.values()) == len(documents)


def test_preparing_again_finds_the_store_made(recipe, record):
    before = (recipe.store_folder / "store.json").stat().st_mtime_ns
    assert prepare(recipe) == record
    assert (recipe.store_folder / "store.json").stat().st_mtime_ns == before


def test_a_store_made_from_something_else_is_refused(recipe):
    other = replace(recipe, data=replace(recipe.data, max_seq_len=16))
    with pytest.raises(ConfigError, match=r"prepared with data\.max_seq_len=32, the recipe says 16"):
        check_store(other)


def test_a_store_whose_tokenizer_was_exchanged_is_refused(recipe, tmp_path):
    copy = _copy(recipe, tmp_path)
    path = copy.store_folder / "tokenizer.json"
    path.write_text(
        path.read_text()
        .replace('"lowercase":true', '"lowercase":false')
        .replace('"lowercase": true', '"lowercase": false')
    )
    with pytest.raises(ConfigError, match="not the tokenizer that the store was made with"):
        check_store(copy)


def test_a_tokenizer_file_that_changed_since_is_refused(source, recipe, tmp_path):
    tokenizer_file = tmp_path / "tokenizer.json"
    tokenizer_file.write_bytes((recipe.store_folder / "tokenizer.json").read_bytes())
    loaded = tiny_recipe(tmp_path, source, tokenizer={"source": str(tokenizer_file)})
    prepare(loaded)
    content = json.loads(tokenizer_file.read_text())
    content["normalizer"]["lowercase"] = False
    tokenizer_file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"another tokenizer than tokenizer\.source"):
        check_store(loaded)


def test_a_vocabulary_larger_than_the_models_is_refused_before_anything_is_written(source, recipe, tmp_path):
    small = tiny_recipe(
        tmp_path,
        source,
        tokenizer={"source": str(recipe.store_folder / "tokenizer.json")},
        model={"vocab_size": 448},
    )
    with pytest.raises(ConfigError, match=r"smaller than the 512 entries .* set model\.vocab_size=512"):
        prepare(small)
    assert not small.store_folder.exists()


@pytest.mark.parametrize("documents", [[], ["only one text, which is in one split"]], ids=["empty", "one-text"])
def test_a_corpus_with_an_empty_split_is_refused(tmp_path, documents):
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    recipe = tiny_recipe(tmp_path, source)
    with pytest.raises(ConfigError, match=r"data\.source="):
        prepare(recipe)
    assert not recipe.store_folder.exists()


def test_a_truncated_shard_is_refused(recipe, record, tmp_path):
    copy = _copy(recipe, tmp_path)
    shard = next((copy.store_folder / "train").glob("data-*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(ConfigError, match=r"data-00000\.arrow: damaged"):
        TokenStore(copy.store_folder / "train", record.splits["train"])


def test_no_store_says_how_to_make_one(recipe, tmp_path):
    missing = replace(recipe, data=replace(recipe.data, store=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="mosaicbert prepare RECIPE"):
        check_store(missing)


def test_a_folder_named_train_is_not_taken_for_a_tokenizer(recipe, record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert check_store(recipe) == record


def test_text_with_half_a_character_is_mended(source, tmp_path, monkeypatch):
    # JSON and Arrow cannot carry it, docstrings can.
    documents = [f"half a pair \ud800 in text {number}" for number in range(40)]
    monkeypatch.setattr("mosaicbert.data.prepare.read_texts", lambda _: iter(documents))
    record = prepare(tiny_recipe(tmp_path, source))
    assert sum(split.samples for split in record.splits.values()) == 40


def test_a_store_travels_to_worker_processes_without_its_tokens(recipe):
    store = open_store(recipe, "train")
    assert len(pickle.dumps(store)) < 1000
    samples = np.arange(store.num_samples)
    copied = pickle.loads(pickle.dumps(store)).read(samples)
    assert [ids.tolist() for ids in copied] == [ids.tolist() for ids in store.read(samples)]


def test_a_store_that_cannot_be_written_is_refused(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        prepare(tiny_recipe(tmp_path, source, data={"store": str(tmp_path / "file" / "store")}))


def _copy(recipe, folder):
    shutil.copytree(recipe.store_folder, folder / "store")
    return replace(recipe, data=replace(recipe.data, store=str(folder / "store")))
