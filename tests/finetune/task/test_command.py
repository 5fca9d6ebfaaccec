"""Tests of `mosaicbert finetune`: data, training, predictions, report and export."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe, TaskDataConfig
from mosaicbert.config.load import save_recipe
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.task.command import finetune
from mosaicbert.finetune.task.dataset import read_task_dataset
from mosaicbert.finetune.task.demo_dataset import read_demo_examples
from mosaicbert.finetune.task.labels import LabelSet
from mosaicbert.finetune.task.plots import draw_predictions

_WORDS = ("returns", "raises", "list")


def _write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _rows(num_rows, label=lambda index: f"class {index % 2}", **columns):
    return [
        {"text": f"{_WORDS[index % 2]} the value {index} of the object", "label": label(index)}
        | {name: f"{value} {index}" for name, value in columns.items()}
        for index in range(num_rows)
    ]


def _recipe(model, folder, data, **train):
    fast = {"epochs": 10, "batch_size": 8, "peak_lr": 5e-3, "max_seq_len": 32, "precision": "fp32"}
    return FinetuneRecipe(
        run_name="task", runs_folder=str(folder), model=str(model), data=data, train=FinetuneConfig(**(fast | train))
    )


def _lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def fine_tuned(finished, tmp_path_factory):
    """Recipe, run folder and console output of a fine-tuning that logs every step."""
    folder = tmp_path_factory.mktemp("finetune")
    data = TaskDataConfig(
        train=_write(folder / "train.csv", _rows(40)),
        validation=_write(folder / "valid.jsonl", _rows(12)),
        predict=_write(folder / "new.jsonl", [{"text": "raises ä value"}, {"text": "returns it"}]),
    )
    recipe = _recipe(finished[1].path, folder, data, compare_with_random_weights=True)
    console = Console(record=True, width=150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mosaicbert.finetune.trainer._LOG_INTERVAL_SECONDS", 0.0)
        return recipe, finetune(recipe, console), console.export_text()


def test_classes_are_learned_and_metrics_are_written(fine_tuned):
    _, folder, output = fine_tuned
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"] == {"accuracy": 1.0, "macro_f1": 1.0, "matthews_correlation": 1.0}
    assert metrics["classes"]["class 1"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "examples": 6}
    assert set(metrics["random_weights"]) == set(metrics["validation"])
    assert metrics["examples"] == {"train": 40, "validation": 12}
    assert re.search(r"^accuracy: +1\.0000   \(random weights: ", output, flags=re.MULTILINE)
    assert re.search(r"^macro F1 \(mean over classes\): 1\.0000 ", output, flags=re.MULTILINE)
    assert "F1 by class: class 0 1.0000, class 1 1.0000\n" in output
    assert (
        len(re.findall(r"^step \d+/50  loss \d\.\d{3}  \d:\d\d:\d\d remaining$", output, flags=re.MULTILINE)) == 2 * 50
    )
    report = (folder / "report.md").read_text()
    assert "classes: class 0 20 (50.0%), class 1 20 (50.0%)\n" in output
    assert "- classes: class 0 20 (50.0%), class 1 20 (50.0%)\n" in report
    assert metrics["data"]["validation_in_training"] == 12
    assert "warning: 12 of 12 validation texts are also training texts" in output
    assert "| class 1 | 1.000 | 1.000 | 1.000 | 6 |" in report
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_predictions_of_all_examples_are_written(fine_tuned):
    _, folder, _ = fine_tuned
    lines = _lines(folder)
    assert [line["split"] for line in lines] == ["validation"] * 12 + ["predict"] * 2
    assert [line["predicted"] for line in lines[:12]] == [line["label"] for line in lines[:12]]
    assert lines[12]["texts"] == ["raises ä value"] and "label" not in lines[12]
    assert [line["predicted"] for line in lines[12:]] == ["class 1", "class 0"]
    assert all(sum(line["probabilities"].values()) == pytest.approx(1.0, abs=1e-5) for line in lines)


def test_the_exported_folder_loads_in_transformers(fine_tuned):
    _, folder, _ = fine_tuned
    classify = pipeline("text-classification", model=str(folder / "hf"), device="cpu")
    predictions = classify(["raises the value 7", "returns the value 3"])
    assert [prediction["label"] for prediction in predictions] == ["class 1", "class 0"]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "hf")
    assert model.config.problem_type == SINGLE_LABEL
    assert model.config.label2id == {"class 0": 0, "class 1": 1}


@pytest.mark.slow  # tests/export loads a classifier from remote code by default
def test_the_exported_folder_loads_without_this_package(fine_tuned):
    _, folder, _ = fine_tuned
    program = (
        "import sys\n"
        "sys.modules['mosaicbert'] = None\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({str(folder / 'hf')!r}, trust_remote_code=True)\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder / 'hf')!r}, trust_remote_code=True)\n"
        "inputs = tokenizer(['raises the value 7'], return_tensors='pt')\n"
        "print(model.eval()(**inputs).logits.argmax().item(), type(model).__module__)\n"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("1 transformers_modules.")


def test_a_finished_run_is_not_trained_again_and_rejects_a_different_recipe(fine_tuned):
    recipe, folder, _ = fine_tuned
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    console = Console(record=True, width=150)
    finetune(recipe, console)
    assert "this run is finished" in console.export_text()
    with pytest.raises(ConfigError, match=r"got different values of `train\.epochs` \(recorded: 10, now: 3\)"):
        finetune(replace(recipe, train=replace(recipe.train, epochs=3)), console)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_pretraining_run_folder_is_rejected_and_not_changed(finished, tmp_path):
    run = shutil.copytree(finished[1].path, tmp_path / "task", symlinks=True)
    before = sorted(run.rglob("*"))
    data = TaskDataConfig(train=_write(tmp_path / "train.csv", _rows(40)))
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        finetune(_recipe(run, tmp_path, data), Console(quiet=True))
    assert sorted(run.rglob("*")) == before


def test_a_multi_label_task_with_text_pairs_is_fine_tuned(finished, tmp_path):
    def names_of(index):
        return ["even"] * (index % 2 == 0) + ["multiple of 3"] * (index % 3 == 0)

    rows = _rows(60, label=names_of, other="with list")
    data = TaskDataConfig(
        train=_write(tmp_path / "train.jsonl", rows), text_columns=["text", "other"], kind="multi_label"
    )
    folder = finetune(_recipe(finished[1].hugging_face, tmp_path, data, epochs=2), Console(quiet=True))
    lines = _lines(folder)
    assert 1 <= len(lines) < 20
    assert all(set(line["probabilities"]) == {"even", "multiple of 3"} and len(line["texts"]) == 2 for line in lines)
    assert all(isinstance(line["predicted"], list) for line in lines)
    assert set(json.loads((folder / "metrics.json").read_text())["validation"]) == {
        "micro_f1",
        "macro_f1",
        "subset_accuracy",
        "label_accuracy",
    }


def test_balanced_weights_raise_the_probability_of_a_rare_class(finished, tmp_path):
    # The texts do not tell the class, so the probabilities become those of the classes in the loss: 0.1 and 0.5.
    rows = [{"text": f"returns the value {index}", "label": index % 10 == 0} for index in range(60)]
    path = _write(tmp_path / "train.jsonl", rows)
    probabilities = {}
    for weights in ("none", "balanced"):
        data = TaskDataConfig(train=path, validation=path)
        recipe = _recipe(finished[1].hugging_face, tmp_path, data, epochs=4, peak_lr=3e-3, class_weights=weights)
        folder = finetune(replace(recipe, run_name=weights), Console(quiet=True))
        probabilities[weights] = np.mean([line["probabilities"]["true"] for line in _lines(folder)])
    assert probabilities["none"] + 0.1 < probabilities["balanced"]


def test_class_weights_of_numbers_are_an_error(tmp_path):
    data = TaskDataConfig(train="train.csv", kind="regression")
    with pytest.raises(ConfigError, match=r"`train\.class_weights` must be none for `data\.kind=regression`"):
        _recipe("model", tmp_path, data, class_weights="balanced")


def test_the_dropout_is_that_of_the_recipe(finished, tmp_path):
    data = TaskDataConfig(train=_write(tmp_path / "train.csv", _rows(20)))
    recipe = _recipe(finished[1].hugging_face, tmp_path, data, epochs=1, dropout=0.25)
    config = json.loads((finetune(recipe, Console(quiet=True)) / "hf" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.25


def test_scores_of_the_positive_class_show_that_a_rare_class_is_not_found(finished, tmp_path):
    labels = ["fraud" if index % 20 == 0 else "legit" for index in range(60)]
    rows = [{"text": f"returns the value {index}", "label": label} for index, label in enumerate(labels)]
    path = _write(tmp_path / "train.csv", rows)
    data = TaskDataConfig(train=path, validation=path, positive_class="fraud")
    console = Console(record=True, width=150)
    folder = finetune(_recipe(finished[1].hugging_face, tmp_path, data, epochs=1, peak_lr=1e-5), console)
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = metrics["classes"]["fraud"]
    assert scores["examples"] == 3
    assert metrics["validation"]["f1"] == scores["f1"] and metrics["validation"]["recall"] == scores["recall"]
    output = console.export_text()
    assert re.search(rf"^F1 of fraud: +{scores['f1']:.4f}$", output, flags=re.MULTILINE)
    assert f"| recall of fraud | {scores['recall']:.4f} |" in (folder / "report.md").read_text()


# Labels of a new output layer near zero, and labels such as prices.
@pytest.mark.parametrize("low, high", [(0.0, 4.0), (20_000.0, 140_000.0)])
def test_a_regression_is_trained_in_fp32_with_any_precision(low, high, finished, tmp_path):
    rows = _rows(40, label=lambda index: (low, high)[index % 2])
    data = TaskDataConfig(train=_write(tmp_path / "train.csv", rows), kind="regression", validation_fraction=0.3)
    recipe = _recipe(finished[1].hugging_face, tmp_path, data, epochs=20, precision="bf16")
    recipe.run_folder.mkdir()
    save_recipe(replace(recipe, seed=1), recipe.run_folder / "recipe.yaml")  # of a failed run
    folder = finetune(recipe, Console(quiet=True))
    metrics = json.loads((folder / "metrics.json").read_text())["validation"]
    assert metrics["pearson"] > 0.9
    assert metrics["mean_squared_error"] < (0.2 * (high - low)) ** 2
    lines = _lines(folder)
    assert all(isinstance(line["predicted"], float) and "probabilities" not in line for line in lines)
    predictions = torch.tensor([line["predicted"] for line in lines])
    assert not torch.equal(predictions, predictions.bfloat16().float())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "hf").eval()
    inputs = AutoTokenizer.from_pretrained(folder / "hf")([lines[0]["texts"][0]], return_tensors="pt")
    with torch.no_grad():
        assert float(model(**inputs).logits) == pytest.approx(lines[0]["predicted"], abs=1e-4, rel=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"positive_class": "spam"}, "must be one of two classes, got 'spam' with class 0, class 1"),
        ({"positive_class": "class 0", "kind": "multi_label"}, r"must be null for `data\.kind=multi_label`"),
    ],
)
def test_an_invalid_positive_class_is_an_error(changes, message, tmp_path):
    path = _write(tmp_path / "train.jsonl", _rows(20))
    with pytest.raises(ConfigError, match=message):
        read_task_dataset(TaskDataConfig(train=path, **changes))


def test_a_positive_class_of_three_classes_is_an_error(tmp_path):
    path = _write(tmp_path / "train.jsonl", _rows(20, label=lambda index: index % 3))
    with pytest.raises(ConfigError, match="must be one of two classes, got '1' with 0, 1, 2"):
        read_task_dataset(TaskDataConfig(train=path, positive_class="1"))


def test_classes_of_a_hub_dataset_have_its_class_names(tmp_path):
    names = ["negative", "neutral", "positive"]
    texts = [f"text {index}" for index in range(30)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    labels = [index % 3 for index in range(30)]
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    data = read_task_dataset(TaskDataConfig(train=str(folder), validation="validation"))
    assert data.label_set.names == tuple(names)
    assert data.validation.labels == labels
    unknown = datasets.Dataset.from_dict({"text": texts, "label": [-1, *labels[1:]]}, features=features)
    unknown.to_parquet(folder / "train.parquet")
    with pytest.raises(ConfigError, match="row 1, must be a class name or a whole number, got None"):
        read_task_dataset(TaskDataConfig(train=str(folder)))


def test_multi_label_classes_of_a_hub_dataset_have_its_class_names(tmp_path):
    multi_label = datasets.Sequence(datasets.ClassLabel(names=["joy", "anger"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": multi_label})
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], "label": [[0], [0, 1], [], [1]]}, features=features
    )
    (tmp_path / "dataset").mkdir()
    rows.to_parquet(tmp_path / "dataset" / "train.parquet")
    data = read_task_dataset(TaskDataConfig(train=str(tmp_path / "dataset"), validation="train", kind="multi_label"))
    assert data.label_set == LabelSet(problem_type=MULTI_LABEL, names=("anger", "joy"))
    assert data.train.labels == [[0, 1], [1, 1], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train": "missing.csv"}, "cannot be read"),
        ({"label_column": "score"}, "must have a column 'score', got text, label"),
        ({"text_columns": ["words"]}, "must have a column 'words', got text, label"),
        (
            {"predict": "empty.csv", "validation_fraction": 0.5},
            r"`data\.predict` must be a file with at least one text, got empty\.csv",
        ),
        ({"validation": "valid.json"}, r"`data\.validation` must be a file .* got valid\.json"),
        ({"validation": "validation"}, r"`data\.validation` must be a file .* got validation"),
        ({"train": "single.csv"}, "must have at least one validation example, got none"),
        ({"kind": "regression", "validation_fraction": 0.5}, "must be a finite number"),
    ],
)
def test_invalid_data_are_rejected_before_anything_is_written(changes, message, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").write_text("text\n")
    Path("single.csv").write_text("text,label\nfirst,a\nsecond,b\n")  # one text of each class
    fields = {"train": _write(tmp_path / "train.jsonl", _rows(20))} | changes
    with pytest.raises(ConfigError, match=message):
        finetune(_recipe(finished[1].path, tmp_path, TaskDataConfig(**fields)), Console(quiet=True))
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("num_classes", [2, 30, 150])
def test_a_confusion_matrix_of_any_number_of_classes_is_drawn(num_classes):
    # A dollar sign must not start mathematical text.
    names = tuple(f"${index} long name of a class that is truncated" for index in range(num_classes))
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(num_classes, size=(2, 500))
    label_set = LabelSet(problem_type=SINGLE_LABEL, names=names)
    assert draw_predictions(label_set, targets, predictions, "t").startswith(b"\x89PNG")


def test_multi_label_and_regression_plots_are_drawn():
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(2, size=(2, 50, 3))
    multi_label = LabelSet(problem_type=MULTI_LABEL, names=("a", "b", "c"))
    assert draw_predictions(multi_label, targets, predictions, "t").startswith(b"\x89PNG")
    regression = LabelSet(problem_type=REGRESSION, names=())
    assert draw_predictions(regression, *rng.normal(size=(2, 50)), "t").startswith(b"\x89PNG")


@pytest.mark.slow
def test_demo_examples_are_balanced_and_do_not_contain_their_package_name():
    examples, packages = read_demo_examples(50)
    assert len(set(packages)) == 12
    assert all(packages.count(package) == 50 for package in set(packages))
    contains_name = [package.lower() in text.lower() for text, package in zip(examples.texts[0], packages, strict=True)]
    assert not any(contains_name)
    data = read_task_dataset(TaskDataConfig(train="installed-packages", validation_fraction=0.2))
    assert 0.1 < len(data.validation) / len(data.train) < 0.4
