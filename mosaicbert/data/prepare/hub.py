"""Datasets of the Hugging Face Hub, streamed: nothing is downloaded but what is read."""

import functools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard

from mosaicbert.config import ConfigError

_ROWS_PER_BATCH = 128  # of documents that may be long
_UNKNOWN_CLASS = -1  # how datasets of the Hub write that an example has no class
# What a missing network and damaged files raise from below `datasets`, which itself raises plain RuntimeErrors as well.
_UNREADABLE = (OSError, EOFError, RuntimeError, TypeError, ValueError, zlib.error, zstandard.ZstdError)


def find_revision(path: str, subset: str | None, revision: str) -> str | None:
    """The commit that a branch, tag or commit of a Hub dataset stands for; None for a folder.

    Raises:
        ConfigError: the dataset, its subset or the revision is not there, or the Hub is out of reach.
    """
    if Path(path).is_dir():
        return None
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset_builder(path, name=subset, revision=revision).hash
    except (DatasetNotFoundError, *_UNREADABLE) as error:
        raise ConfigError(f"{path}: revision {revision} cannot be opened: {_first_line(error)}") from error


def count_shards(path: str, revision: str | None, subset: str | None, split: str) -> int:
    """How many shards, usually files, a split of a Hub dataset has.

    Raises:
        ConfigError: the dataset, its subset or its split is not there, or the Hub is out of reach.
    """
    return _open(path, revision, subset, split).num_shards


def read_hub_shard(
    path: str, revision: str | None, subset: str | None, split: str, shard: tuple[int, int]
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of one shard, always cut into the same batches.

    Args:
        path: the dataset's name.
        revision: its commit, see `find_revision`.
        subset: its configuration.
        split: to read.
        shard: which one, and of how many.

    Raises:
        ConfigError: it cannot be opened or read on.
    """
    number, total = shard
    rows = _open(path, revision, subset, split).shard(num_shards=total, index=number).with_format("arrow")
    row = 0
    try:
        for table in rows.iter(batch_size=_ROWS_PER_BATCH):
            for batch in table.combine_chunks().to_batches():
                row += batch.num_rows
                yield batch
    except ConfigError:
        raise
    except _UNREADABLE as error:
        raise ConfigError(
            f"{path}: {split} shard {number} cannot be read after row {row}: {_first_line(error)}"
        ) from error


def load_hub_table(name: str, subset: str | None, split: str, revision: str, *, with_names: bool = False) -> pa.Table:
    """Load a whole split of a Hub dataset.

    Args:
        name: Name of the dataset.
        subset: Its configuration.
        split: Name of the split.
        revision: Branch, tag or commit.
        with_names: Give classes as names where the dataset has names for them, otherwise as numbers.

    Raises:
        ConfigError: If the dataset or its split does not exist, or the Hub cannot be reached.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (DatasetsError, OSError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{name} ({subset}): split {split} cannot be read: {reason}") from error
    table: pa.Table = rows.with_format("arrow")[:]
    for column, feature in rows.features.items() if with_names else ():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names:
            cells = [_class_names(cell, names) for cell in table.column(column).to_pylist()]
            table = table.set_column(table.column_names.index(column), column, pa.array(cells))
    return table


def _class_names(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return [_class_names(one, names) for one in cell]
    return None if cell is None or cell == _UNKNOWN_CLASS else names[cell]


@functools.lru_cache(maxsize=8)  # opening asks the Hub for the list of all files
def _open(path: str, revision: str | None, subset: str | None, split: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(path, name=subset, split=split, revision=revision, streaming=True)
    except (DatasetNotFoundError, *_UNREADABLE) as error:
        place = path if subset is None else f"{path} ({subset})"
        raise ConfigError(f"{place}: split {split} cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().split("\n")[0] or type(cause).__name__
