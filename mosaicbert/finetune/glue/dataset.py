"""GLUE's data: a dataset of the Hub, or a folder in its layout. What is missing or only a part is known beforehand."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import MNLI, TASKS, GlueConfig, GlueTask
from mosaicbert.data.prepare.hub import load_hub_table
from mosaicbert.finetune.tables import TABLE_SUFFIXES, Examples, get_column, get_text_columns, read_file

_PARTIAL_SUFFIX = "_partial"  # behind the name of a split that is known to be a part


@dataclass(frozen=True, kw_only=True)
class GlueTaskData:
    """The splits of a task.

    Attributes:
        task: its name.
        train: labelled.
        validation: by metric suffix: "" or, of MNLI, "_matched" and "_mismatched".
        is_partial: whether a split has fewer examples than the official.
    """

    task: str
    train: Examples
    validation: dict[str, Examples]
    is_partial: bool


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What is known of a task's data before it is trained on; of a dataset on the Hub, nothing.

    Attributes:
        sizes: examples of each split.
        digest: tells texts and labels apart from others, in whatever kind of file they are.
    """

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    digest: str | None = None


def find_tasks(config: GlueConfig) -> tuple[dict[str, DataSummary], dict[str, str]]:
    """Which tasks can be scored. Nothing is read of a dataset on the Hub: a part of a task there fails when it is read.

    Returns:
        What is known of each, by name; and why each of the others is left out.

    Raises:
        ConfigError: MNLI, which the chain begins with, is not there; or no task is.
    """
    is_local = Path(config.data).is_dir()
    if not is_local and (config.data.startswith((".", "/", "~")) or config.data.count("/") > 1):
        raise ConfigError(f"glue.data={config.data}: no such folder; give one, or a dataset's name on the Hub.")
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
        reason = skip_reasons.get(MNLI, "glue.tasks leaves it out")
        raise ConfigError(
            f"glue.init_from_mnli=true begins {', '.join(mnli_tasks)} with the model fine-tuned on MNLI, which is not "
            f"there ({reason}); give its data, or set glue.init_from_mnli=false."
        )
    if not available:
        raise ConfigError(f"glue.data={config.data}: no task can be scored: {'; '.join(skip_reasons.values())}.")
    return available, skip_reasons


def _summarize(config: GlueConfig, name: str) -> DataSummary | str:
    """What there is of a task in a folder, or why it cannot be scored."""
    task, sizes, digest = TASKS[name], dict[str, int](), hashlib.sha256()
    for split, num_official in task.num_examples.items():
        files = _find_files(config, name, split)
        if not files and _find_files(replace(config, partial_data=True), name, split):
            return f"{Path(config.data) / name}: only a part of {split} is there; glue.partial_data=true takes it"
        if not files:
            return f"{Path(config.data) / name}: no {split}{{{','.join(TABLE_SUFFIXES)}}}, nor {split}-*-of-*.parquet"
        table = _read_files(files, task)
        sizes[split] = table.num_rows
        if table.num_rows < num_official and not config.partial_data:
            asked = "glue.partial_data=true takes it as it is"
            return f"{files[0]}: {table.num_rows:,} examples of {num_official:,}; {asked}"
        columns = [table.column(name) for name in (*task.columns, "label") if name in table.column_names]
        # Numbers as they are trained on, of whatever precision the file is.
        columns = [column.cast(pa.float32()) if pa.types.is_floating(column.type) else column for column in columns]
        for row in zip(*(column.to_pylist() for column in columns), strict=True):
            digest.update(repr(row).encode())
    return DataSummary(sizes=sizes, digest=digest.hexdigest()[:12])


def read_glue_task(config: GlueConfig, name: str) -> GlueTaskData:
    """Reads the splits of a task.

    Raises:
        ConfigError: they cannot be read, or lack a column.
    """
    task = TASKS[name]
    splits = {split: _read_split(config, name, split) for split in task.num_examples}
    is_partial = any(len(splits[split]) < num_official for split, num_official in task.num_examples.items())
    if is_partial and not config.partial_data:
        raise ConfigError(
            f"{config.data}: {task.title} has fewer examples than the official splits; glue.partial_data=true takes it "
            "as it is."
        )
    train = splits.pop("train")
    validation = {split.removeprefix("validation"): examples for split, examples in splits.items()}
    return GlueTaskData(task=name, train=train, validation=validation, is_partial=is_partial)


def _read_split(config: GlueConfig, name: str, split: str) -> Examples:
    files = _find_files(config, name, split)
    if files:
        return _examples(TASKS[name], _read_files(files, TASKS[name]), str(files[0]))
    table = load_hub_table(config.data, name, split, config.revision)
    return _examples(TASKS[name], table, f"{config.data} ({name}, {split})")


def _examples(task: GlueTask, table: pa.Table, source: str) -> Examples:
    labels = get_column(table, "label", source).to_pylist()
    for row, label in enumerate(labels, start=1):
        if not _is_label(task, label):
            asked = f"a class from 0 to {task.num_labels - 1}" if task.num_labels > 1 else "a number"
            raise ConfigError(f"{source}: row {row} has label {label!r}; {task.title} has {asked}.")
    return Examples(texts=get_text_columns(table, task.columns, source), labels=labels)


def _is_label(task: GlueTask, label: Any) -> bool:
    if task.num_labels == 1:
        return isinstance(label, (int, float)) and math.isfinite(label)
    return isinstance(label, int) and 0 <= label < task.num_labels


def _read_files(files: list[Path], task: GlueTask) -> pa.Table:
    return pa.concat_tables([read_file(path, task.columns) for path in files])


def _find_files(config: GlueConfig, name: str, split: str) -> list[Path]:
    """The file of a split; or its shards, as the Hub's own copy has them."""
    folder = Path(config.data) / name
    suffixes = ["", _PARTIAL_SUFFIX] if config.partial_data else [""]
    candidates = [folder / f"{split}{ending}{kind}" for ending in suffixes for kind in TABLE_SUFFIXES]
    file = next((path for path in candidates if path.is_file()), None)
    return sorted(folder.glob(f"{split}-*-of-*.parquet")) if file is None else [file]
