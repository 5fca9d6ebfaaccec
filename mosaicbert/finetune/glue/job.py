"""What one process of the GLUE queue does: fine-tune one checkpoint on one task with one seed, and measure it."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from mosaicbert.config.glue import MAIN, MNLI, OFFICIAL, TASKS, GlueConfig
from mosaicbert.finetune.glue.checkpoints import Checkpoint
from mosaicbert.finetune.glue.dataset import FoundTask, TaskData, read_task
from mosaicbert.finetune.metrics import compute_metrics, problem_of
from mosaicbert.finetune.model import load_classifier, load_tokenizer, save_encoder
from mosaicbert.finetune.trainer import Settings, fine_tune
from mosaicbert.train.device import choose_precision, release_memory
from mosaicbert.train.run_folder import describe_environment

PARTIAL = ".partial"  # behind the name of a folder that is being written


@dataclass(frozen=True, kw_only=True)
class GlueJob:
    """What is to be done.

    Attributes:
        config: of the recipe.
        checkpoint: that the score is of.
        task: its name.
        seed: of head, order and dropout.
        model: the folder or Hub name to begin with: the pretrained model, or the one fine-tuned on MNLI.
        keep: folder to leave the fine-tuned model in, for other tasks to begin with.
    """

    config: GlueConfig
    checkpoint: Checkpoint
    task: str
    seed: int
    model: str
    keep: Path | None


@dataclass(frozen=True, kw_only=True)
class GlueResult:
    """What came out: the fields of `mosaicbert.scores.records.Score` that the job knows."""

    metrics: dict[str, float]
    is_partial: bool
    seconds: float
    environment: dict[str, Any]


def score(job: GlueJob) -> GlueResult:
    """Fine-tunes and measures on this process' device.

    Raises:
        ConfigError: data or model cannot be read.
    """
    logging.disable_progress_bar()  # transformers shows one for every file that it reads or writes
    task, config = TASKS[job.task], job.config
    data, problem = _read(config, job.task), problem_of(task.num_labels)
    precision, _ = choose_precision("fp32" if task.needs_fp32 else config.precision, "glue.precision")
    settings = Settings(
        protocol=config.protocol_of(job.task),
        problem=problem,
        seed=job.seed,
        shuffle=config.shuffle,
        max_seq_len=config.max_seq_len,
        precision=precision,
    )
    tokenizer = load_tokenizer(job.model)
    model = load_classifier(job.model, num_labels=task.num_labels, problem=problem, seed=job.seed)
    began = time.monotonic()
    logits = fine_tune(model, tokenizer, data.train, list(data.validation.values()), settings)
    seconds = time.monotonic() - began
    metrics: dict[str, float] = {}
    for (suffix, examples), predicted in zip(data.validation.items(), logits, strict=True):
        names = tuple(dict.fromkeys(name.removesuffix(suffix) for name in task.metrics if name.endswith(suffix)))
        found = compute_metrics(names, problem, predicted, torch.tensor(examples.labels))
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
    if job.keep is not None:
        partial = job.keep.with_name(job.keep.name + PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        save_encoder(model, tokenizer, partial)
        shutil.rmtree(job.keep, ignore_errors=True)
        partial.replace(job.keep)
    del model
    release_memory()
    return GlueResult(
        metrics=metrics, is_partial=data.is_partial, seconds=round(seconds, 2), environment=_environment()
    )


def _environment() -> dict[str, Any]:
    environment = describe_environment()
    del environment["started"]
    return environment


def describe_settings(config: GlueConfig, task: str, found: Mapping[str, FoundTask]) -> dict[str, Any]:
    """Everything about a task's fine-tuning that changes its scores, but for the model and the seed.

    Args:
        config: of the recipe.
        task: its name.
        found: what is known of the tasks' data beforehand.
    """
    # Files are told apart by what they hold, wherever they lie; a dataset of the Hub by its name.
    is_plain = any(data.digest for data in found.values()) or (config.data, config.revision) == (OFFICIAL, MAIN)

    def protocol(name: str) -> dict[str, Any]:
        asked = asdict(config.protocol_of(name))
        del asked["num_seeds"]
        dtype, _ = choose_precision("fp32" if TASKS[name].needs_fp32 else config.precision, "glue.precision")
        data = found.get(name, FoundTask())
        sizes = data.sizes or TASKS[name].num_examples
        known = {} if data.digest is None else {"digest": data.digest}
        return asked | {"precision": str(dtype), "sizes": sizes} | known

    chained = config.starts_from_mnli(task)
    return {
        "protocol": protocol(task),
        "mnli": protocol(MNLI) if chained else None,
        "shuffle": config.shuffle,
        "max_seq_len": config.max_seq_len,
        "data": None if is_plain else f"{config.data}@{config.revision}",
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Twelve digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=2)
def _read_cached(config_json: str, task: str) -> TaskData:
    return read_task(GlueConfig(**json.loads(config_json)), task)


def _read(config: GlueConfig, task: str) -> TaskData:
    data_only = {"model": "", "data": config.data, "revision": config.revision, "partial_data": config.partial_data}
    return _read_cached(json.dumps(data_only), task)
