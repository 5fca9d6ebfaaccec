"""Tests of GLUE datasets: complete, missing, partial and invalid data."""

import json
import re

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS, GlueConfig, ProtocolChange
from mosaicbert.finetune.glue.dataset import find_tasks, read_glue_task
from mosaicbert.finetune.tables import get_text_columns, read_file
from tests.finetune.glue.glue_folder import NUM_TRAIN, NUM_VALIDATION, write_glue


def _config(folder, **changes):
    return GlueConfig(model="m", data=str(folder), **({"partial_data": True} | changes))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_read_with_all_columns_and_splits(task, tmp_path):
    data = read_glue_task(_config(write_glue(tmp_path)), task)
    assert data.is_partial
    assert len(data.train.texts) == len(TASKS[task].columns)
    assert len(data.train) == len(data.train.labels) == NUM_TRAIN
    assert set(data.validation) == ({"_matched", "_mismatched"} if task == "mnli" else {""})
    assert all(len(examples) == NUM_VALIDATION for examples in data.validation.values())
    assert data.train.texts[0][0].endswith(f"{TASKS[task].columns[0]} 0")


def test_missing_and_partial_tasks_are_skipped_with_a_reason(tmp_path):
    folder = write_glue(tmp_path, missing={"qqp", ("qnli", "validation")})
    sizes = {"train": 8551, "validation": 1043}
    for split, size in sizes.items():
        path = folder / "cola" / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"sentence": "a", "label": 0}) + "\n" for _ in range(size)))
    summaries, skip_reasons = find_tasks(_config(folder, partial_data=False, init_from_mnli=False))
    assert {task: summary.sizes for task, summary in summaries.items()} == {"cola": sizes}
    assert set(skip_reasons) == set(TASKS) - {"cola"}
    assert skip_reasons["qqp"].startswith(f"{folder / 'qqp'} does not have train")
    counts = f"{folder / 'qnli' / 'train.jsonl'} has 24 of 104,743 examples; set glue.partial_data="
    assert skip_reasons["qnli"].startswith(counts)
    summaries, skip_reasons = find_tasks(_config(folder, init_from_mnli=False))
    assert set(summaries) == set(TASKS) - {"qqp", "qnli"}
    assert skip_reasons["qnli"].startswith(f"{folder / 'qnli'} does not have validation")
    assert not read_glue_task(_config(folder, init_from_mnli=False), "cola").is_partial


def test_files_named_partial_are_read_only_with_partial_data(tmp_path):
    folder = write_glue(tmp_path)
    for path in (folder / "mnli").glob("*.jsonl"):
        path.rename(path.with_name(f"{path.stem}_partial.jsonl"))
    summaries, _ = find_tasks(_config(folder))
    with pytest.raises(ConfigError, match=r"RTE in .* must have all examples .* Set glue\.partial_data=true"):
        read_glue_task(_config(folder, partial_data=False), "rte")
    assert summaries["mnli"].sizes == {"train": 24, "validation_matched": 12, "validation_mismatched": 12}
    with pytest.raises(ConfigError, match=r"with none: .* only a partial train split; set glue\.partial_data="):
        find_tasks(_config(folder, partial_data=False, init_from_mnli=False, tasks=["mnli"]))


def test_the_digest_depends_on_texts_and_labels_but_not_on_the_file_format(tmp_path):
    json_lines, parquet, different = (write_glue(tmp_path / name) for name in ("json_lines", "parquet", "different"))
    for path in tmp_path.glob("*/stsb/train.jsonl"):
        path.write_text(path.read_text().replace('"label": 5.0', '"label": 3.8'))  # 3.8 is rounded in fp32
    for path in parquet.glob("*/*.jsonl"):
        rows = read_file(path)
        if pa.types.is_floating(rows["label"].type):
            rows = rows.set_column(rows.column_names.index("label"), "label", rows["label"].cast(pa.float32()))
        pyarrow.parquet.write_table(rows, path.with_suffix(".parquet"))
        path.unlink()
    changed = different / "rte" / "train.jsonl"
    changed.write_text(changed.read_text().replace("sentence1 3", "another 3"))
    summaries = [find_tasks(_config(folder))[0] for folder in (json_lines, parquet, different)]
    assert summaries[0] == summaries[1]
    assert {task for task in TASKS if summaries[0][task] != summaries[2][task]} == {"rte"}


