import json
from dataclasses import replace

import pytest

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare.partition import PartitionRecord, input_files_of_partition, partition_folder
from mosaicbert.data.prepare.pipeline import prepare, prepare_and_report, prepare_single_partition
from mosaicbert.filesystem import lock_folder
from tests.data.corpus import (
    all_samples,
    files_of,
    jsonl,
    map_here,
    short_texts,
    use_small_shards,
    write_jsonl,
    write_tokenizer,
)
from tests.recipes import tiny_recipe

_FILES = 5


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    use_small_shards(monkeypatch)


@pytest.fixture
def recipe(tmp_path):
    """Recipe with two sources and five files, which have duplicates within files, across files and across sources."""
    for number in range(_FILES):
        folder = tmp_path / ("first" if number < 3 else "second")
        folder.mkdir(exist_ok=True)
        documents = [*short_texts(30, first=20 * number), *short_texts(3)]
        write_jsonl(folder / f"{number}.jsonl", documents)
    sources = {name: SourceConfig(path=str(tmp_path / name)) for name in ("first", "second")}
    return tiny_recipe(tmp_path, "", data={"sources": sources}, tokenizer={"source": write_tokenizer(tmp_path)})


def _with_store(recipe, store, num_partitions, **changes):
    """Change the store and the number of partitions of a recipe."""
    folder = str(recipe.store_folder.parent / store)
    return replace(recipe, data=replace(recipe.data, store=folder, num_partitions=num_partitions, **changes))


def _staging(recipe):
    return recipe.store_folder.with_name(recipe.store_folder.name + ".partial")


@pytest.fixture
def whole(recipe):
    """Samples and record of a store prepared in one partition."""
    recipe = _with_store(recipe, "whole", 1)
    record = prepare(recipe)
    return all_samples(recipe.store_folder), record


@pytest.mark.parametrize(
    ("num_partitions", "order"),
    [(1, [0]), (2, [0, 1]), (2, [1, 0]), (3, [2, 0, 1]), (3, [1]), (5, [4, 3, 2, 1, 0]), (3, [])],
    ids=str,
)
def test_the_store_does_not_depend_on_the_number_and_order_of_partitions(recipe, whole, num_partitions, order):
    partitioned = _with_store(recipe, "partitioned", num_partitions)
    for number in order:
        prepare_single_partition(partitioned, number)
    record = prepare(partitioned)
    samples, expected = whole
    assert all_samples(partitioned.store_folder) == samples
    for field in ("documents", "text_bytes", "skipped_documents", "unigram_entropy", "prepared_from"):
        assert getattr(record, field) == getattr(expected, field)
    assert [record.splits[split].samples_by_source() for split in record.splits] == [
        expected.splits[split].samples_by_source() for split in expected.splits
    ]


def test_the_files_of_the_store_do_not_depend_on_the_order_of_partitions(recipe):
    one, other = _with_store(recipe, "one", 3), _with_store(recipe, "other", 3)
    for number in (0, 1, 2):
        prepare_single_partition(one, number)
    for number in (2, 1, 0):
        prepare_single_partition(other, number)
    prepare(one), prepare(other)
    assert files_of(one.store_folder) == files_of(other.store_folder)


def test_partitions_share_a_trained_tokenizer(recipe, whole):
    trained, partitioned = (
        replace(r, tokenizer=replace(r.tokenizer, source="train"))
        for r in (_with_store(recipe, "trained", 1), _with_store(recipe, "partitioned", 2))
    )
    prepare_single_partition(partitioned, 1)
    prepare(trained), prepare(partitioned)
    assert all_samples(partitioned.store_folder) == all_samples(trained.store_folder)
    assert all_samples(trained.store_folder) != whole[0]


@pytest.mark.parametrize("num_partitions", [1, 2, 3, 7, 10])
def test_partitions_have_equal_numbers_of_input_files_in_order(num_partitions):
    partitions = [input_files_of_partition(range(10), number, num_partitions) for number in range(num_partitions)]
    assert [input_file for input_files in partitions for input_file in input_files] == list(range(10))
    assert max(map(len, partitions)) - min(map(len, partitions)) <= 1


