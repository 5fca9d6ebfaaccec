"""Streaming access to datasets of the Hugging Face Hub, without downloading whole datasets."""

import functools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from mosaicbert.config import ConfigError

_ROWS_PER_BATCH = 128  # small, because documents may be long
_UNKNOWN_CLASS = -1  # value that Hub datasets store for an example without a class
# Exceptions of `datasets` and its dependencies for a missing network and for corrupted files. `datasets` itself raises
# plain RuntimeErrors as well.
_UNREADABLE = (OSError, EOFError, RuntimeError, TypeError, ValueError, zlib.error, zstandard.ZstdError)


def find_revision(path: str, subset: str | None, revision: str) -> str | None:
    """Find the commit of a branch or tag of a Hub dataset.

    Args:
        path: Name of the dataset, or a local folder.
        subset: Configuration of the dataset.
        revision: Branch, tag or commit.

    Returns:
        Commit hash; None for a local folder.

    Raises:
        ConfigError: If the dataset, its subset or the revision does not exist, or the Hub cannot be reached.
    """
    if Path(path).is_dir():
        return None
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset_builder(path, name=subset, revision=revision).hash
    except (DatasetNotFoundError, *_UNREADABLE) as error:
        raise ConfigError(
            f"Hub dataset {path}, revision {revision}, cannot be opened ({_first_line(error)}). "
            "Check its name, subset and revision, and the network connection."
        ) from error


def count_shards(path: str, revision: str | None, subset: str | None, split: str) -> int:
    """Count the shards of a split of a Hub dataset, which are usually its files.

    Args:
        path: Name of the dataset.
        revision: Commit of the dataset, see `find_revision`.
        subset: Configuration of the dataset.
        split: Name of the split.

    Raises:
        ConfigError: If the dataset, its subset or its split does not exist, or the Hub cannot be reached.
    """
    return _open(path, revision, subset, split).num_shards


def read_hub_shard(
    path: str, revision: str | None, subset: str | None, split: str, shard: tuple[int, int]
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one shard, always in the same batches.

    Args:
        path: Name of the dataset.
        revision: Commit of the dataset, see `find_revision`.
        subset: Configuration of the dataset.
        split: Name of the split.
        shard: Index of the shard, and number of shards.

    Raises:
        ConfigError: If the shard cannot be opened or read.
    """
    index, num_shards = shard
    rows = _open(path, revision, subset, split).shard(num_shards=num_shards, index=index).with_format("arrow")
    num_rows = 0
    try:
        for table in rows.iter(batch_size=_ROWS_PER_BATCH):
            for batch in table.combine_chunks().to_batches():
                num_rows += batch.num_rows
                yield batch
    except ConfigError:
        raise
    except _UNREADABLE as error:
        raise ConfigError(
            f"Hub dataset {path}, {split} shard {index}, cannot be read after row {num_rows} ({_first_line(error)}). "
            "Check the network connection and run the command again."
        ) from error


def list_subsets(name: str, revision: str) -> list[str]:
    """List the configurations of a Hub dataset.

    Args:
        name: Name of the dataset.
        revision: Branch, tag or commit.

    Raises:
        ConfigError: If the dataset does not exist, or the Hub cannot be reached.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.get_dataset_config_names(name, revision=revision)
    except (DatasetsError, *_UNREADABLE) as error:
        raise ConfigError(
            f"Hub dataset {name}, revision {revision}, cannot be opened ({_first_line(error)}). "
            "Check its name and revision, and the network connection."
        ) from error


def load_hub_table(name: str, subset: str | None, split: str, revision: str, *, with_names: bool = False) -> pa.Table:
    """Load a whole split of a Hub dataset.

    Args:
        name: Name of the dataset.
        subset: Configuration of the dataset.
        split: Name of the split.
        revision: Branch, tag or commit.
        with_names: True to replace the numbers of classes with their names, where the dataset has names.

    Raises:
        ConfigError: If the dataset or its split does not exist, or the Hub cannot be reached.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (DatasetsError, OSError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(
            f"Hub dataset {name} ({subset}), split {split}, cannot be read: {reason}. "
            "Check its name, subset and split, and the network connection."
        ) from error
    table: pa.Table = rows.with_format("arrow")[:]
    for column, feature in rows.features.items() if with_names else ():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names:
            cells = [_class_names(cell, names) for cell in table.column(column).to_pylist()]
            table = table.set_column(table.column_names.index(column), column, pa.array(cells))
    return table


def _class_names(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return [_class_names(item, names) for item in cell]
    return None if cell is None or cell == _UNKNOWN_CLASS else names[cell]


@functools.lru_cache(maxsize=8)  # each call requests the list of all files from the Hub
def _open(path: str, revision: str | None, subset: str | None, split: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(path, name=subset, split=split, revision=revision, streaming=True)
    except (DatasetNotFoundError, *_UNREADABLE) as error:
        dataset = path if subset is None else f"{path} ({subset})"
        raise ConfigError(
            f"Hub dataset {dataset}, split {split}, cannot be opened ({_first_line(error)}). "
            "Check its name, subset and split, and the network connection."
        ) from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().split("\n")[0].rstrip(".") or type(cause).__name__
