"""Labelled texts, as tasks have them, and where they are read from: files with columns, or datasets of the Hub."""

import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from mosaicbert.config import ConfigError

Label = int | float | list[int]
_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)  # texts have line breaks
_READERS = {
    ".jsonl": pyarrow.json.read_json,
    ".csv": partial(pyarrow.csv.read_csv, parse_options=_CSV),
    ".parquet": pyarrow.parquet.read_table,
}
KINDS = tuple(_READERS)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled texts.

    Attributes:
        texts: one column, or two that make pairs.
        labels: a class, a number, or for each class whether it applies; None where nothing is known.
    """

    texts: tuple[list[str], ...]
    labels: list[Label] | None

    def __len__(self) -> int:
        return len(self.texts[0])


def read_file(path: Path) -> pa.Table:
    """A .jsonl, .csv or .parquet with its columns.

    Raises:
        ConfigError: it is none of these, is missing or cannot be read.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise ConfigError(f"{path}: is no table; give {', '.join(KINDS)}.")
    try:
        return reader(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def read_hub(name: str, subset: str | None, split: str, revision: str) -> pa.Table:
    """A split of a dataset of the Hub, whole.

    Raises:
        ConfigError: it is not there, or the Hub is out of reach.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except (DatasetNotFoundError, OSError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{name} ({subset}): split {split} cannot be read: {reason}") from error
    return rows.with_format("arrow")[:]


def text_columns(table: pa.Table, columns: tuple[str, ...], place: str) -> tuple[list[str], ...]:
    """The texts of some columns.

    Args:
        table: that holds them.
        columns: their names.
        place: where the table comes from, for messages.

    Raises:
        ConfigError: a column is missing, or holds something else than text.
    """
    texts: list[list[str]] = []
    for name in columns:
        column = require_column(table, name, place)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ConfigError(f"{place}: column {name!r} holds {column.type}; name one of text.")
        if column.null_count:
            raise ConfigError(f"{place}: column {name!r} has {column.null_count} rows without text; leave them out.")
        texts.append(column.to_pylist())
    return tuple(texts)


def require_column(table: pa.Table, name: str, place: str) -> pa.ChunkedArray:
    """A column.

    Raises:
        ConfigError: it is missing.
    """
    if name not in table.column_names:
        raise ConfigError(f"{place}: has no column {name!r}; it has {', '.join(table.column_names)}.")
    return table.column(name)
