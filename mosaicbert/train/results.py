"""What a run reached, and its export: the same at the run's end and for any checkpoint in between."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.export.hf_folder import export_folder, publish
from mosaicbert.export.published import load_model
from mosaicbert.filesystem import lock
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    step_of,
)
from mosaicbert.train.run_folder import RunFolder, check_run, newest_export


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Where a run stands; losses are in nats per masked token. What was not measured is None.

    training_seconds are those of the steps; wall_seconds have evaluations in them. fill_rate is the mean share of real
    tokens in micro-batches, data_wait_seconds what the training loop has waited for the loader in all.
    """

    steps: int
    samples: int
    tokens: int
    training_seconds: float
    wall_seconds: float
    tokens_per_second: float
    fill_rate: float | None
    data_wait_seconds: float
    skipped_steps: int
    rollbacks: int
    train_loss: float | None
    eval_loss: float | None
    eval_accuracy: float | None
    unigram_entropy: float


def summarise(metrics: list[dict[str, Any]], state: dict[str, Any], record: StoreRecord) -> RunResult:
    """What a checkpoint's state and the lines of metrics.jsonl up to it say."""
    position: dict[str, Any] = state["position"]
    metrics = [line for line in metrics if line["step"] <= position["steps"]]
    steps = [line for line in metrics if "loss" in line]
    evaluation = next((line for line in reversed(metrics) if "eval_loss" in line), {})
    return RunResult(
        steps=position["steps"],
        samples=position["samples"],
        tokens=position["tokens"],
        training_seconds=round(state["training_seconds"], 3),
        wall_seconds=round(position["seconds"], 3),
        tokens_per_second=round(position["tokens"] / state["training_seconds"], 1),
        fill_rate=round(sum(line["fill_rate"] for line in steps) / len(steps), 4) if steps else None,
        data_wait_seconds=round(sum(line["data_wait_seconds"] for line in steps), 2),
        skipped_steps=state["guard"]["num_skipped"],
        rollbacks=state["rollbacks"],
        train_loss=steps[-1]["loss"] if steps else None,
        eval_loss=evaluation.get("eval_loss"),
        eval_accuracy=evaluation.get("eval_accuracy"),
        unigram_entropy=record.unigram_entropy,
    )


def export_step(path: str | Path, step: int) -> Path:
    """Exports a checkpoint of the run in a folder to its `hf/step-N`; the newest one is shown as `hf` as well.

    Raises:
        CheckpointError: it is damaged.
        ParityError: the export does not give the checkpoint's logits; nothing is left of it.
    """
    run = RunFolder(Path(path))
    recipe = load_recipe(run.recipe)
    folder = run.export_of(step)
    run.hugging_face.mkdir(exist_ok=True)
    with lock(run.checkpoints):
        if not folder.is_dir():
            _export(recipe, run, folder, read_checkpoint(checkpoint_path(run.checkpoints, step)))
        publish(run.hugging_face, newest_export(run) or folder)
    return folder


def export_latest(recipe: Recipe) -> RunFolder:
    """Exports the newest checkpoint of a run, also while it is not finished.

    Raises:
        ConfigError: there is no such run, it has no checkpoint that is whole, or its folder belongs to another recipe.
    """
    run = check_run(recipe)
    for path in reversed(list_checkpoints(run.checkpoints)):
        try:
            export_step(run.path, step_of(path))
        except CheckpointError as error:
            print(f"passing over a checkpoint: {error}")
            continue
        return run
    raise ConfigError(f"{run.path}: no checkpoint to export; train one with `mosaicbert pretrain RECIPE`.")


def _export(recipe: Recipe, run: RunFolder, folder: Path, checkpoint: Checkpoint) -> None:
    record = StoreRecord.read(run.path)
    result = summarise(read_metrics(run.metrics), checkpoint.state, record)
    export_folder(
        load_model(recipe, checkpoint.model), open_tokenizer(run.path, record), recipe, asdict(result), folder
    )