def test_tasks_initialized_from_mnli_need_its_data(tmp_path):
    folder = write_glue(tmp_path, missing={"mnli"})
    message = (
        r"`glue\.init_from_mnli=true` is not supported for mrpc, stsb, rte without .*set glue\.init_from_mnli=false"
    )
    with pytest.raises(ConfigError, match=message):
        find_tasks(_config(folder))
    with pytest.raises(ConfigError, match=r"glue\.tasks does not include it"):
        find_tasks(_config(write_glue(tmp_path), tasks=["rte"]))
    assert list(find_tasks(_config(folder, tasks=["cola"]))[0]) == ["cola"]


def test_tasks_of_the_hub_initialized_from_mnli_need_its_data():
    with pytest.raises(ConfigError, match=r"glue\.tasks does not include it"):
        find_tasks(GlueConfig(model="m", tasks=["rte"]))


@pytest.mark.parametrize("folder", ["../no/such", "/no/such", "no/such/folder"])
def test_a_missing_folder_is_not_requested_from_the_hub(folder):
    with pytest.raises(ConfigError, match="must be an existing folder or the name of a Hub dataset"):
        find_tasks(GlueConfig(model="m", data=folder))


def test_parquet_shards_of_a_hub_copy_are_read(tmp_path):
    table = read_file(write_glue(tmp_path / "jsonl") / "rte" / "train.jsonl")
    folder = tmp_path / "hub" / "rte"
    folder.mkdir(parents=True)
    for index, shard in enumerate((table[:10], table[10:])):
        pyarrow.parquet.write_table(shard, folder / f"train-0000{index}-of-00002.parquet")
    pyarrow.parquet.write_table(table[:5], folder / "validation-00000-of-00001.parquet")
    config = _config(tmp_path / "hub", tasks=["rte"], init_from_mnli=False)
    assert find_tasks(config)[0]["rte"].sizes == {"train": 24, "validation": 5}
    assert read_glue_task(config, "rte").train.texts[0] == table["sentence1"].to_pylist()


def test_texts_of_a_long_csv_may_contain_line_breaks(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + '"a\nb, and more of it, again and again",1\n' * 60_000)
    assert read_file(path).num_rows == 60_000


def test_required_columns_of_a_csv_are_read_as_strings(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("text,label,number\n01,true,1\n2,false,2\n")
    assert read_file(path, ["text", "label", "no such column"]).to_pylist() == [
        {"text": "01", "label": "true", "number": 1},
        {"text": "2", "label": "false", "number": 2},
    ]


def test_a_line_of_json_may_be_long(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "a" * 3_000_000}) + "\n")
    assert read_file(path).num_rows == 1


@pytest.mark.parametrize(
    "task, labels, message",
    [
        ("rte", [0, 1, 2], "RTE label in .*, row 3, must be a class from 0 to 1, got 2"),
        ("rte", [0, -1, 1], "row 2, .* got -1"),
        ("rte", [0.5, 1.0, 0.0], r"row 1, .* got 0\.5"),
        ("mnli", ["neutral"] * 3, "MNLI label in .*, row 1, must be a class from 0 to 2, got 'neutral'"),
        ("stsb", [1.5, None, 2.0], "STS-B label in .*, row 2, must be a finite number, got None"),
    ],
)
def test_an_invalid_label_is_rejected(task, labels, message, tmp_path):
    path = write_glue(tmp_path) / task / "train.jsonl"
    rows = [
        json.loads(line) | {"label": label} for line, label in zip(path.read_text().splitlines(), labels, strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=message):
        read_glue_task(_config(tmp_path), task)


def test_parquet_csv_and_json_lines_give_equal_tables(tmp_path):
    json_lines = write_glue(tmp_path / "jsonl") / "rte" / "train.jsonl"
    table = read_file(json_lines)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "train.csv")
    for name in ("train.parquet", "train.csv"):
        assert read_file(tmp_path / name).to_pydict() == table.to_pydict()


def test_all_string_types_of_arrow_are_read_as_text():
    texts = pa.array(["a", "b", "a"])
    for column in (texts.dictionary_encode(), texts.cast(pa.large_string()), texts.cast(pa.string_view())):
        assert get_text_columns(pa.table({"sentence": column}), ("sentence",), "t.csv") == (["a", "b", "a"],)


def test_strings_of_json_are_not_converted_to_dates(tmp_path):
    path = tmp_path / "mixed.JSONL"
    path.write_text('{"text": "2020-01-01", "meta": 1}\n\n{"meta": {"a": [true]}, "text": "2021-02-03", "late": 0.5}\n')
    assert read_file(path).to_pydict() == {
        "text": ["2020-01-01", "2021-02-03"],
        "late": [None, 0.5],
    }


