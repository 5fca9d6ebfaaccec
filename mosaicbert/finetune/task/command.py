"""`mosaicbert finetune`: a pretrained encoder on the user's own task, to a Hugging Face folder and a report."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mosaicbert.config import ConfigError, TrainingFault
from mosaicbert.config.finetune import FinetuneRecipe
from mosaicbert.config.glue import Protocol
from mosaicbert.config.load import load_recipe, recipe_differences, save_recipe
from mosaicbert.data.store import write_file
from mosaicbert.export.remote_code import AUTO_MAP, write_remote_code
from mosaicbert.finetune.collator import Collator, encode
from mosaicbert.finetune.glue.checkpoints import newest_model
from mosaicbert.finetune.metrics import REGRESSION, compute_metrics
from mosaicbert.finetune.model import (
    is_unpadded,
    load_classifier,
    load_tokenizer,
    longest_input,
    padding_of,
    with_fresh_weights,
)
from mosaicbert.finetune.task.dataset import OwnData, read_own_data
from mosaicbert.finetune.task.labels import PROBLEMS
from mosaicbert.finetune.task.plots import draw_predictions
from mosaicbert.finetune.task.report import METRICS, arrays, labels_tensor, prediction_lines, write_report
from mosaicbert.finetune.trainer import Settings, fine_tune
from mosaicbert.train.device import choose_precision, release_memory
from mosaicbert.train.run_folder import describe_environment

_PROBED = 8  # examples that the written folder must give the same logits for
_CLOSE = 1e-4  # logits: a GPU's model is compared on the CPU, where both are


def finetune(recipe: FinetuneRecipe, console: Console) -> Path:
    """Fine-tunes, and writes the folder, the predictions and the report; a finished run is not trained again.

    Args:
        recipe: of the fine-tuning.
        console: to print to.

    Returns:
        The run's folder: recipe.yaml, hf/, predictions.jsonl, predictions.png, metrics.json and report.md.

    Raises:
        ConfigError: model or data cannot be used, or the folder holds another kind of run, or a finished one of another
            recipe; nothing is trained.
        TrainingFault: the folder does not give the model's logits.
    """
    folder = recipe.run_folder
    is_finished = (folder / "metrics.json").exists()
    _check_folder(recipe, folder, is_finished=is_finished)
    if is_finished:
        _say(console, f"{folder}: this run is finished.")
        _show(folder, console)
        return folder
    logging.disable_progress_bar()
    name = newest_model(recipe.model)
    precision = _choose_precision(recipe)
    data = read_own_data(recipe.data)
    tokenizer = load_tokenizer(name)
    model = load_classifier(name, num_labels=data.labels.num_outputs, problem=data.labels.problem, seed=recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "recipe.yaml")
    _say(console, f"{name}: {len(data.train):,} examples to train on, {len(data.validation):,} to validate")
    baseline: dict[str, Any] = {}
    if recipe.train.compare_with_random_weights:
        console.print("from random weights, to compare with ...")
        fresh = with_fresh_weights(model, recipe.seed)
        (logits, *_), _ = _train(recipe, fresh, tokenizer, data, precision, console)
        baseline = {"random_weights": _measure(data, logits)}
        release_memory()
    console.print("fine-tuning ...")
    (logits, *predicted), seconds = _train(recipe, model, tokenizer, data, precision, console)
    _write_model(model, tokenizer, data, folder / "hf")
    metrics = {
        "validation": _measure(data, logits),
        **baseline,
        "examples": {"train": len(data.train), "validation": len(data.validation)},
        "seconds": round(seconds, 2),
        "environment": describe_environment(),
    }
    _write_results(recipe, data, [logits, *predicted], metrics, folder)
    _show(folder, console)
    return folder


def _check_folder(recipe: FinetuneRecipe, folder: Path, *, is_finished: bool) -> None:
    """Refuses a folder of another kind of run, and a finished one of another recipe; one that failed may be mended."""
    written = folder / "recipe.yaml"
    if not written.exists():
        return
    before = load_recipe(written, [], FinetuneRecipe)
    if not is_finished:
        return
    differences = {key: pair for key, pair in recipe_differences(before, recipe).items() if key != "runs_folder"}
    if differences:
        changes = ", ".join(f"{key} ({old} there, {new} now)" for key, (old, new) in differences.items())
        raise ConfigError(
            f"{folder}: holds a run of another recipe, which differs in {changes}; choose another run_name=, or delete "
            "the folder."
        )


def _choose_precision(recipe: FinetuneRecipe) -> torch.dtype:
    # In bf16 predicted numbers have three digits, and many are equal. The paper trains STS-B in fp32, too.
    asked = "fp32" if PROBLEMS[recipe.data.kind] == REGRESSION else recipe.train.precision
    precision, _ = choose_precision(asked)
    return precision


def _train(
    recipe: FinetuneRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: OwnData,
    precision: torch.dtype,
    console: Console,
) -> tuple[list[Tensor], float]:
    asked = recipe.train
    settings = Settings(
        protocol=Protocol(
            epochs=asked.epochs,
            batch_size=asked.batch_size,
            peak_lr=asked.peak_lr,
            weight_decay=asked.weight_decay,
            num_seeds=1,
        ),
        problem=data.labels.problem,
        seed=recipe.seed,
        shuffle=True,
        max_seq_len=asked.max_seq_len,
        precision=precision,
    )
    others = [data.validation] if data.predict is None else [data.validation, data.predict]
    began = time.monotonic()
    logits = fine_tune(model, tokenizer, data.train, others, settings, lambda line: _say(console, line))
    return logits, time.monotonic() - began


def _measure(data: OwnData, logits: Tensor) -> dict[str, float]:
    problem = data.labels.problem
    return compute_metrics(METRICS[problem], problem, logits, labels_tensor(data.validation))


def _write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: OwnData, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model = model.cpu().eval()
    if data.labels.names:
        model.config.id2label = dict(enumerate(data.labels.names))
        model.config.label2id = {name: number for number, name in enumerate(data.labels.names)}
    if is_unpadded(model):
        model.config.auto_map = AUTO_MAP
        write_remote_code(partial)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _require_same_logits(model, partial, tokenizer, data)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _require_same_logits(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, data: OwnData
) -> None:
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = encode(tokenizer, data.validation, longest_input(model, 256))[:_PROBED]
    batch = Collator(is_unpadded=False, pad_token_id=padding_of(tokenizer))(encoded)  # as its users will
    del batch["labels"]
    with torch.no_grad():
        difference = float((model(**batch).logits - reloaded(**batch).logits).abs().max())
    if not difference <= _CLOSE:
        raise TrainingFault(f"{folder}: gives other logits than the model that was written, by {difference}.")


def _write_results(
    recipe: FinetuneRecipe, data: OwnData, logits: list[Tensor], metrics: dict[str, Any], folder: Path
) -> None:
    parts = [(data.validation, "validation")]
    if data.predict is not None:
        parts.append((data.predict, "predict"))
    lines = [
        line
        for (examples, split), predicted in zip(parts, logits, strict=True)
        for line in prediction_lines(data.labels, examples, predicted, split)
    ]
    true, predicted = arrays(data.labels, data.validation, logits[0])
    write_file(folder / "predictions.jsonl", "".join(lines).encode())
    write_file(folder / "predictions.png", draw_predictions(data.labels, true, predicted, recipe.run_name))
    write_file(folder / "report.md", write_report(recipe, data, metrics, logits[0]).encode())
    write_file(
        folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode()
    )  # last: it says that all is there


def _show(folder: Path, console: Console) -> None:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    for name, value in metrics["validation"].items():
        beside = (
            f"   (from random weights {metrics['random_weights'][name]:.4f})" if "random_weights" in metrics else ""
        )
        _say(console, f"{name + ':':22}{value:.4f}{beside}")
    for name in ("hf", "report.md", "predictions.jsonl"):
        _say(console, str(folder / name))


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
