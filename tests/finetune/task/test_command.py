"""`mosaicbert finetune`: from files to a folder that Hugging Face's users load."""

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
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe, TaskDataConfig
from mosaicbert.config.load import save_recipe
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.task.command import finetune
from mosaicbert.finetune.task.dataset import _is_in_validation, read_task_dataset
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


def _rows(number, label=lambda index: f"class {index % 2}", **more):
    return [
        {"text": f"{_WORDS[index % 2]} the value {index} of the object", "label": label(index)}
        | {name: f"{value} {index}" for name, value in more.items()}
        for index in range(number)
    ]


def _recipe(model, folder, data, **train):
    fast = {"epochs": 10, "batch_size": 8, "peak_lr": 5e-3, "max_seq_len": 32, "precision": "fp32"}
    return FinetuneRecipe(
        run_name="mine", runs_folder=str(folder), model=str(model), data=data, train=FinetuneConfig(**(fast | train))
    )


def _lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tuned(finished, tmp_path_factory):
    """A fine-tuning that says how it goes after every step."""
    folder = tmp_path_factory.mktemp("own")
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


def test_classes_are_learnt_measured_and_written_down(tuned):
    _, folder, said = tuned
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["validation"] == {"accuracy": 1.0, "f1": 1.0, "matthews_correlation": 1.0}
    assert set(metrics["random_weights"]) == set(metrics["validation"])
    assert metrics["examples"] == {"train": 40, "validation": 12}
    assert "accuracy:             1.0000   (from random weights" in said
    assert len(re.findall(r"^step \d+/50  loss \d\.\d{3}  \d:\d\d:\d\d left$", said, flags=re.MULTILINE)) == 2 * 50
    report = (folder / "report.md").read_text()
    assert "| class 1 | 1.000 | 1.000 | 1.000 | 6 |" in report
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_every_example_has_a_line_with_its_prediction(tuned):
    _, folder, _ = tuned
    lines = _lines(folder)
    assert [line["split"] for line in lines] == ["validation"] * 12 + ["predict"] * 2
    assert [line["predicted"] for line in lines[:12]] == [line["label"] for line in lines[:12]]
    assert lines[12]["texts"] == ["raises ä value"] and "label" not in lines[12]
    assert [line["predicted"] for line in lines[12:]] == ["class 1", "class 0"]
    assert all(sum(line["probabilities"].values()) == pytest.approx(1.0, abs=1e-5) for line in lines)


def test_the_folder_is_one_of_hugging_face(tuned):
    _, folder, _ = tuned
    classify = pipeline("text-classification", model=str(folder / "hf"), device="cpu")
    assert [found["label"] for found in classify(["raises the value 7", "returns the value 3"])] == [
        "class 1",
        "class 0",
    ]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "hf")
    assert model.config.problem_type == SINGLE_LABEL
    assert model.config.label2id == {"class 0": 0, "class 1": 1}


def test_the_folder_loads_where_this_package_is_not(tuned):
    _, folder, _ = tuned
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


def test_a_finished_run_is_not_trained_again_and_another_recipe_is_refused(tuned):
    recipe, folder, _ = tuned
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    console = Console(record=True, width=150)
    finetune(recipe, console)
    assert "this run is finished" in console.export_text()
    with pytest.raises(ConfigError, match=r"differs in train\.epochs \(10 there, 3 now\)"):
        finetune(replace(recipe, train=replace(recipe.train, epochs=3)), console)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_folder_of_a_pretraining_is_left_alone(finished, tmp_path):
    run = shutil.copytree(finished[1].path, tmp_path / "mine", symlinks=True)
    before = sorted(run.rglob("*"))
    data = TaskDataConfig(train=_write(tmp_path / "train.csv", _rows(40)))
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        finetune(_recipe(run, tmp_path, data), Console(quiet=True))
    assert sorted(run.rglob("*")) == before


def test_several_labels_and_pairs_of_texts(finished, tmp_path):
    def topics(index):
        return ["even"] * (index % 2 == 0) + ["threes"] * (index % 3 == 0)

    rows = _rows(60, label=topics, other="with list")
    data = TaskDataConfig(
        train=_write(tmp_path / "train.jsonl", rows), text_columns=["text", "other"], kind="multi_label"
    )
    folder = finetune(_recipe(finished[1].hugging_face, tmp_path, data, epochs=2), Console(quiet=True))
    lines = _lines(folder)
    assert 1 <= len(lines) < 20
    assert all(set(line["probabilities"]) == {"even", "threes"} and len(line["texts"]) == 2 for line in lines)
    assert all(isinstance(line["predicted"], list) for line in lines)
    assert set(json.loads((folder / "metrics.json").read_text())["validation"]) == {"accuracy", "f1"}


