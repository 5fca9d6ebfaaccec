"""Results of a run at a checkpoint, and the export of the checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.export.hf_folder import export_folder, publish
from mosaicbert.export.published import load_model
from mosaicbert.filesystem import lock_folder
from mosaicbert.report.metrics import read_metrics
from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    step_of,
)
from mosaicbert.train.run_folder import RunFolder, check_run_folder, newest_export


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Results of a run at a checkpoint. Values that were not measured are None.

    Attributes:
        steps: Number of training steps.
        samples: Number of samples trained on, by all ranks together.
        tokens: Number of real tokens trained on, without padding.
        training_seconds: Duration of the steps in seconds.
        cpu_seconds: CPU time of the training processes during the steps in seconds.
        wall_seconds: Duration of the run in seconds, including evaluations and checkpoints.
        tokens_per_second: Real tokens per second of training time.
        fill_rate: Mean fraction of real tokens in the micro-batches.
        data_wait_seconds: Time that the training loop waited for the data loader in seconds.
        skipped_steps: Number of steps that were not applied.
        rollbacks: Number of rollbacks to an earlier checkpoint.
        train_loss: Loss of the last logged step in nats per masked token.
        eval_step: Step of the last evaluation.
        eval_loss: Loss of the last evaluation in nats per masked token.
        eval_bits_per_byte: Loss of the last evaluation in bits per byte: eval_loss / ln(2) / bytes per token.
        eval_accuracy: Fraction of masked tokens predicted correctly in the last evaluation.
        unigram_entropy: Entropy of the validation text's token frequencies in nats.
    """

    steps: int
    samples: int
    tokens: int
    training_seconds: float
    cpu_seconds: float
    wall_seconds: float
    tokens_per_second: float
    fill_rate: float | None
    data_wait_seconds: float
    skipped_steps: int
    rollbacks: int
    train_loss: float | None
    eval_step: int | None
    eval_loss: float | None
    eval_bits_per_byte: float | None
    eval_accuracy: float | None
    unigram_entropy: float


def summarize(metrics: list[dict[str, Any]], state: dict[str, Any], store: StoreRecord) -> RunResult:
    """Summarize a run at a checkpoint.

    Args:
        metrics: Lines of metrics.jsonl; lines after the checkpoint are ignored.
        state: State of the checkpoint.
        store: Record of the run's token store.
    """
    position: dict[str, Any] = state["position"]
    metrics = [line for line in metrics if line["step"] <= position["steps"]]
    steps = [line for line in metrics if "loss" in line]
    evaluation = next((line for line in reversed(metrics) if "eval_loss" in line), {})
    eval_loss = evaluation.get("eval_loss")
    return RunResult(
        steps=position["steps"],
        samples=position["samples"],
        tokens=position["tokens"],
        training_seconds=round(state["training_seconds"], 3),
        cpu_seconds=round(state["cpu_seconds"], 3),
        wall_seconds=round(position["seconds"], 3),
        tokens_per_second=round(position["tokens"] / state["training_seconds"], 1),
        fill_rate=round(sum(line["fill_rate"] for line in steps) / len(steps), 4) if steps else None,
        data_wait_seconds=round(sum(line["data_wait_seconds"] for line in steps), 2),
        skipped_steps=state["spike_detector"]["num_skipped"],
        rollbacks=state["rollbacks"],
        train_loss=steps[-1]["loss"] if steps else None,
        eval_step=evaluation.get("step"),
        eval_loss=eval_loss,
        eval_bits_per_byte=None if eval_loss is None else store.bits_per_byte(eval_loss),
        eval_accuracy=evaluation.get("eval_accuracy"),
        unigram_entropy=store.unigram_entropy,
    )


def export_step(path: str | Path, step: int) -> Path:
    """Export a checkpoint to `hf/step-N` of its run folder, and publish the newest export as `hf`.

    Args:
        path: Run folder.
        step: Step of the checkpoint.

    Returns:
        Folder of the export.

    Raises:
        CheckpointError: If the checkpoint is corrupted.
        ParityError: If the export does not reproduce the checkpoint's logits. The export is then deleted.
    """
    run = RunFolder(Path(path))
    recipe = load_recipe(run.recipe)
    folder = run.export_of(step)
    run.hugging_face.mkdir(exist_ok=True)
    with lock_folder(run.checkpoints):
        if not folder.is_dir():
            _export(recipe, run, folder, read_checkpoint(checkpoint_path(run.checkpoints, step)))
        publish(run.hugging_face, newest_export(run) or folder)
    return folder


def export_latest(recipe: Recipe) -> RunFolder:
    """Export the newest valid checkpoint of a run, finished or not.

    Args:
        recipe: Recipe of the run.

    Raises:
        ConfigError: If there is no valid checkpoint, or the run folder belongs to a different recipe.
    """
    run = check_run_folder(recipe)
    for path in reversed(list_checkpoints(run.checkpoints)):
        try:
            export_step(run.path, step_of(path))
        except CheckpointError as error:
            print(f"checkpoint skipped: {error}")
            continue
        return run
    raise ConfigError(
        f"Run {run.path} must have a valid checkpoint to export, got none. Run `mosaicbert pretrain RECIPE` first."
    )


def _export(recipe: Recipe, run: RunFolder, folder: Path, checkpoint: Checkpoint) -> None:
    store = StoreRecord.read(run.path)
    result = summarize(read_metrics(run.metrics), checkpoint.state, store)
    export_folder(load_model(recipe, checkpoint.model), open_tokenizer(run.path, store), recipe, asdict(result), folder)
