"""GLUE datasets, read from the Hub or from a local folder with the same columns."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS, GlueConfig, GlueTask
from mosaicbert.data.prepare.hub import load_hub_table
from mosaicbert.finetune.tables import TABLE_SUFFIXES, Examples, get_column, get_text_columns, read_file

_SUBSET_SEED = 0  # of the random choice of training examples, the same for all jobs
_PARTIAL_SUFFIX = "_partial"  # suffix of the name of an incomplete split


@dataclass(frozen=True, kw_only=True)
class GlueTaskData:
    """Splits of a GLUE task.

    Attributes:
        task: Name of the task.
        train: Labeled training examples.
        validation: Labeled validation examples by metric suffix: "", or "_matched" and "_mismatched" for MNLI.
        is_partial: True if a split has fewer examples than the official split, or is not the official split.
    """

    task: str
    train: Examples
    validation: dict[str, Examples]
    is_partial: bool


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Size and hash of a task's data, which identify the data in score records. Both are empty for a Hub dataset.

    Attributes:
        sizes: Number of examples of each split.
        digest: Hash of texts and labels, which does not depend on the file format.
    """

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    digest: str | None = None


def find_tasks(config: GlueConfig) -> tuple[dict[str, DataSummary], dict[str, str]]:
    """Find the tasks that can be scored.

    A Hub dataset is not read here. An incomplete task in it raises an error when a job reads the task.

    Args:
        config: GLUE section of the recipe.

    Returns:
        Data summary of each task that can be scored, and the reason for each skipped task.

    Raises:
        ConfigError: If no task can be scored, or a task needs MNLI and MNLI cannot be scored.
    """
    is_local = Path(config.data).is_dir()
    if not is_local and (config.data.startswith((".", "/", "~")) or config.data.count("/") > 1):
        raise ConfigError(
            f"`glue.data` must be an existing folder or the name of a Hub dataset, got {config.data}. Check the path."
        )
    available: dict[str, DataSummary] = {}
    skip_reasons: dict[str, str] = {}
    for name in config.tasks:
        summary = _summarize(config, name) if is_local else DataSummary()
        if isinstance(summary, DataSummary):
            available[name] = summary
        else:
            skip_reasons[name] = summary
    mnli_tasks = [name for name in available if config.is_initialized_from_mnli(name)]
    if mnli_tasks and MNLI not in available:
        reason = skip_reasons.get(MNLI, "glue.tasks does not include it")
        raise ConfigError(
            f"`glue.init_from_mnli=true` is not supported for {', '.join(mnli_tasks)} without the data of MNLI "
            f"({reason}). Add MNLI, or set glue.init_from_mnli=false."
        )
    if not available:
        raise ConfigError(
            f"`glue.data` must contain at least one of the tasks, got {config.data} with none: "
            f"{'; '.join(skip_reasons.values())}. Add the files of a task."
        )
    return available, skip_reasons


# Returns the reason as a string if the task cannot be scored.
def _summarize(config: GlueConfig, name: str) -> DataSummary | str:
    task, sizes, digest = TASKS[name], dict[str, int](), hashlib.sha256()
    folder = Path(config.data) / name
    for split, num_official in task.num_examples.items():
        files = _find_files(config, name, split)
        if not files and _find_files(replace(config, partial_data=True), name, split):
            return f"{folder} has only a partial {split} split; set glue.partial_data=true to use it"
        if not files:
            return f"{folder} does not have {split}{{{','.join(TABLE_SUFFIXES)}}} or {split}-*-of-*.parquet"
        table = _read_files(files, task)
        sizes[split] = table.num_rows
        if table.num_rows < num_official and not config.partial_data:
            counts = f"{table.num_rows:,} of {num_official:,} examples"
            return f"{files[0]} has {counts}; set glue.partial_data=true to use it"
        columns = [table.column(name) for name in (*task.columns, "label") if name in table.column_names]
        # Cast to the training precision, so that the hash does not depend on the precision of the file.
        columns = [column.cast(pa.float32()) if pa.types.is_floating(column.type) else column for column in columns]
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            digest.update(repr(row).encode())
    return DataSummary(sizes=sizes, digest=digest.hexdigest()[:12])


