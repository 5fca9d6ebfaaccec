"""GLUE's data: what is there, what is missing, and what is only a part."""

import json
import re

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS, GlueConfig
from mosaicbert.finetune.glue.dataset import find_tasks, read_glue_task
from mosaicbert.finetune.tables import get_text_columns, read_file
from tests.finetune.glue.glue_folder import NUM_TRAIN, NUM_VALIDATION, write_glue


def _config(folder, **changes):
    return GlueConfig(model="m", data=str(folder), **({"partial_data": True} | changes))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_read_with_its_columns_and_all_its_splits(task, tmp_path):
    data = read_glue_task(_config(write_glue(tmp_path)), task)
    assert data.is_partial
    assert len(data.train.texts) == len(TASKS[task].columns)
    assert len(data.train) == len(data.train.labels) == NUM_TRAIN
    assert set(data.validation) == ({"_matched", "_mismatched"} if task == "mnli" else {""})
    assert all(len(examples) == NUM_VALIDATION for examples in data.validation.values())
    assert data.train.texts[0][0].endswith(f"{TASKS[task].columns[0]} 0")


def test_what_is_missing_or_a_part_is_left_out_with_the_reason(tmp_path):
    folder = write_glue(tmp_path, skip_reasons={"qqp", ("qnli", "validation")})
    sizes = {"train": 8551, "validation": 1043}
    for split, size in sizes.items():
        path = folder / "cola" / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"sentence": "a", "label": 0}) + "\n" for _ in range(size)))
    found, skip_reasons = find_tasks(_config(folder, partial_data=False, init_from_mnli=False))
    assert {task: data.sizes for task, data in found.items()} == {"cola": sizes}
    assert set(skip_reasons) == set(TASKS) - {"cola"}
    assert skip_reasons["qqp"].startswith(f"{folder / 'qqp'}: no train")
    assert skip_reasons["qnli"].startswith(
        f"{folder / 'qnli' / 'train.jsonl'}: 24 examples of 104,743; glue.partial_data="
    )
    found, skip_reasons = find_tasks(_config(folder, init_from_mnli=False))
    assert set(found) == set(TASKS) - {"qqp", "qnli"}
    assert skip_reasons["qnli"].startswith(f"{folder / 'qnli'}: no validation")
    assert not read_glue_task(_config(folder, init_from_mnli=False), "cola").is_partial


def test_files_that_are_named_as_parts_are_taken_only_when_parts_are(tmp_path):
    folder = write_glue(tmp_path)
    for path in (folder / "mnli").glob("*.jsonl"):
        path.rename(path.with_name(f"{path.stem}_partial.jsonl"))
    found, _ = find_tasks(_config(folder))
    with pytest.raises(ConfigError, match=r"RTE has fewer examples than the official splits; glue\.partial_data=true"):
        read_glue_task(_config(folder, partial_data=False), "rte")
    assert found["mnli"].sizes == {"train": 24, "validation_matched": 12, "validation_mismatched": 12}
    with pytest.raises(
        ConfigError, match=r"no task can be scored: .*only a part of train is there; glue\.partial_data="
    ):
        find_tasks(_config(folder, partial_data=False, init_from_mnli=False, tasks=["mnli"]))


def test_data_are_known_by_what_they_hold_in_whatever_file_they_are(tmp_path):
    lines, table, other = (write_glue(tmp_path / name) for name in ("lines", "table", "other"))
    for path in tmp_path.glob("*/stsb/train.jsonl"):
        path.write_text(path.read_text().replace('"label": 5.0', '"label": 3.8'))  # no float32
    for path in table.glob("*/*.jsonl"):
        rows = read_file(path)
        if pa.types.is_floating(rows["label"].type):
            rows = rows.set_column(rows.column_names.index("label"), "label", rows["label"].cast(pa.float32()))
        pyarrow.parquet.write_table(rows, path.with_suffix(".parquet"))
        path.unlink()
    changed = other / "rte" / "train.jsonl"
    changed.write_text(changed.read_text().replace("sentence1 3", "another 3"))
    found = [find_tasks(_config(folder))[0] for folder in (lines, table, other)]
    assert found[0] == found[1]
    assert {task for task in TASKS if found[0][task] != found[2][task]} == {"rte"}


def test_the_chain_needs_mnli(tmp_path):
    folder = write_glue(tmp_path, skip_reasons={"mnli"})
    with pytest.raises(
        ConfigError, match=r"init_from_mnli=true begins mrpc, stsb, rte .* not there .*set glue.init_from_mnli=false"
    ):
        find_tasks(_config(folder))
    with pytest.raises(ConfigError, match=r"glue\.tasks leaves it out"):
        find_tasks(_config(write_glue(tmp_path), tasks=["rte"]))
    assert list(find_tasks(_config(folder, tasks=["cola"]))[0]) == ["cola"]


def test_the_chain_needs_mnli_of_the_hub_as_well():
    with pytest.raises(ConfigError, match=r"glue\.tasks leaves it out"):
        find_tasks(GlueConfig(model="m", tasks=["rte"]))