def test_preparing_a_finished_partition_again_changes_no_file(recipe):
    partitioned = _with_store(recipe, "partitioned", 2)
    record = prepare_single_partition(partitioned, 0)
    folder = partition_folder(_staging(partitioned), 0, 2)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    assert prepare_single_partition(partitioned, 0) == record
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*")} == before


def test_a_partition_record_is_equal_after_writing_and_reading(recipe):
    partitioned = _with_store(recipe, "partitioned", 2)
    record = prepare_single_partition(partitioned, 1)
    assert record.finished
    assert PartitionRecord.read(partition_folder(_staging(partitioned), 1, 2)) == record


def test_a_different_tokenizer_raises_an_error(recipe, tmp_path):
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare_single_partition(partitioned, 0)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"must be the tokenizer that .*00000-of-00002 was started with, .* Delete"):
        prepare(partitioned)


def test_a_file_that_changed_after_it_was_read_raises_an_error(recipe, tmp_path):
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare_single_partition(partitioned, 0)
    path = tmp_path / "first" / "1.jsonl"
    path.write_bytes(path.read_bytes() + jsonl(["one more"]))
    with pytest.raises(ConfigError, match=r"first/1\.jsonl must not change after it was read: it had .* bytes"):
        prepare(partitioned)


@pytest.mark.parametrize("name", ["0-before.jsonl", "2-after.jsonl"])
def test_a_different_number_of_files_raises_an_error(recipe, tmp_path, name):
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare_single_partition(partitioned, 0), prepare_single_partition(partitioned, 1)
    write_jsonl(tmp_path / "first" / name, short_texts(10))
    with pytest.raises(ConfigError, match=r"Delete .* to start again"):
        prepare(partitioned)


def test_different_files_of_the_same_sizes_raise_an_error(recipe, tmp_path):
    for number in range(_FILES):
        folder = tmp_path / ("first" if number < 3 else "second")
        write_jsonl(
            folder / f"{number}.jsonl",
            [f"text {index} of the same length" for index in range(100 * number + 100, 100 * number + 160)],
        )
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare_single_partition(partitioned, 0)
    (tmp_path / "first" / "0.jsonl").rename(tmp_path / "second" / "5.jsonl")
    (tmp_path / "second" / "3.jsonl").rename(tmp_path / "first" / "3.jsonl")
    with pytest.raises(ConfigError, match=r"Delete .* to start again"):
        prepare(partitioned)


def test_a_different_order_of_sources_raises_an_error(recipe, tmp_path):
    sources = {name: SourceConfig(path=str(tmp_path / folder)) for name, folder in (("a", "first"), ("b", "second"))}
    started = replace(
        _with_store(recipe, "ordered", 2), data=replace(_with_store(recipe, "ordered", 2).data, sources=sources)
    )
    prepare_single_partition(started, 0)
    reversed_sources = dict(reversed(sources.items()))
    with pytest.raises(ConfigError, match=r"`data\.sources` must list the same files .* Delete .* to start again"):
        prepare(replace(started, data=replace(started.data, sources=reversed_sources)))


def test_a_different_number_of_partitions_raises_an_error_and_keeps_finished_work(recipe):
    prepare_single_partition(_with_store(recipe, "partitioned", 2), 0)
    with pytest.raises(
        ConfigError, match=r"`data\.num_partitions` must be the number .*, got 3\. Restore the number, or delete"
    ):
        prepare_single_partition(_with_store(recipe, "partitioned", 3), 1)
    assert prepare_single_partition(_with_store(recipe, "partitioned", 2), 0).finished


def test_a_different_recipe_raises_an_error_and_keeps_finished_work(recipe):
    prepare_single_partition(_with_store(recipe, "partitioned", 2), 0)
    with pytest.raises(
        ConfigError, match=r"`data\.max_seq_len` must be 32, the value that .* was prepared with, got 16"
    ):
        prepare_single_partition(_with_store(recipe, "partitioned", 2, max_seq_len=16), 1)
    assert prepare_single_partition(_with_store(recipe, "partitioned", 2), 0).finished


