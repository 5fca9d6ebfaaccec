"""Tests of the fine-tuning of sentence embeddings."""

import json

import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from mosaicbert.cli import main
from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe, TaskDataConfig
from mosaicbert.finetune.embedding import evaluate_embeddings, finetune_embeddings
from mosaicbert.finetune.tables import Examples

_WORDS = ["returns", "a", "new", "array", "file", "name", "of", "the", "shape", "path", "raises", "an", "error"]


class FixedEmbeddings:
    """SentenceTransformer that returns given vectors."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, **_):
        return torch.nn.functional.normalize(torch.tensor([self.vectors[text] for text in texts]), dim=1)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_recipe(model, folder, kind, rows, **train):
    data = TaskDataConfig(
        train=write_rows(folder / "train.jsonl", rows),
        text_columns=["first", "second"],
        kind=kind,
        validation_fraction=0.3,
    )
    config = FinetuneConfig(**({"epochs": 2, "batch_size": 8, "peak_lr": 1e-3, "precision": "fp32"} | train))
    return FinetuneRecipe(run_name=kind, runs_folder=str(folder / "runs"), model=model, data=data, train=config)


def make_pairs(count):
    generator = torch.Generator().manual_seed(4)
    texts = [
        " ".join(_WORDS[index] for index in torch.randint(len(_WORDS), (5,), generator=generator)) for _ in range(count)
    ]
    translation = dict(zip(_WORDS, [*_WORDS[1:], _WORDS[0]], strict=True))
    return [{"first": text, "second": " ".join(translation[word] for word in text.split())} for text in texts]


@pytest.mark.parametrize("kind", ["similarity", "pairs"])
def test_the_result_is_a_folder_of_sentence_transformers(kind, mosaicbert_folder, tmp_path):
    rows = make_pairs(40)
    if kind == "similarity":
        rows = [row | {"label": index % 5} for index, row in enumerate(rows)]
    console = Console(record=True, width=200)
    recipe = make_recipe(mosaicbert_folder, tmp_path, kind, rows, compare_with_random_weights=True)
    folder = finetune_embeddings(recipe, console)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["examples"]["train"] + metrics["examples"]["validation"] == 40
    names = {"similarity": {"spearman", "pearson"}, "pairs": {"accuracy_at_1", "mean_reciprocal_rank"}}[kind]
    assert set(metrics["validation"]) == set(metrics["before_fine_tuning"]) == set(metrics["random_weights"]) == names
    model = SentenceTransformer(str(folder / "hf"), device="cpu")
    assert model.encode(["returns a new array"]).shape == (1, model.get_embedding_dimension())
    assert {path.name for path in folder.iterdir()} == {"hf", "metrics.json", "recipe.yaml"}
    finetune_embeddings(recipe, console)
    assert "this run is finished" in console.export_text()


def test_training_brings_pairs_together(mosaicbert_folder, tmp_path):
    recipe = make_recipe(mosaicbert_folder, tmp_path, "pairs", make_pairs(150), epochs=6, batch_size=16)
    metrics = json.loads((finetune_embeddings(recipe, Console(quiet=True)) / "metrics.json").read_text())
    before, after = (metrics[name]["mean_reciprocal_rank"] for name in ("before_fine_tuning", "validation"))
    assert after > before


def test_the_retrieval_metrics_are_those_of_the_ranks():
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "A": [1.0, 0.1], "B": [1.0, 0.2], "C": [-1.0, 0.0], "c": [-1.0, 0.1]}
    examples = Examples(texts=(["a", "b", "c"], ["A", "B", "C"]), labels=None)
    metrics = evaluate_embeddings(FixedEmbeddings(vectors), examples)
    assert metrics == pytest.approx({"accuracy_at_1": 1.0, "mean_reciprocal_rank": 1.0})
    examples = Examples(texts=(["a", "b"], ["B", "A"]), labels=None)  # both are second
    assert evaluate_embeddings(FixedEmbeddings(vectors), examples)["mean_reciprocal_rank"] == 0.5


def test_equal_embeddings_are_not_correct():
    vectors = {text: [1.0, 0.0] for text in "abcd"}
    metrics = evaluate_embeddings(FixedEmbeddings(vectors), Examples(texts=(["a", "b"], ["c", "d"]), labels=None))
    assert metrics == {"accuracy_at_1": 0.0, "mean_reciprocal_rank": 0.5}


def test_the_correlation_is_that_of_the_cosine_with_the_label():
    vectors = {"a": [1.0, 0.0], "b": [1.0, 0.1], "c": [1.0, 1.0], "d": [0.0, 1.0]}
    examples = Examples(texts=(["a", "a", "a"], ["b", "c", "d"]), labels=[5.0, 3.0, 1.0])
    assert evaluate_embeddings(FixedEmbeddings(vectors), examples)["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"text_columns": ["text"]}, "`data.text_columns` must be two columns for `data.kind=pairs`"),
        ({"text_columns": ["a", "b"], "predict": "x.jsonl"}, "`data.predict` is not supported with `data.kind=pairs`"),
    ],
)
def test_settings_of_classifiers_are_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        TaskDataConfig(train="train.jsonl", kind="pairs", **fields)


def test_a_model_that_does_not_exist_is_one_line(tmp_path, capsys):
    rows = write_rows(tmp_path / "train.jsonl", make_pairs(20))
    with pytest.raises(SystemExit) as exit_info:
        overrides = ["model=no-such-model", f"data.train={rows}", "data.text_columns=[first,second]"]
        main(["finetune", "pairs", *overrides, f"runs_folder={tmp_path}/runs"])
    assert exit_info.value.code == 2
    assert "no-such-model" in capsys.readouterr().err.splitlines()[-1]


def test_a_dropout_other_than_that_of_the_model_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"`train\.dropout` must be null for `data\.kind=pairs`, got 0\.1"):
        make_recipe("model", tmp_path, "pairs", make_pairs(2), dropout=0.1)
