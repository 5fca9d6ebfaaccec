"""Execution of one job: fine-tuning of one checkpoint on one task with one seed, and evaluation."""

import json
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from mosaicbert.config.glue import TASKS, GlueConfig
from mosaicbert.environment import describe_environment
from mosaicbert.filesystem import partial_path, replace_folder
from mosaicbert.finetune.glue.checkpoints import CheckpointToScore
from mosaicbert.finetune.glue.dataset import GlueTaskData, read_glue_task
from mosaicbert.finetune.metrics import compute_metrics, problem_type_of
from mosaicbert.finetune.model import load_classifier, load_pretrained_tokenizer, save_encoder
from mosaicbert.finetune.trainer import FinetuneSettings, fine_tune
from mosaicbert.train.composer import release_memory
from mosaicbert.train.device import choose_precision


@dataclass(frozen=True, kw_only=True)
class GlueJob:
    """Input of a job.

    Attributes:
        config: Configuration of the scoring.
        checkpoint: Checkpoint that the score belongs to.
        task: Name of the task.
        seed: Seed of classification head, example order and dropout.
        model: Path or Hub name of the initial weights: the pretrained model, or the model fine-tuned on MNLI.
        save_to: Folder for the fine-tuned encoder, which initializes other tasks; None to discard the encoder.
    """

    config: GlueConfig
    checkpoint: CheckpointToScore
    task: str
    seed: int
    model: str
    save_to: Path | None


@dataclass(frozen=True, kw_only=True)
class GlueResult:
    """Output of a job.

    Attributes:
        metrics: Validation metrics by name, as fractions.
        is_partial: True if a split has fewer examples than the official split.
        seconds: Duration of the fine-tuning, including the evaluation.
        environment: Device, versions and commit.
    """

    metrics: dict[str, float]
    is_partial: bool
    seconds: float
    environment: dict[str, Any]


def run_job(job: GlueJob) -> GlueResult:
    """Fine-tune and evaluate a checkpoint on the device of this process.

    Args:
        job: Input of the job.

    Raises:
        ConfigError: If the data or the model cannot be read.
        TrainingFault: If a logit is not finite.
    """
    logging.disable_progress_bar()  # Transformers shows a progress bar for every file that it reads or writes
    task, config = TASKS[job.task], job.config
    data, problem_type = _read_data(config, job.task), problem_type_of(task.num_labels)
    precision, _ = choose_precision("fp32" if task.needs_fp32 else config.precision, "glue.precision")
    settings = FinetuneSettings(
        protocol=config.protocol_of(job.task),
        problem_type=problem_type,
        seed=job.seed,
        shuffle=config.shuffle,
        max_seq_len=config.max_seq_len,
        precision=precision,
    )
    tokenizer = load_pretrained_tokenizer(job.model)
    model = load_classifier(job.model, num_labels=task.num_labels, problem_type=problem_type, seed=job.seed)
    start_time = time.monotonic()
    logits = fine_tune(model, tokenizer, data.train, list(data.validation.values()), settings)
    seconds = time.monotonic() - start_time
    metrics: dict[str, float] = {}
    for (suffix, examples), split_logits in zip(data.validation.items(), logits, strict=True):
        names = tuple(dict.fromkeys(name.removesuffix(suffix) for name in task.metrics if name.endswith(suffix)))
        values = compute_metrics(names, problem_type, split_logits, torch.tensor(examples.labels))
        metrics |= {f"{name}{suffix}": value for name, value in values.items()}
    if job.save_to is not None:
        partial = partial_path(job.save_to)
        shutil.rmtree(partial, ignore_errors=True)
        save_encoder(model, tokenizer, partial)
        replace_folder(partial, job.save_to)
    del model
    release_memory()
    return GlueResult(
        metrics=metrics, is_partial=data.is_partial, seconds=round(seconds, 2), environment=_environment()
    )


def _environment() -> dict[str, Any]:
    environment = describe_environment()
    del environment["started"]
    return environment


@lru_cache(maxsize=2)
def _read_data_cached(config_json: str, task: str) -> GlueTaskData:
    return read_glue_task(GlueConfig(**json.loads(config_json)), task)


def _read_data(config: GlueConfig, task: str) -> GlueTaskData:
    data_only = {"model": "", "data": config.data, "revision": config.revision, "partial_data": config.partial_data}
    return _read_data_cached(json.dumps(data_only), task)