def test_more_partitions_than_files_raise_an_error_and_leave_no_files(recipe):
    partitioned = _with_store(recipe, "deep/partitioned", 6)
    with pytest.raises(
        ConfigError, match=r"`data\.num_partitions` must be at most 5, the number of input files, got 6"
    ):
        prepare_single_partition(partitioned, 0)
    assert not partitioned.store_folder.parent.exists()


def test_a_partition_in_use_by_another_process_raises_an_error(recipe):
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare_single_partition(partitioned, 1)
    folder = partition_folder(_staging(partitioned), 0, 2)
    folder.mkdir()
    with lock_folder(folder), pytest.raises(ConfigError, match="another process prepares this partition"):
        prepare_single_partition(partitioned, 0)
    assert folder.exists()


def _call_during_next_run(monkeypatch, function):
    """Call a function once during the next run, between the start of tokenization and the first shard."""

    def map_after_call(*arguments):
        monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
        function()
        return map_here(*arguments)

    monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_after_call)


def test_a_concurrent_run_raises_an_error_and_does_not_affect_the_first(recipe, whole, monkeypatch):
    concurrent = _with_store(recipe, "concurrent", 1)

    def prepare_again():
        with pytest.raises(ConfigError, match="another process prepares this partition"):
            prepare(concurrent)

    _call_during_next_run(monkeypatch, prepare_again)
    prepare(concurrent)
    assert all_samples(concurrent.store_folder) == whole[0]


def test_a_failed_partition_does_not_affect_the_others(recipe, whole, monkeypatch, tmp_path):
    partitioned = _with_store(recipe, "partitioned", 5)
    path = tmp_path / "second" / "4.jsonl"
    valid_content = path.read_bytes()

    def prepare_another():
        path.write_bytes(b"{" + valid_content)
        with pytest.raises(ConfigError, match=r"4\.jsonl, line 1: not JSON"):
            prepare_single_partition(partitioned, 4)
        path.write_bytes(valid_content)

    _call_during_next_run(monkeypatch, prepare_another)
    prepare_single_partition(partitioned, 0)
    prepare(partitioned)
    assert all_samples(partitioned.store_folder) == whole[0]


def test_prepare_with_a_partition_in_the_recipe_raises_an_error(recipe):
    with pytest.raises(ConfigError, match=r"`data\.partition` must be null to prepare the store, got 1\. Remove it"):
        prepare(_with_store(recipe, "partitioned", 2, partition=1))


def test_a_partition_of_a_finished_store_raises_an_error(recipe):
    partitioned = _with_store(recipe, "partitioned", 2)
    prepare(partitioned)
    with pytest.raises(ConfigError, match=r"not supported with the finished store .* Remove `data\.partition`"):
        prepare_single_partition(partitioned, 0)


def test_the_report_of_a_partition_includes_the_next_step(recipe, console):
    prepare_and_report(_with_store(recipe, "partitioned", 2, partition=1), console)
    assert "Partition 1 of 2 is finished. When all partitions are in" in console.export_text()


def test_a_corrected_file_is_read_from_the_last_finished_shard(recipe, tmp_path):
    path = tmp_path / "first" / "1.jsonl"
    valid_content = path.read_bytes()
    lines = valid_content.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:25], b"{half a line\n", *lines[25:]]))
    interrupted = _with_store(recipe, "interrupted", 1)
    with pytest.raises(ConfigError, match=r"first/1\.jsonl, line 26: not JSON"):
        prepare(interrupted)
    folder = partition_folder(_staging(interrupted), 0, 1)
    finished = PartitionRecord.read(folder)
    assert finished.next_input_file == 1 and finished.position.rows > 0
    path.write_bytes(valid_content)
    shards = {shard.file: (folder / shard.file).stat() for shard in finished.shards["train"]}
    prepare_single_partition(interrupted, 0)
    assert {name: (folder / name).stat() for name in shards} == shards
