"""Tests of `mosaicbert predict`: predictions of tables in all formats, by several models."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from mosaicbert.cli import main
from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.task import predict
from mosaicbert.finetune.task.predict import predict_file
from tests.finetune.encoders import load_test_classifier

_NAMES = ("a", "b|c")
_TEXTS = ["returns the value", "raises", "returns a new list of the items, of the value", "the shape"]


@pytest.fixture
def save_model(request, tmp_path):
    """Function that saves a classifier, and returns its folder and itself."""

    def save(fixture="mosaicbert_folder", problem_type=SINGLE_LABEL):
        source = request.getfixturevalue(fixture)
        model = load_test_classifier(source, 1 if problem_type == REGRESSION else 2, problem_type)
        torch.manual_seed(0)
        for parameter in model.parameters():  # so that the predictions differ
            parameter.data += 0.3 * torch.randn_like(parameter)
        if problem_type != REGRESSION:
            model.config.id2label = dict(enumerate(_NAMES))
        model.save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "model")
        return str(tmp_path / "model"), model.eval()

    return save


def write_table(path, texts=_TEXTS, column="text"):
    rows = [{"id": f"0{index}", column: text} for index, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_table(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def logits_of(folder, model, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize("fixture", ["mosaicbert_folder", "bert_folder"])
@pytest.mark.parametrize("batch_tokens, chunk", [(1, 3), (12, 10), (4096, 2)])
def test_the_rows_have_the_probabilities_of_the_model(fixture, batch_tokens, chunk, save_model, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(predict, "_CHUNK", chunk)
    folder, model = save_model(fixture)
    output = predict_file(folder, write_table(tmp_path / "new.jsonl"), Console(quiet=True))
    assert output == tmp_path / "new.predictions.jsonl"
    rows = read_table(output)
    assert [(row["id"], row["text"]) for row in rows] == [(f"0{index}", text) for index, text in enumerate(_TEXTS)]
    expected = logits_of(folder, model, _TEXTS).softmax(1)
    actual = torch.tensor([[row["probabilities"][name] for name in _NAMES] for row in rows])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert [row["predicted"] for row in rows] == [_NAMES[index] for index in expected.argmax(1)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_every_format_is_converted_to_every_other(suffix, target, save_model, tmp_path):
    folder, _ = save_model()
    output = tmp_path / f"out{target}"
    assert predict_file(folder, write_table(tmp_path / f"new{suffix}"), Console(quiet=True), output=output) == output
    rows = read_table(output)
    assert [row["id"] for row in rows] == ["00", "01", "02", "03"]  # not read as a number
    assert {row["predicted"] for row in rows} <= set(_NAMES)
    if target == ".csv":
        probabilities = [[float(row[f"probability of {name}"]) for name in _NAMES] for row in rows]
    else:
        probabilities = [[row["probabilities"][name] for name in _NAMES] for row in rows]
    assert all(sum(row) == pytest.approx(1.0, abs=1e-5) for row in probabilities)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_labels_are_lists_or_separated_names(suffix, save_model, tmp_path):
    folder, model = save_model(problem_type=MULTI_LABEL)
    rows = read_table(predict_file(folder, write_table(tmp_path / f"new{suffix}"), Console(quiet=True)))
    expected = [
        [name for name, applies in zip(_NAMES, row, strict=True) if applies]
        for row in logits_of(folder, model, _TEXTS) > 0
    ]
    assert [row["predicted"] for row in rows] == [";".join(names) if suffix == ".csv" else names for names in expected]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_numbers_are_predicted_without_probabilities(suffix, save_model, tmp_path):
    folder, model = save_model(problem_type=REGRESSION)
    rows = read_table(predict_file(folder, write_table(tmp_path / f"new{suffix}"), Console(quiet=True)))
    assert [set(row) for row in rows] == [{"id", "text", "predicted"}] * len(_TEXTS)
    actual = torch.tensor([float(row["predicted"]) for row in rows])
    torch.testing.assert_close(actual, logits_of(folder, model, _TEXTS)[:, 0], atol=1e-5, rtol=1e-5)


def test_the_command_prints_the_path_and_reads_the_named_column(save_model, tmp_path, capsys):
    folder, _ = save_model()
    path = write_table(tmp_path / "new.csv", column="review")
    with pytest.raises(SystemExit) as exit_info:
        main(["predict", folder, str(path), "--text-columns", "review"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new.predictions.csv'}\n"


@pytest.mark.parametrize(
    "texts, column, options, message",
    [
        (_TEXTS, "review", {}, "must have a column 'text', got id, review"),
        (_TEXTS, "predicted", {"text_columns": ["predicted"]}, "must have no column 'predicted'"),
        (_TEXTS, "text", {"text_columns": ["a", "b", "c"]}, "must be one or two column names, got a, b, c"),
        (
            _TEXTS,
            "text",
            {"output": Path("out.json")},
            r"`--output` must be one of \.jsonl, \.csv, \.parquet, got out\.json",
        ),
    ],
)
def test_a_table_that_cannot_be_predicted_is_an_error(texts, column, options, message, save_model, tmp_path):
    folder, _ = save_model()
    path = write_table(tmp_path / "new.jsonl", texts, column)
    with pytest.raises(ConfigError, match=message):
        predict_file(folder, path, Console(quiet=True), **options)
    assert not list(tmp_path.glob("*.predictions*"))


def test_a_table_without_rows_is_an_error(save_model, tmp_path):
    folder, _ = save_model()
    (tmp_path / "new.csv").write_text("id,text\n")
    with pytest.raises(ConfigError, match="must have at least one row, got none"):
        predict_file(folder, tmp_path / "new.csv", Console(quiet=True))


def test_a_folder_without_a_classifier_is_an_error(tmp_path):
    path = write_table(tmp_path / "new.jsonl")
    with pytest.raises(ConfigError, match=r"must be a fine-tuned classifier, got .* Run `mosaicbert finetune` first"):
        predict_file(str(tmp_path), path, Console(quiet=True))