def read_glue_task(config: GlueConfig, name: str) -> GlueTaskData:
    """Read the splits of a task.

    With `glue.tuning_examples`, random training examples replace the validation split. With `train_examples` of the
    protocol, the training split is a random subset of the rest. Both choices do not depend on the seed of a job.

    Args:
        config: GLUE section of the recipe.
        name: Name of the task.

    Raises:
        ConfigError: If a split cannot be read, lacks a column, has an invalid label, or is partial and
            `glue.partial_data` is false; or if the task has fewer training examples than the recipe needs.
    """
    task = TASKS[name]
    splits = {split: _read_split(config, name, split) for split in task.num_examples}
    is_partial = any(len(splits[split]) < num_official for split, num_official in task.num_examples.items())
    if is_partial and not config.partial_data:
        raise ConfigError(
            f"{task.title} in {config.data} must have all examples of the official splits, got fewer. Set "
            "glue.partial_data=true to use it."
        )
    train = splits.pop("train")
    validation = {split.removeprefix("validation"): examples for split, examples in splits.items()}
    num_tuning, num_train = config.tuning_examples or 0, config.protocol_of(name).train_examples
    if num_tuning or num_train:
        if num_tuning + (num_train or 1) > len(train):
            raise ConfigError(
                f"{task.title} must have at least {num_tuning + (num_train or 1):,} training examples, got "
                f"{len(train):,}. Lower `glue.tuning_examples` or `glue.protocol.{name}.train_examples`."
            )
        order = np.random.default_rng(_SUBSET_SEED).permutation(len(train)).tolist()
        tuning = _select(train, order[:num_tuning])
        train = _select(train, order[num_tuning:][:num_train])
        validation = dict.fromkeys(validation, tuning) if num_tuning else validation
        is_partial = True
    return GlueTaskData(task=name, train=train, validation=validation, is_partial=is_partial)


def _select(examples: Examples, rows: list[int]) -> Examples:
    assert examples.labels is not None
    return Examples(
        texts=tuple([column[row] for row in rows] for column in examples.texts),
        labels=[examples.labels[row] for row in rows],
    )


def _read_split(config: GlueConfig, name: str, split: str) -> Examples:
    files = _find_files(config, name, split)
    if files:
        return _examples(TASKS[name], _read_files(files, TASKS[name]), str(files[0]))
    table = load_hub_table(config.data, name, split, config.revision)
    return _examples(TASKS[name], table, f"{config.data} ({name}, {split})")


def _examples(task: GlueTask, table: pa.Table, source: str) -> Examples:
    labels = get_column(table, "label", source).to_pylist()
    for row, label in enumerate(labels, start=1):
        if not _is_valid_label(task, label):
            rule = f"a class from 0 to {task.num_labels - 1}" if task.num_labels > 1 else "a finite number"
            raise ConfigError(
                f"{task.title} label in {source}, row {row}, must be {rule}, got {label!r}. Fix or remove the row."
            )
    return Examples(texts=get_text_columns(table, task.columns, source), labels=labels)


def _is_valid_label(task: GlueTask, label: Any) -> bool:
    if task.num_labels == 1:
        return isinstance(label, (int, float)) and math.isfinite(label)
    return isinstance(label, int) and 0 <= label < task.num_labels


def _read_files(files: list[Path], task: GlueTask) -> pa.Table:
    return pa.concat_tables([read_file(path, task.columns) for path in files])


# Returns one file, or the Parquet shards of a copy of the Hub dataset.
def _find_files(config: GlueConfig, name: str, split: str) -> list[Path]:
    folder = Path(config.data) / name
    endings = ["", _PARTIAL_SUFFIX] if config.partial_data else [""]
    candidates = [folder / f"{split}{ending}{suffix}" for ending in endings for suffix in TABLE_SUFFIXES]
    file = next((path for path in candidates if path.is_file()), None)
    return sorted(folder.glob(f"{split}-*-of-*.parquet")) if file is None else [file]
