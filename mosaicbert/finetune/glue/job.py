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

from mosaicbert.config.glue import TASKS, GlueConfig, ProtocolChange
from mosaicbert.filesystem import partial_path, replace_folder
from mosaicbert.finetune.glue.dataset import GlueTaskData, read_glue_task
from mosaicbert.finetune.metrics import REGRESSION, compute_metrics, predict_labels, problem_type_of
from mosaicbert.finetune.model import load_classifier, save_encoder
from mosaicbert.finetune.trainer import FinetuneSettings, fine_tune
from mosaicbert.model.pretrained import load_pretrained_tokenizer
from mosaicbert.scores.predictions import SplitPredictions, encode_values
from mosaicbert.scoring.plan import ScoringJob, ScoringResult, describe_scoring_environment
from mosaicbert.train.composer import release_memory
from mosaicbert.train.device import choose_precision


@dataclass(frozen=True, kw_only=True)
class GlueJob(ScoringJob):
    """Input of a job. The seed is that of classification head, example order and dropout.

    Attributes:
        config: Configuration of the scoring.
        model: Path or Hub name of the initial weights: the pretrained model, or the model fine-tuned on MNLI.
        save_to: Folder for the fine-tuned encoder, which initializes other tasks; None to discard the encoder.
    """

    config: GlueConfig
    model: str
    save_to: Path | None


def run_job(job: GlueJob) -> ScoringResult:
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
    model = load_classifier(
        job.model, num_labels=task.num_labels, problem_type=problem_type, seed=job.seed, dropout=config.dropout
    )
    start_time = time.monotonic()
    logits = fine_tune(model, tokenizer, data.train, list(data.validation.values()), settings)
    seconds = time.monotonic() - start_time
    metrics: dict[str, float] = {}
    predictions: dict[str, SplitPredictions] = {}
    for (suffix, examples), split_logits in zip(data.validation.items(), logits, strict=True):
        labels = torch.tensor(examples.labels)
        names = tuple(dict.fromkeys(name.removesuffix(suffix) for name in task.metrics if name.endswith(suffix)))
        values = compute_metrics(names, problem_type, split_logits, labels)
        metrics |= {f"{name}{suffix}": value for name, value in values.items()}
        predictions[suffix] = SplitPredictions(
            labels=encode_values(labels.tolist(), is_regression=problem_type == REGRESSION),
            predictions=encode_values(
                predict_labels(problem_type, split_logits).tolist(), is_regression=problem_type == REGRESSION
            ),
        )
    if job.save_to is not None:
        partial = partial_path(job.save_to)
        shutil.rmtree(partial, ignore_errors=True)
        save_encoder(model, tokenizer, partial)
        replace_folder(partial, job.save_to)
    del model
    release_memory()
    return ScoringResult(
        metrics=metrics,
        is_partial=data.is_partial,
        seconds=round(seconds, 2),
        environment=describe_scoring_environment(),
        predictions=predictions,
    )


@lru_cache(maxsize=2)
def _read_data_cached(config_json: str, task: str) -> GlueTaskData:
    fields = json.loads(config_json)
    protocol = {name: ProtocolChange(**change) for name, change in fields.pop("protocol", {}).items()}
    return read_glue_task(GlueConfig(protocol=protocol, **fields), task)


def _read_data(config: GlueConfig, task: str) -> GlueTaskData:
    names = ("data", "revision", "partial_data", "tuning_examples")
    data_only: dict[str, Any] = {"model": ""} | {name: getattr(config, name) for name in names}
    train_examples = config.protocol_of(task).train_examples
    if train_examples is not None:
        data_only["protocol"] = {task: {"train_examples": train_examples}}
    return _read_data_cached(json.dumps(data_only), task)
