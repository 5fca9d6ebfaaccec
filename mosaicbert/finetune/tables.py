"""Tables of labeled texts, read from JSON Lines, CSV and Parquet files."""

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
_CSV = pyarrow.csv.ParseOptions(newlines_in_values=True)  # texts may contain line breaks
_BLOCK_SIZE = 2**26  # bytes; a row must fit into one block, and pyarrow infers column types from the first block


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts with or without labels.

    Attributes:
        texts: One column of texts, or two columns that make pairs.
        labels: Classes, numbers or multi-hot labels; None for texts without labels.
    """

    texts: tuple[list[str], ...]
    labels: list[Label] | None

    def __len__(self) -> int:
        return len(self.texts[0])


def read_file(path: Path, required_columns: Sequence[str] = ()) -> pa.Table:
    """Read a .jsonl, .csv or .parquet file.

    Args:
        path: Path of the file.
        required_columns: Names of the columns that the caller uses. In a CSV file, their cells are read as strings,
            including cells that look like numbers.

    Raises:
        ConfigError: If the file has a different suffix, does not exist or cannot be read.
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
            raise ConfigError(
                f"Table {path} must be one of {', '.join(TABLE_SUFFIXES)}, got {suffix or 'no suffix'}. "
                "Convert the file."
            )
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        reason = str(error).strip().rstrip(".")
        raise ConfigError(f"{path} cannot be read ({reason}). Check the path and the format of the file.") from error
    for name in table.column_names:
        if table.column_names.count(name) > 1:
            raise ConfigError(
                f"Column names of {path} must be distinct, got {name!r} several times. Rename these columns."
            )
    return table


def _read_json_lines(path: Path, required_columns: Sequence[str]) -> pa.Table:
    # The JSON reader of pyarrow converts some strings to dates, and rejects columns with mixed types.
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as lines:
        for line_number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"{path}, line {line_number}, must be valid JSON, got invalid JSON ({error}). Fix the line."
                ) from error
            if not isinstance(row, dict):
                raise ConfigError(
                    f"{path}, line {line_number}, must be a JSON object, got {type(row).__name__}. "
                    'Write each row as {"column": value, ...}.'
                )
            rows.append(cast(dict[str, Any], row))
    if not rows:
        raise ConfigError(f"{path} must have at least one row, got none. Add examples.")
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = _to_arrow([row.get(name) for row in rows])
        except (TypeError, ValueError) as error:
            if name in required_columns:
                raise ConfigError(f"Column {name!r} of {path} cannot be used ({error}). Fix its values.") from error
    return pa.table(columns)


def _to_arrow(cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):  # the types are mixed
        if any(isinstance(cell, (list, dict)) for cell in cells):
            raise TypeError("lists or objects are mixed with other types") from None
        return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])


def is_file_name(name: str) -> bool:
    """Return whether a name refers to a table file, not to a dataset or a split on the Hub."""
    suffix = Path(name).suffix.lower()
    return suffix in TABLE_SUFFIXES or (suffix != "" and Path(name).is_file())


def get_text_columns(table: pa.Table, columns: tuple[str, ...], source: str) -> tuple[list[str], ...]:
    """Return text columns of a table as lists of strings.

    Args:
        table: Table with the columns.
        columns: Names of the columns.
        source: Name of the table in error messages.

    Raises:
        ConfigError: If a column is missing, is not a text column or has empty cells.
    """
    texts: list[list[str]] = []
    for name in columns:
        column = get_column(table, name, source)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise ConfigError(
                f"Column {name!r} of {source} must contain text, got {column.type}. Choose a different column."
            )
        if column.null_count:
            raise ConfigError(
                f"Column {name!r} of {source} must contain text in every row, got {column.null_count} empty cells. "
                "Remove these rows."
            )
        texts.append(column.to_pylist())
    return tuple(texts)


def get_column(table: pa.Table, name: str, source: str) -> pa.ChunkedArray:
    """Return a column of a table.

    Args:
        table: Table with the column.
        name: Name of the column.
        source: Name of the table in error messages.

    Raises:
        ConfigError: If the column does not exist.
    """
    if name not in table.column_names:
        raise ConfigError(
            f"{source} must have a column {name!r}, got {', '.join(table.column_names)}. Check the column names."
        )
    return table.column(name)