def test_numbers_are_predicted_in_fp32_whatever_the_recipe_says_of_classes(finished, tmp_path):
    rows = _rows(40, label=lambda index: 4.0 * (index % 2))
    data = TaskDataConfig(train=_write(tmp_path / "train.csv", rows), kind="regression", validation_fraction=0.3)
    recipe = _recipe(finished[1].hugging_face, tmp_path, data, epochs=20, precision="bf16")
    recipe.run_folder.mkdir()
    save_recipe(replace(recipe, seed=1), recipe.run_folder / "recipe.yaml")  # of a run that failed and was mended
    folder = finetune(recipe, Console(quiet=True))
    metrics = json.loads((folder / "metrics.json").read_text())["validation"]
    assert metrics["pearson"] > 0.9
    lines = _lines(folder)
    assert all(isinstance(line["predicted"], float) and "probabilities" not in line for line in lines)
    predicted = torch.tensor([line["predicted"] for line in lines])
    assert not torch.equal(predicted, predicted.bfloat16().float())
    model = AutoModelForSequenceClassification.from_pretrained(folder / "hf").eval()
    inputs = AutoTokenizer.from_pretrained(folder / "hf")([lines[0]["texts"][0]], return_tensors="pt")
    with torch.no_grad():
        assert float(model(**inputs).logits) == pytest.approx(lines[0]["predicted"], abs=1e-4)


def test_classes_of_a_hub_dataset_have_its_names(tmp_path):
    names = ["negative", "neutral", "positive"]
    texts = [f"text {number}" for number in range(30)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    labels = [number % 3 for number in range(30)]
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split in ("train", "validation"):
        rows = datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
        rows.to_parquet(folder / f"{split}.parquet")
    data = read_task_dataset(TaskDataConfig(train=str(folder), validation="validation"))
    assert data.labels.names == tuple(names)
    assert data.validation.labels == labels
    unknown = datasets.Dataset.from_dict({"text": texts, "label": [-1, *labels[1:]]}, features=features)
    unknown.to_parquet(folder / "train.parquet")
    with pytest.raises(ConfigError, match="row 1 holds None, which is no class"):
        read_task_dataset(TaskDataConfig(train=str(folder)))


def test_several_classes_of_a_hub_dataset_have_their_names(tmp_path):
    several = datasets.Sequence(datasets.ClassLabel(names=["joy", "anger"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": several})
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c", "d"], "label": [[0], [0, 1], [], [1]]}, features=features
    )
    (tmp_path / "dataset").mkdir()
    rows.to_parquet(tmp_path / "dataset" / "train.parquet")
    data = read_task_dataset(TaskDataConfig(train=str(tmp_path / "dataset"), validation="train", kind="multi_label"))
    assert data.labels == LabelSet(problem_type=MULTI_LABEL, names=("anger", "joy"))
    assert data.train.labels == [[0, 1], [1, 1], [0, 0], [1, 0]]


@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=40), fraction=st.floats(0.05, 0.95))
def test_what_is_held_out_depends_on_the_text_alone(texts, fraction):
    chosen = {text: _is_in_validation((text,), fraction) for text in texts}
    assert all(
        _is_in_validation((text,), min(0.99, fraction + 0.01))
        for text, is_validation in chosen.items()
        if is_validation
    )


def test_about_the_fraction_is_held_out():
    share = np.mean([_is_in_validation((f"text {number}",), 0.2) for number in range(4000)])
    assert 0.17 < share < 0.23


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"train": "missing.csv"}, "cannot be read"),
        ({"label_column": "score"}, "has no column 'score'; it has text, label"),
        ({"text_columns": ["words"]}, "has no column 'words'"),
        ({"predict": "empty.csv", "validation_fraction": 0.5}, "data.predict=empty.csv: has no texts"),
        ({"validation": "valid.json"}, "is neither .jsonl, .csv, .parquet, nor a split"),
        ({"validation": "validation"}, "is neither .jsonl, .csv, .parquet, nor a split"),
        ({"validation_fraction": 1e-9}, "validation has no examples"),
        ({"kind": "regression", "validation_fraction": 0.5}, "which is no number"),
    ],
)
def test_data_that_cannot_be_used_are_refused_before_anything_is_written(
    changes, said, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").write_text("text\n")
    fields = {"train": _write(tmp_path / "train.jsonl", _rows(20))} | changes
    with pytest.raises(ConfigError, match=said):
        finetune(_recipe(finished[1].path, tmp_path, TaskDataConfig(**fields)), Console(quiet=True))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("num_classes", [2, 30, 150])
def test_a_matrix_of_many_classes_is_drawn(num_classes):
    names = tuple(f"${number} a rather long name of a class" for number in range(num_classes))
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(num_classes, size=(2, 500))
    png = draw_predictions(LabelSet(problem_type=SINGLE_LABEL, names=names), true, predicted, "t")
    assert png.startswith(b"\x89PNG")


def test_several_labels_and_numbers_are_drawn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(2, size=(2, 50, 3))
    labels = LabelSet(problem_type=MULTI_LABEL, names=("a", "b", "c"))
    assert draw_predictions(labels, true, predicted, "t").startswith(b"\x89PNG")
    numbers = LabelSet(problem_type=REGRESSION, names=())
    assert draw_predictions(numbers, *rng.normal(size=(2, 50)), "t").startswith(b"\x89PNG")


@pytest.mark.slow
def test_packages_are_balanced_and_do_not_name_themselves():
    examples, packages = read_demo_examples(50)
    assert len(set(packages)) == 12
    assert all(packages.count(package) == 50 for package in set(packages))
    named = [package.lower() in text.lower() for text, package in zip(examples.texts[0], packages, strict=True)]
    assert not any(named)
    data = read_task_dataset(TaskDataConfig(train="installed-packages", validation_fraction=0.2))
    assert 0.1 < len(data.validation) / len(data.train) < 0.4