@pytest.mark.parametrize("folder", ["../no/such", "/no/such", "no/such/folder"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(folder):
    with pytest.raises(ConfigError, match="no such folder"):
        find_tasks(GlueConfig(model="m", data=folder))


def test_shards_are_read_as_the_hub_has_them(tmp_path):
    table = read_file(write_glue(tmp_path / "jsonl") / "rte" / "train.jsonl")
    folder = tmp_path / "hub" / "rte"
    folder.mkdir(parents=True)
    for number, part in enumerate((table[:10], table[10:])):
        pyarrow.parquet.write_table(part, folder / f"train-0000{number}-of-00002.parquet")
    pyarrow.parquet.write_table(table[:5], folder / "validation-00000-of-00001.parquet")
    config = _config(tmp_path / "hub", tasks=["rte"], init_from_mnli=False)
    assert find_tasks(config)[0]["rte"].sizes == {"train": 24, "validation": 5}
    assert read_glue_task(config, "rte").train.texts[0] == table["sentence1"].to_pylist()


def test_a_long_csv_may_have_line_breaks_in_its_texts(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + '"a\nb, and more of it, again and again",1\n' * 60_000)
    assert read_file(path).num_rows == 60_000


def test_cells_of_a_csv_are_taken_as_they_are_written_where_text_is_asked_for(tmp_path):
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
        ("rte", [0, 1, 2], "row 3 has label 2; RTE has a class from 0 to 1"),
        ("rte", [0, -1, 1], "row 2 has label -1"),
        ("rte", [0.5, 1.0, 0.0], "row 1 has label 0.5"),
        ("mnli", ["neutral"] * 3, "row 1 has label 'neutral'; MNLI has a class from 0 to 2"),
        ("stsb", [1.5, None, 2.0], "row 2 has label None; STS-B has a number"),
    ],
)
def test_a_label_that_the_task_does_not_have_is_refused(task, labels, message, tmp_path):
    path = write_glue(tmp_path) / task / "train.jsonl"
    rows = [
        json.loads(line) | {"label": label} for line, label in zip(path.read_text().splitlines(), labels, strict=False)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=message):
        read_glue_task(_config(tmp_path), task)


def test_parquet_and_csv_are_read_like_lines_of_json(tmp_path):
    lines = write_glue(tmp_path / "jsonl") / "rte" / "train.jsonl"
    table = read_file(lines)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "train.csv")
    for name in ("train.parquet", "train.csv"):
        assert read_file(tmp_path / name).to_pydict() == table.to_pydict()


def test_texts_are_texts_however_parquet_holds_them():
    texts = pa.array(["a", "b", "a"])
    for column in (texts.dictionary_encode(), texts.cast(pa.large_string()), texts.cast(pa.string_view())):
        assert get_text_columns(pa.table({"sentence": column}), ("sentence",), "here") == (["a", "b", "a"],)


def test_cells_of_json_are_what_they_are_written_as(tmp_path):
    path = tmp_path / "mixed.JSONL"
    path.write_text('{"text": "2020-01-01", "meta": 1}\n\n{"meta": {"a": [true]}, "text": "2021-02-03", "late": 0.5}\n')
    assert read_file(path).to_pydict() == {
        "text": ["2020-01-01", "2021-02-03"],
        "late": [None, 0.5],
    }


@pytest.mark.parametrize(
    "cells, message",
    [
        ('["a"] "b"', "lists or objects stand beside cells of other kinds"),
        (r'"a \ud83d" "b"', "surrogates not allowed"),
    ],
)
def test_a_column_of_json_that_is_asked_for_is_of_one_kind_or_of_plain_cells(cells, message, tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(f'{{"text": {cell}, "label": 1}}\n' for cell in re.findall(r'\[.*?\]|".*?"', cells)))
    with pytest.raises(ConfigError, match=f"column 'text' cannot be used: .*{message}"):
        read_file(path, ["text"])
    assert read_file(path, ["label"]).to_pydict() == {"label": [1, 1]}
    path.write_text('{"label": 1}\n{"label": "x"}\n{"label": true}\n')
    assert read_file(path, ["label"]).to_pydict() == {"label": ["1", "x", "true"]}


def test_a_cell_of_a_csv_may_be_long(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text(f"text,label\n{'a' * 3_000_000},0\n" * 2)
    assert read_file(path, ["text"]).num_rows == 3


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"text": ["a"]}, "has no column 'sentence'; it has text"),
        ({"sentence": [1]}, "column 'sentence' holds int64; name one of text"),
        ({"sentence": ["a", None]}, "column 'sentence' has 1 rows without text; leave them out"),
    ],
)
def test_a_column_that_is_no_text_is_refused(columns, message):
    with pytest.raises(ConfigError, match=f"here: {message}"):
        get_text_columns(pa.table(columns), ("sentence",), "here")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "x", "is no table; give .jsonl, .csv, .parquet"),
        ("missing.jsonl", None, "cannot be read"),
        ("broken.jsonl", '{"a": 1}\n{"a": 1', "cannot be read: line 2"),
        ("empty.jsonl", "\n", "cannot be read: it has no rows"),
        ("list.jsonl", "[1, 2]", "line 1 is no object with named fields"),
        ("twice.csv", "text,text\na,b\n", "has several columns 'text'; give each a name of its own"),
        ("broken.parquet", "no", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_file(tmp_path / name)


def test_the_real_data_are_whole_where_they_are_said_to_be(shared_folder):
    config = GlueConfig(model="m", data=str(shared_folder / "data" / "glue"), init_from_mnli=False)
    found, skip_reasons = find_tasks(config)
    assert list(found) == ["cola", "sst2", "mrpc", "stsb", "rte"]
    assert set(skip_reasons) == {"qqp", "mnli", "qnli"}
    found, _ = find_tasks(GlueConfig(model="m", data=config.data, partial_data=True))
    assert set(found) == set(TASKS)
