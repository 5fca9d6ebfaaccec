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
    """Two sources of five files with repetitions within files, across them and across sources."""
    for number in range(_FILES):
        folder = tmp_path / ("first" if number < 3 else "second")
        folder.mkdir(exist_ok=True)
        documents = [*short_texts(30, first=20 * number), *short_texts(3)]
        write_jsonl(folder / f"{number}.jsonl", documents)
    sources = {name: SourceConfig(path=str(tmp_path / name)) for name in ("first", "second")}
    return tiny_recipe(tmp_path, "", data={"sources": sources}, tokenizer={"source": write_tokenizer(tmp_path)})


def _of(recipe, store, num_partitions, **changes):
    """The same recipe for another store, in partitions."""
    folder = str(recipe.store_folder.parent / store)
    return replace(recipe, data=replace(recipe.data, store=folder, num_partitions=num_partitions, **changes))


def _partial(recipe):
    return recipe.store_folder.with_name(recipe.store_folder.name + ".partial")


@pytest.fixture
def whole(recipe):
    recipe = _of(recipe, "whole", 1)
    record = prepare(recipe)
    return all_samples(recipe.store_folder), record


@pytest.mark.parametrize(
    ("num_partitions", "order"),
    [(1, [0]), (2, [0, 1]), (2, [1, 0]), (3, [2, 0, 1]), (3, [1]), (5, [4, 3, 2, 1, 0]), (3, [])],
    ids=str,
)
def test_slices_in_any_order_make_the_same_store_as_one(recipe, whole, num_partitions, order):
    partitioned = _of(recipe, "sliced", num_partitions)
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


def test_the_order_in_which_slices_were_prepared_leaves_no_trace(recipe):
    one, other = _of(recipe, "one", 3), _of(recipe, "other", 3)
    for number in (0, 1, 2):
        prepare_single_partition(one, number)
    for number in (2, 1, 0):
        prepare_single_partition(other, number)
    prepare(one), prepare(other)
    assert files_of(one.store_folder) == files_of(other.store_folder)


def test_slices_that_train_the_tokenizer_share_it(recipe, whole):
    trained, partitioned = (
        replace(r, tokenizer=replace(r.tokenizer, source="train"))
        for r in (_of(recipe, "trained", 1), _of(recipe, "sliced", 2))
    )
    prepare_single_partition(partitioned, 1)
    prepare(trained), prepare(partitioned)
    assert all_samples(partitioned.store_folder) == all_samples(trained.store_folder)
    assert all_samples(trained.store_folder) != whole[0]


@pytest.mark.parametrize("num_partitions", [1, 2, 3, 7, 10])
def test_slices_share_the_parts_evenly_and_hold_them_in_order(num_partitions):
    partitions = [input_files_of_partition(range(10), number, num_partitions) for number in range(num_partitions)]
    assert [input_file for input_files in partitions for input_file in input_files] == list(range(10))
    assert max(map(len, partitions)) - min(map(len, partitions)) <= 1


def test_a_prepared_slice_is_found_prepared(recipe):
    partitioned = _of(recipe, "sliced", 2)
    record = prepare_single_partition(partitioned, 0)
    folder = partition_folder(_partial(partitioned), 0, 2)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*")}
    assert prepare_single_partition(partitioned, 0) == record
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*")} == before


def test_a_slices_record_survives_its_file(recipe):
    partitioned = _of(recipe, "sliced", 2)
    record = prepare_single_partition(partitioned, 1)
    assert record.finished
    assert PartitionRecord.read(partition_folder(_partial(partitioned), 1, 2)) == record


def test_another_tokenizer_is_refused(recipe, tmp_path):
    partitioned = _of(recipe, "sliced", 2)
    prepare_single_partition(partitioned, 0)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"00000-of-00002: was begun with another tokenizer; delete"):
        prepare(partitioned)


def test_a_prepared_file_that_grew_is_refused_and_named(recipe, tmp_path):
    partitioned = _of(recipe, "sliced", 2)
    prepare_single_partition(partitioned, 0)
    path = tmp_path / "first" / "1.jsonl"
    path.write_bytes(path.read_bytes() + jsonl(["one more"]))
    with pytest.raises(ConfigError, match=r"first/1\.jsonl: has changed since it was prepared \(.* bytes then"):
        prepare(partitioned)


@pytest.mark.parametrize("name", ["0-before.jsonl", "2-after.jsonl"])
def test_another_number_of_files_is_refused(recipe, tmp_path, name):
    partitioned = _of(recipe, "sliced", 2)
    prepare_single_partition(partitioned, 0), prepare_single_partition(partitioned, 1)
    write_jsonl(tmp_path / "first" / name, short_texts(10))
    with pytest.raises(ConfigError, match=r"delete .* to begin again"):
        prepare(partitioned)


def test_other_files_of_the_same_sizes_are_refused(recipe, tmp_path):
    for number in range(_FILES):
        folder = tmp_path / ("first" if number < 3 else "second")
        write_jsonl(
            folder / f"{number}.jsonl",
            [f"text {index} of the same length" for index in range(100 * number + 100, 100 * number + 160)],
        )
    partitioned = _of(recipe, "sliced", 2)
    prepare_single_partition(partitioned, 0)
    (tmp_path / "first" / "0.jsonl").rename(tmp_path / "second" / "5.jsonl")
    (tmp_path / "second" / "3.jsonl").rename(tmp_path / "first" / "3.jsonl")
    with pytest.raises(ConfigError, match=r"delete .* to begin again"):
        prepare(partitioned)


