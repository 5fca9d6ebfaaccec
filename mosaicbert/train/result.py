"""What a run reached, and its export: the same at the run's end and for any checkpoint in between."""

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.prepare import check_store
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.export.checkpoint import load_checkpoint
from mosaicbert.export.folder import export_folder
from mosaicbert.train.monitor import read_metrics
from mosaicbert.train.run import RunFolder, check_run


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a run stands; losses are in nats per masked token. Evaluation is None before the first one.

    fill_rate is the mean share of real tokens in micro-batches, data_wait_seconds what the training loop has waited for
    the loader in all.
    """

    steps: int
    samples: int
    tokens: int
    training_seconds: float
    tokens_per_second: float
    fill_rate: float
    data_wait_seconds: float
    train_loss: float
    eval_loss: float | None
    eval_accuracy: float | None
    unigram_entropy: float


def summarise(metrics: list[dict[str, Any]], record: StoreRecord) -> RunResult:
    """The last training step and the last evaluation of metrics.jsonl."""
    steps = [line for line in metrics if "loss" in line]
    training = steps[-1]
    evaluation = next((line for line in reversed(metrics) if "eval_loss" in line), {})
    return RunResult(
        steps=training["step"],
        samples=training["samples"],
        tokens=training["tokens"],
        training_seconds=training["seconds"],
        tokens_per_second=round(training["tokens"] / training["seconds"], 1),
        fill_rate=round(sum(line["fill_rate"] for line in steps) / len(steps), 4),
        data_wait_seconds=round(sum(line["data_wait_seconds"] for line in steps), 2),
        train_loss=training["loss"],
        eval_loss=evaluation.get("eval_loss"),
        eval_accuracy=evaluation.get("eval_accuracy"),
        unigram_entropy=record.unigram_entropy,
    )


def export_run(recipe: Recipe, run: RunFolder, model: PreTrainedModel, result: RunResult) -> None:
    """Writes the run's Hugging Face folder, see `export_folder`."""
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    export_folder(model.cpu().eval(), tokenizer, recipe, asdict(result), run.hugging_face)


def export_latest(recipe: Recipe) -> RunFolder:
    """Exports the newest checkpoint of a run, also while it is not finished.

    Raises:
        ConfigError: there is no such run, it has no checkpoint yet, or its folder belongs to another recipe.
    """
    run = check_run(recipe)
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise ConfigError(f"{run.path}: no checkpoint to export; train one with `mosaicbert pretrain RECIPE`.")
    model, step = load_checkpoint(recipe, checkpoint)
    metrics = [line for line in read_metrics(run.metrics) if line["step"] <= step]
    export_run(recipe, run, model, summarise(metrics, check_store(recipe)))
    return run
