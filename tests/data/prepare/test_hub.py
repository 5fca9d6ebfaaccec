import gzip
import os
import subprocess
import sys

import pytest

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.config.load import save_recipe
from mosaicbert.data.prepare.hub import count_shards
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.data.prepare.readers import FilePosition, decode, read_blocks
from mosaicbert.data.prepare.sources import InputFile, list_input_files
from tests.data.corpus import (
    encode,
    jsonl,
    samples_of,
    short_texts,
    treat_paths_as_hub_datasets,
    use_small_shards,
    write_hub_dataset,
    write_tokenizer,
)
from tests.recipes import tiny_recipe

_SHARDS = [short_texts(30), short_texts(30, first=100), short_texts(5, first=200)]
_VALIDATION = short_texts(20, first=300)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "owner" / "name"
    return str(write_hub_dataset(folder, {"train": _SHARDS, "validation": [_VALIDATION]}, subset="en"))


def _input_file(dataset, hub_split="train", shard=(0, 1), subset="en", **keys):
    keys = {"text_column": "text"} | keys
    return InputFile(source="text", path=dataset, kind="hub", subset=subset, hub_split=hub_split, shard=shard, **keys)


def _recipe(folder, dataset):
    source = SourceConfig(path=dataset, subset="en", validation_split="validation")
    tokenizer = {"source": write_tokenizer(folder)}
    return tiny_recipe(folder, dataset, data={"sources": {"text": source}}, tokenizer=tokenizer)


def _documents(input_file):
    return [document for block in read_blocks(input_file, FilePosition()) for document in decode(block)]


def test_a_split_has_one_shard_per_file(dataset):
    assert [count_shards(dataset, None, "en", split) for split in ("train", "validation")] == [3, 1]


def test_each_shard_has_the_texts_of_its_file_in_order(dataset):
    assert [_documents(_input_file(dataset, shard=(number, 3))) for number in range(3)] == _SHARDS


def test_each_split_has_its_own_texts(dataset):
    assert _documents(_input_file(dataset, "validation")) == _VALIDATION


def test_each_subset_has_its_own_texts(tmp_path):
    folder = write_hub_dataset(tmp_path / "d", {"train": [["english"]]}, subset="en")
    first = (folder / "README.md").read_text()
    write_hub_dataset(folder, {"train": [["deutsch"]]}, subset="de")
    second = (folder / "README.md").read_text()
    (folder / "README.md").write_text(first.removesuffix("---\n") + second.removeprefix("---\nconfigs:\n"))
    assert _documents(_input_file(str(folder), subset="de")) == ["deutsch"]


def test_reading_can_continue_after_any_block_of_a_shard(dataset, monkeypatch):
    monkeypatch.setattr("mosaicbert.data.prepare.hub._ROWS_PER_BATCH", 7)
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", 50)
    input_file = _input_file(dataset, shard=(1, 3))
    blocks = list(read_blocks(input_file, FilePosition()))
    assert len(blocks) > 10
    for number in (0, 3, 4, len(blocks) - 2, len(blocks) - 1):
        assert list(read_blocks(input_file, blocks[number].end)) == blocks[number + 1 :]


def test_without_a_validation_split_only_training_shards_are_listed(dataset, monkeypatch):
    treat_paths_as_hub_datasets(monkeypatch)
    input_files = list_input_files({"text": SourceConfig(path=dataset, subset="en")})
    assert input_files == [_input_file(dataset, shard=(number, 3)) for number in range(3)]


def test_the_validation_split_of_a_dataset_is_the_validation_split(dataset, monkeypatch):
    treat_paths_as_hub_datasets(monkeypatch)
    input_files = list_input_files({"text": SourceConfig(path=dataset, subset="en", validation_split="validation")})
    expected = [_input_file(dataset, shard=(number, 3), split="train") for number in range(3)]
    assert input_files == [*expected, _input_file(dataset, "validation", split="validation")]


@pytest.mark.parametrize(
    ("make", "subset", "split", "expected"),
    [
        (str, "en", "test", r"\(en\), split test, cannot be opened \(.*test"),
        (str, "fr", "train", r"\(fr\), split train, cannot be opened \(.*fr"),
        (lambda dataset: f"{dataset}-missing", None, "train", "-missing, split train, cannot be opened "),
    ],
    ids=["split", "subset", "dataset"],
)
def test_a_missing_split_subset_or_dataset_raises_an_error_of_one_line(dataset, make, subset, split, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        count_shards(make(dataset), None, subset, split)
    assert "\n" not in str(caught.value)


def test_a_missing_column_raises_an_error_with_the_existing_columns(dataset):
    with pytest.raises(ConfigError, match=r"must be one of the columns \['text'\] of .*train shard 0 of 3, got 'body'"):
        _documents(_input_file(dataset, shard=(0, 3), text_column="body"))


def _corrupt_gzip(content):
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 0xFF]) + content[half + 1 :]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-0.jsonl", jsonl(short_texts(50)) + b'{"text": '),
        ("train-0.jsonl.gz", gzip.compress(jsonl(short_texts(2000)))[:-1000]),
        ("train-0.jsonl.gz", _corrupt_gzip(gzip.compress(jsonl(short_texts(2000))))),
        ("train-0.parquet", b"no parquet"),
    ],
    ids=["half-a-line", "truncated-gzip", "flipped-byte", "no-parquet"],
)
def test_a_corrupted_shard_raises_an_error_of_one_line_with_its_dataset(tmp_path, name, content):
    folder = tmp_path / "corrupted"
    folder.mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"corrupted, (split )?train") as caught:
        _documents(_input_file(str(folder), subset=None))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def recipe(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        treat_paths_as_hub_datasets(patch)
        use_small_shards(patch)
        recipe = _recipe(folder, dataset)
        prepare(recipe)
    return recipe


def test_a_store_has_the_splits_of_the_dataset(recipe):
    train = [encode(text) for shard in _SHARDS for text in shard]
    assert samples_of(recipe.store_folder, "train") == train
    assert samples_of(recipe.store_folder, "validation") == [encode(text) for text in _VALIDATION]


def test_a_text_in_both_splits_of_a_dataset_stays_in_training(tmp_path, monkeypatch):
    treat_paths_as_hub_datasets(monkeypatch)
    use_small_shards(monkeypatch)
    shared = _VALIDATION[3]
    splits = {"train": [_SHARDS[0], [shared]], "validation": [_VALIDATION]}
    recipe = _recipe(tmp_path, str(write_hub_dataset(tmp_path / "owner" / "name", splits, subset="en")))
    assert prepare(recipe).skipped_documents == {"text": {"duplicate": 1}}
    assert samples_of(recipe.store_folder, "train")[-1] == encode(shared)
    assert samples_of(recipe.store_folder, "validation") == [encode(text) for text in _VALIDATION if text != shared]


def test_an_unreachable_hub_raises_an_error_of_one_line_and_leaves_no_files(tmp_path):
    path = tmp_path / "recipe.yaml"
    save_recipe(tiny_recipe(tmp_path / "runs", "nobody/nothing"), path)
    command = [sys.executable, "-m", "mosaicbert", "prepare", str(path)]
    result = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "mosaicbert prepare: Hub dataset nobody/nothing, revision main, cannot be opened"
    )
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()