def test_sources_in_another_order_are_refused_when_going_on(recipe, tmp_path):
    sources = {name: SourceConfig(path=str(tmp_path / folder)) for name, folder in (("a", "first"), ("b", "second"))}
    begun = replace(_of(recipe, "ordered", 2), data=replace(_of(recipe, "ordered", 2).data, sources=sources))
    prepare_single_partition(begun, 0)
    turned = dict(reversed(sources.items()))
    with pytest.raises(ConfigError, match=r"other files .* delete .* to begin again"):
        prepare(replace(begun, data=replace(begun.data, sources=turned)))


def test_another_number_of_slices_is_refused_and_what_is_prepared_stays(recipe):
    prepare_single_partition(_of(recipe, "sliced", 2), 0)
    with pytest.raises(ConfigError, match=r"begun with another data\.num_partitions than 3; set that again, or delete"):
        prepare_single_partition(_of(recipe, "sliced", 3), 1)
    assert prepare_single_partition(_of(recipe, "sliced", 2), 0).finished


def test_another_recipe_is_refused_and_what_is_prepared_stays(recipe):
    prepare_single_partition(_of(recipe, "sliced", 2), 0)
    with pytest.raises(ConfigError, match=r"was prepared with data\.max_seq_len=32, the recipe says 16"):
        prepare_single_partition(_of(recipe, "sliced", 2, max_seq_len=16), 1)
    assert prepare_single_partition(_of(recipe, "sliced", 2), 0).finished


def test_more_slices_than_files_are_refused_and_leave_nothing(recipe):
    partitioned = _of(recipe, "deep/sliced", 6)
    with pytest.raises(ConfigError, match=r"data\.num_partitions=6: the sources have only 5 files"):
        prepare_single_partition(partitioned, 0)
    assert not partitioned.store_folder.parent.exists()


def test_a_slice_that_another_process_prepares_is_refused_and_left_alone(recipe):
    partitioned = _of(recipe, "sliced", 2)
    prepare_single_partition(partitioned, 1)
    folder = partition_folder(_partial(partitioned), 0, 2)
    folder.mkdir()
    with lock_folder(folder), pytest.raises(ConfigError, match="another process is preparing this slice; wait for it"):
        prepare_single_partition(partitioned, 0)
    assert folder.exists()


def _meanwhile(monkeypatch, function):
    """Calls it once when the next run has begun to tokenise, before its first shard."""

    def map_later(*arguments):
        monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
        function()
        return map_here(*arguments)

    monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_later)


def test_a_second_run_beside_the_first_is_refused_and_leaves_it_alone(recipe, whole, monkeypatch):
    twice = _of(recipe, "twice", 1)

    def prepare_again():
        with pytest.raises(ConfigError, match="another process is preparing this slice"):
            prepare(twice)

    _meanwhile(monkeypatch, prepare_again)
    prepare(twice)
    assert all_samples(twice.store_folder) == whole[0]


def test_a_slice_that_fails_leaves_alone_those_that_are_being_prepared(recipe, whole, monkeypatch, tmp_path):
    partitioned = _of(recipe, "sliced", 5)
    path = tmp_path / "second" / "4.jsonl"
    good = path.read_bytes()

    def prepare_another():
        path.write_bytes(b"{" + good)
        with pytest.raises(ConfigError, match=r"4\.jsonl, line 1: not JSON"):
            prepare_single_partition(partitioned, 4)
        path.write_bytes(good)

    _meanwhile(monkeypatch, prepare_another)
    prepare_single_partition(partitioned, 0)
    prepare(partitioned)
    assert all_samples(partitioned.store_folder) == whole[0]


def test_a_recipe_for_a_slice_makes_no_store(recipe):
    with pytest.raises(ConfigError, match=r"data\.partition=1: a slice is no store; leave data\.partition out"):
        prepare(_of(recipe, "sliced", 2, partition=1))


def test_a_slice_of_a_finished_store_is_refused(recipe):
    partitioned = _of(recipe, "sliced", 2)
    prepare(partitioned)
    with pytest.raises(ConfigError, match=r"this store is finished; leave data\.partition out"):
        prepare_single_partition(partitioned, 0)


def test_the_report_of_a_slice_says_what_to_do_next(recipe, console):
    prepare_and_report(_of(recipe, "sliced", 2, partition=1), console)
    assert "slice 1 of 2 is done; once all are in" in console.export_text()


def test_a_mended_file_is_read_on_behind_the_finished_shards(recipe, tmp_path):
    path = tmp_path / "first" / "1.jsonl"
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:25], b"{half a line\n", *lines[25:]]))
    broken = _of(recipe, "broken", 1)
    with pytest.raises(ConfigError, match=r"first/1\.jsonl, line 26: not JSON"):
        prepare(broken)
    folder = partition_folder(_partial(broken), 0, 1)
    finished = PartitionRecord.read(folder)
    assert finished.next_input_file == 1 and finished.position.rows > 0
    path.write_bytes(good)
    shards = {shard.file: (folder / shard.file).stat() for shard in finished.shards["train"]}
    prepare_single_partition(broken, 0)
    assert {name: (folder / name).stat() for name in shards} == shards
