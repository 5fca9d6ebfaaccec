"""Command `mosaicbert finetune`: fine-tuning on a task dataset, export and report."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mosaicbert.config import ConfigError
from mosaicbert.config.finetune import FinetuneConfig, FinetuneRecipe
from mosaicbert.config.glue import Protocol
from mosaicbert.config.load import load_recipe, recipe_differences, save_recipe
from mosaicbert.console import print_line
from mosaicbert.environment import describe_environment
from mosaicbert.filesystem import write_file
from mosaicbert.finetune.metrics import REGRESSION
from mosaicbert.finetune.model import (
    find_output_layer,
    load_classifier,
    max_input_length,
    scale_output,
    with_random_weights,
)
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import TaskDataset, read_task_dataset
from mosaicbert.finetune.task.export import export_classifier
from mosaicbert.finetune.task.labels import PROBLEM_TYPES, balanced_weights
from mosaicbert.finetune.task.plots import draw_predictions
from mosaicbert.finetune.task.report import (
    class_scores,
    describe_metric,
    evaluate,
    label_arrays,
    prediction_lines,
    write_report,
)
from mosaicbert.finetune.task.summary import summarize_data, summary_lines
from mosaicbert.finetune.trainer import FinetuneSettings, fine_tune
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from mosaicbert.scoring.checkpoints import newest_model
from mosaicbert.train.composer import release_memory
from mosaicbert.train.device import choose_precision

_MAX_PRINTED_CLASSES = 10  # report.md has all of them


@dataclass(frozen=True, kw_only=True)
class _FitResult:
    """Output of a fine-tuning.

    Attributes:
        validation_logits: (N, L) logits of the validation examples.
        predict_logits: (N, L) logits of the texts without labels; None if there are none.
        seconds: Duration of the fine-tuning.
    """

    validation_logits: Tensor
    predict_logits: Tensor | None
    seconds: float


def finetune(recipe: FinetuneRecipe, console: Console) -> Path:
    """Fine-tune a pretrained encoder, and write the classifier, its predictions and a report.

    A finished run is not trained again.

    Args:
        recipe: Recipe of the fine-tuning.
        console: Console for progress and metrics.

    Returns:
        Run folder with recipe.yaml, hf/, predictions.jsonl, predictions.png, metrics.json and report.md.

    Raises:
        ConfigError: If the model or the data cannot be used, or the folder contains a different kind of run or a
            finished run of a different recipe. The error is raised before training.
        TrainingFault: If the logits of the exported model differ from those of the trained model.
    """
    folder = recipe.run_folder
    metrics_path = folder / "metrics.json"
    check_finetune_folder(recipe, folder / "recipe.yaml", is_finished=metrics_path.exists())
    if metrics_path.exists():
        print_line(console, f"{folder}: this run is finished.")
        _print_metrics(folder, recipe.data.positive_class, console)
        return folder
    logging.disable_progress_bar()

    name = newest_model(recipe.model)
    settings = _fine_tuning_settings(recipe.train, PROBLEM_TYPES[recipe.data.kind], recipe.seed)
    data = read_task_dataset(recipe.data)
    if recipe.train.class_weights == "balanced":
        settings = replace(settings, class_weights=balanced_weights(data.label_set, data.train.labels or []))
    tokenizer = load_pretrained_tokenizer(name)
    num_outputs = data.label_set.num_outputs
    model = load_classifier(
        name,
        num_labels=num_outputs,
        problem_type=settings.problem_type,
        seed=recipe.seed,
        dropout=recipe.train.dropout,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, folder / "recipe.yaml")
    max_length = max_input_length(model, recipe.train.max_seq_len)
    summary = summarize_data(data, tokenizer, max_length)
    counts = f"{len(data.train):,} training examples, {len(data.validation):,} validation examples"
    for line in (f"{name}: {counts}", *summary_lines(summary, len(data.validation))):
        print_line(console, line)

    baseline: dict[str, Any] = {}
    if recipe.train.compare_with_random_weights:
        console.print("Fine-tuning from random weights ...")
        fit = _fit(with_random_weights(model, recipe.seed), tokenizer, data, settings, console)
        baseline = {"random_weights": evaluate(data, fit.validation_logits)}
        release_memory()
    console.print("Fine-tuning from pretrained weights ...")
    fit = _fit(model, tokenizer, data, settings, console)

    export_classifier(model, tokenizer, data, folder / "hf", max_length)

    is_classifier = data.label_set.problem_type != REGRESSION
    metrics = {
        "validation": evaluate(data, fit.validation_logits),
        **baseline,
        **({"classes": class_scores(data.label_set, data.validation, fit.validation_logits)} if is_classifier else {}),
        "examples": {"train": len(data.train), "validation": len(data.validation)},
        "data": summary,
        "seconds": round(fit.seconds, 2),
        "environment": describe_environment(),
    }
    report = write_report(
        recipe.run_name,
        data,
        metrics,
        model=recipe.model,
        dataset=recipe.data.train,
        num_epochs=recipe.train.epochs,
    )
    _write_predictions(data, fit, folder, title=recipe.run_name)
    write_file(folder / "report.md", report.encode())
    # Written last, because the file marks the run as finished.
    write_file(metrics_path, (json.dumps(metrics, indent=2) + "\n").encode())
    _print_metrics(folder, recipe.data.positive_class, console)
    return folder


def check_finetune_folder(recipe: FinetuneRecipe, path: Path, *, is_finished: bool) -> None:
    """Check that a run folder is new, unfinished, or that of a finished run with the same recipe.

    Args:
        recipe: Recipe of the fine-tuning.
        path: Path of the recipe in the run folder.
        is_finished: Whether the run in the folder is finished.

    Raises:
        ConfigError: If the folder contains another kind of run, or a finished run of a different recipe.
    """
    if not path.exists():
        return
    previous = load_recipe(path, [], FinetuneRecipe)
    if not is_finished:  # a failed run may be repeated with a corrected recipe
        return
    differences = {key: pair for key, pair in recipe_differences(previous, recipe).items() if key != "runs_folder"}
    if differences:
        changes = ", ".join(f"`{key}` (recorded: {old}, now: {new})" for key, (old, new) in differences.items())
        raise ConfigError(
            f"{path.parent} must be the folder of a run with this recipe, got different values of {changes}. "
            "Set a different `run_name`, or delete the folder."
        )


def _fine_tuning_settings(config: FinetuneConfig, problem_type: str, seed: int) -> FinetuneSettings:
    # A predicted number has about three significant digits in bf16, so that many predictions are equal. The paper also
    # trains STS-B in fp32.
    precision, _ = choose_precision("fp32" if problem_type == REGRESSION else config.precision)
    return FinetuneSettings(
        protocol=Protocol(
            epochs=config.epochs,
            batch_size=config.batch_size,
            peak_lr=config.peak_lr,
            weight_decay=config.weight_decay,
            num_seeds=1,
        ),
        problem_type=problem_type,
        seed=seed,
        shuffle=True,
        max_seq_len=config.max_seq_len,
        precision=precision,
    )


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskDataset,
    settings: FinetuneSettings,
    console: Console,
) -> _FitResult:
    evaluation_sets = [data.validation] if data.predict is None else [data.validation, data.predict]
    start_time = time.monotonic()
    train, mean, scale = data.train, 0.0, 1.0
    output_layer = find_output_layer(model) if settings.problem_type == REGRESSION else None
    if output_layer is not None:
        has_bias = output_layer.bias is not None  # pyright: ignore[reportUnnecessaryComparison]
        train, mean, scale = _standardize(data.train, with_mean=has_bias)
    logits = fine_tune(model, tokenizer, train, evaluation_sets, settings, lambda line: print_line(console, line))
    if output_layer is not None:
        scale_output(output_layer, scale, mean)
        logits = [values * scale + mean for values in logits]
    return _FitResult(
        validation_logits=logits[0],
        predict_logits=None if data.predict is None else logits[1],
        seconds=time.monotonic() - start_time,
    )


def _standardize(examples: Examples, *, with_mean: bool) -> tuple[Examples, float, float]:
    """Return examples whose labels have the mean 0 and the standard deviation 1, with the mean and the deviation.

    A new output layer returns values near zero, and learns labels of a different scale slowly or not at all. Without
    `with_mean`, for an output layer without a bias, the mean of the squared labels becomes 1 instead.
    """
    labels = np.array(examples.labels, dtype=np.float64)
    mean = float(labels.mean()) if with_mean else 0.0
    scale = float(np.sqrt(np.mean((labels - mean) ** 2))) or 1.0  # 0 for equal labels
    return replace(examples, labels=((labels - mean) / scale).tolist()), mean, scale


def _write_predictions(data: TaskDataset, fit: _FitResult, folder: Path, title: str) -> None:
    lines = [*prediction_lines(data.label_set, data.validation, fit.validation_logits, "validation")]
    if data.predict is not None and fit.predict_logits is not None:
        lines += prediction_lines(data.label_set, data.predict, fit.predict_logits, "predict")
    targets, predictions = label_arrays(data.label_set, data.validation, fit.validation_logits)
    write_file(folder / "predictions.jsonl", "".join(lines).encode())
    write_file(folder / "predictions.png", draw_predictions(data.label_set, targets, predictions, title))


def _print_metrics(folder: Path, positive: str | None, console: Console) -> None:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    baseline: dict[str, float] = metrics.get("random_weights", {})
    titles = {name: f"{describe_metric(name, positive)}:" for name in metrics["validation"]}
    width = max(map(len, titles.values())) + 1
    for name, value in metrics["validation"].items():
        comparison = f"   (random weights: {baseline[name]:.4f})" if name in baseline else ""
        print_line(console, f"{titles[name]:{width}}{value:.4f}{comparison}")
    scores = metrics.get("classes", {})
    if 0 < len(scores) <= _MAX_PRINTED_CLASSES:
        by_class = ", ".join(f"{name} {values['f1']:.4f}" for name, values in scores.items())
        print_line(console, f"F1 by class: {by_class}")
    for name in ("hf", "report.md", "predictions.jsonl"):
        print_line(console, str(folder / name))