@pytest.mark.parametrize(
    "cells, message",
    [
        ('["a"] "b"', "lists or objects are mixed with other types"),
        (r'"a \ud83d" "b"', "surrogates not allowed"),
    ],
)
def test_an_invalid_json_column_is_rejected_only_if_it_is_required(cells, message, tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(f'{{"text": {cell}, "label": 1}}\n' for cell in re.findall(r'\[.*?\]|".*?"', cells)))
    with pytest.raises(ConfigError, match=f"Column 'text' of .* cannot be used \\(.*{message}"):
        read_file(path, ["text"])
    assert read_file(path, ["label"]).to_pydict() == {"label": [1, 1]}


def test_a_json_column_of_mixed_scalars_is_read_as_strings(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"label": 1}\n{"label": "x"}\n{"label": true}\n')
    assert read_file(path, ["label"]).to_pydict() == {"label": ["1", "x", "true"]}


def test_a_cell_of_a_csv_may_be_long(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f"text,label\n{'a' * 3_000_000},0\n" * 2)
    assert read_file(path, ["text"]).num_rows == 3


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"text": ["a"]}, r"t\.csv must have a column 'sentence', got text"),
        ({"sentence": [1]}, r"Column 'sentence' of t\.csv must contain text, got int64"),
        ({"sentence": ["a", None]}, r"Column 'sentence' of t\.csv must contain text in every row, got 1 empty cells"),
    ],
)
def test_a_missing_or_invalid_text_column_is_rejected(columns, message):
    with pytest.raises(ConfigError, match=message):
        get_text_columns(pa.table(columns), ("sentence",), "t.csv")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "x", r"must be one of \.jsonl, \.csv, \.parquet, got \.txt"),
        ("missing.jsonl", None, "cannot be read"),
        ("broken.jsonl", '{"a": 1}\n{"a": 1', "line 2, must be valid JSON"),
        ("empty.jsonl", "\n", "must have at least one row, got none"),
        ("list.jsonl", "[1, 2]", "line 1, must be a JSON object, got list"),
        ("twice.csv", "text,text\na,b\n", "must be distinct, got 'text' several times"),
        ("broken.parquet", "no", "cannot be read"),
    ],
)
def test_an_invalid_table_file_is_rejected(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_file(tmp_path / name)


def test_only_complete_tasks_of_the_shared_data_need_no_partial_data(shared_folder):
    config = GlueConfig(model="m", data=str(shared_folder / "data" / "glue"), init_from_mnli=False)
    summaries, skip_reasons = find_tasks(config)
    assert list(summaries) == ["cola", "sst2", "mrpc", "stsb", "rte"]
    assert set(skip_reasons) == {"qqp", "mnli", "qnli"}
    summaries, _ = find_tasks(GlueConfig(model="m", data=config.data, partial_data=True))
    assert set(summaries) == set(TASKS)


def _rows(examples):
    return list(zip(*examples.texts, examples.labels, strict=True))


@pytest.mark.parametrize("task", ["cola", "mnli", "stsb"])
def test_tuning_examples_and_a_subset_are_disjoint_parts_of_the_training_examples(task, tmp_path):
    folder = write_glue(tmp_path)
    protocol = {task: ProtocolChange(train_examples=9)}
    config = _config(folder, tuning_examples=5, protocol=protocol)
    whole, data = read_glue_task(_config(folder), task), read_glue_task(config, task)
    train = _rows(data.train)
    assert set(data.validation) == set(whole.validation)
    for examples in data.validation.values():
        tuning = _rows(examples)
        assert (len(train), len(tuning)) == (9, 5)
        assert not set(train) & set(tuning)
        assert set(train) | set(tuning) <= set(_rows(whole.train))
    assert data.is_partial
    assert read_glue_task(config, task) == data


def test_a_subset_has_the_whole_validation_split(tmp_path):
    folder = write_glue(tmp_path)
    whole = read_glue_task(_config(folder), "rte")
    data = read_glue_task(_config(folder, protocol={"rte": ProtocolChange(train_examples=9)}), "rte")
    assert data.validation == whole.validation
    assert len(data.train) == 9


def test_too_few_training_examples_are_an_error(tmp_path):
    folder = write_glue(tmp_path)
    config = _config(folder, tuning_examples=20, protocol={"rte": ProtocolChange(train_examples=5)})
    with pytest.raises(ConfigError, match=r"RTE must have at least 25 training examples, got 24\. Lower `glue.tuning"):
        read_glue_task(config, "rte")
    with pytest.raises(ConfigError, match="must have at least 25 training examples"):
        read_glue_task(_config(folder, tuning_examples=24), "rte")
