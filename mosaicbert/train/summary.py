"""Console text of a run: its settings at the start, its results at the end."""

import json
from collections.abc import Callable
from typing import Any

from mosaicbert.data.store import TRAIN
from mosaicbert.estimate import count_parameters
from mosaicbert.export.fill_mask import fill_masks
from mosaicbert.model.factory import describe_attention, describe_kernels
from mosaicbert.train.compile import CompileChoice
from mosaicbert.train.resolve import ResolvedRun


def log_run_summary(
    resolved: ResolvedRun,
    compilation: CompileChoice,
    *,
    device_type: str,
    world_size: int,
    peak_flops: float,
    peak_source: str,
    log: Callable[[str], None],
) -> None:
    """Log the model, the data, the precision and the backends of the training step.

    Args:
        resolved: Resolved run.
        compilation: Parts of the training step that are compiled.
        device_type: Device that trains, "cuda" or "cpu".
        world_size: Number of processes.
        peak_flops: Peak of one process's device in FLOP/s.
        peak_source: Source of the peak, in words.
        log: Function that prints a line.
    """
    recipe, plan, split = resolved.recipe, resolved.plan, resolved.store.splits[TRAIN]
    length = recipe.train.duration
    if plan.num_steps is not None:
        length = f"{plan.first_sample(plan.num_steps) / split.samples:.2f} epochs in {plan.num_steps:,} steps"
    log(f"run: {recipe.run_folder}, {recipe.model.architecture}, {count_parameters(recipe.model):,} parameters")
    log(f"data: {split.samples:,} samples, {split.tokens:,} tokens, {length}, {world_size} process(es)")
    log(f"precision: {str(resolved.precision).removeprefix('torch.')} ({resolved.precision_reason})")
    log(describe_attention(recipe.model, device_type, resolved.precision, compilation.attention_backend))
    log(str(compilation))
    log(describe_kernels(device_type))
    log(f"peak per device: {peak_flops / 1e12:.2f} TFLOP/s ({peak_source})")


def log_results(resolved: ResolvedRun, log: Callable[[str], None]) -> None:
    """Log the results of a finished run, and the predictions of its export for `eval.fill_mask`.

    Args:
        resolved: Resolved run.
        log: Function that prints a line.
    """
    recipe, run = resolved.recipe, resolved.folder
    result: dict[str, Any] = json.loads(run.result.read_text())
    lines = {
        "validation loss": "not measured"
        if result["eval_loss"] is None
        else f"{result['eval_loss']:.3f} nats ({result['eval_bits_per_byte']:.3f} bits per byte), "
        f"accuracy {result['eval_accuracy']:.1%} of masked tokens",
        "unigram entropy": f"{result['unigram_entropy']:.3f} nats (lowest loss of a model of token frequencies alone)",
        "training": f"{result['tokens']:,} tokens in {result['training_seconds']:.0f} s, fill rate "
        f"{result['fill_rate'] or 0:.1%}, data wait {result['data_wait_seconds']:.1f} s",
        "loss figure": str(run.loss_figure),
        "Hugging Face folder": str(run.hugging_face),
    }
    if result["skipped_steps"] or result["rollbacks"]:
        lines["faults"] = f"{result['skipped_steps']} skipped steps, {result['rollbacks']} rollbacks, see {run.faults}"
    if recipe.train.length.unit == "seconds":
        lines["equal length"] = f"train.duration='{result['steps']} steps', on a machine of different speed"
    for name, value in lines.items():
        log(f"{name + ':':21}{value}")
    if recipe.eval.fill_mask:
        for sentence, predictions in fill_masks(run.hugging_face, recipe.eval.fill_mask):
            tokens = ", ".join(f"{token} {probability:.0%}" for token, probability in predictions)
            log(f"  {sentence}\n      {tokens}")
