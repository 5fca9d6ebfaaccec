"""Labelled texts, as tasks have them, and where they are read from: files with columns, or datasets of the Hub."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mosaicbert.config import ConfigError

Label = int | float | list[int]
TABLE_SUFFIXES = (".jsonl", ".csv", ".parquet")
_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)  # texts have line breaks
_BLOCK_SIZE = 2**26  # bytes of a CSV that pyarrow reads at once: a line is in one, and the first tells kinds of cells


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


def read_file(path: Path, required_columns: Sequence[str] = ()) -> pa.Table:
    """A .jsonl, .csv or .parquet with its columns.

    Args:
        path: of the file.
        as_text: columns that are asked for, whose cells in a CSV are taken as they are written, though they look like
            numbers.

    Raises:
        ConfigError: it is none of these, is missing or cannot be read.
    """
    try:
        suffix = path.suffix.lower()
        if suffix == ".jsonl":
            table = _read_json_lines(path, required_columns)
        elif suffix == ".csv":
            convert_options = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in required_columns})
            read_options = pyarrow.csv.ReadOptions(block_size=_BLOCK_SIZE)
            table = pyarrow.csv.read_csv(path, read_options, _CSV, convert_options)
        elif suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            raise ConfigError(f"{path}: is no table; give {', '.join(TABLE_SUFFIXES)}.")
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise ConfigError(f"{path}: has several columns {name!r}; give each a name of its own.")
    return table


def _read_json_lines(path: Path, required_columns: Sequence[str]) -> pa.Table:
    # Not by pyarrow's reader: it makes dates of texts, and refuses a file for kinds that are mixed in any column.
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}: cannot be read: line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}: cannot be read: line {number} is no object with named fields.")
            rows.append(cast(dict[str, Any], row))
    if not rows:
        raise ConfigError(f"{path}: cannot be read: it has no rows.")
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = _to_arrow([row.get(name) for row in rows])
        except (TypeError, ValueError) as error:
            if name in required_columns:
                raise ConfigError(f"{path}: column {name!r} cannot be used: {error}") from error
    return pa.table(columns)


def _to_arrow(cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):  # of several kinds
        if any(isinstance(cell, (list, dict)) for cell in cells):
            raise TypeError("lists or objects stand beside cells of other kinds") from None
        return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file, and not of a dataset or a split on the Hub."""
    suffix = Path(name).suffix.lower()
    return suffix in TABLE_SUFFIXES or (suffix != "" and Path(name).is_file())


def get_text_columns(table: pa.Table, columns: tuple[str, ...], source: str) -> tuple[list[str], ...]:
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
        column = get_column(table, name, source)
        if pa.convert_options.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.convert_options.is_string_view(column.type):
            column = column.cast(pa.string())
        if not (pa.convert_options.is_string(column.type) or pa.convert_options.is_large_string(column.type)):
            raise ConfigError(f"{source}: column {name!r} holds {column.type}; name one of text.")
        if column.null_count:
            raise ConfigError(f"{source}: column {name!r} has {column.null_count} rows without text; leave them out.")
        texts.append(column.to_pylist())
    return tuple(texts)


def get_column(table: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    """A column.

    Raises:
        ConfigError: it is missing.
    """
    if name not in table.column_names:
        raise ConfigError(f"{source}: has no column {name!r}; it has {', '.join(table.column_names)}.")
    return table.column(name)
