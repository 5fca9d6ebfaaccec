"""Where text comes from: the installed documentation, local files, or a dataset of the Hugging Face Hub."""

import glob
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from mosaicbert.config import ConfigError, DataConfig
from mosaicbert.data.documentation import read_installed_documentation

INSTALLED_DOCUMENTATION = "installed-documentation"

# The builder of `datasets` that reads each kind of file; .gz and .zst may follow. Blank lines part texts in .txt.
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {"sample_by": "paragraph"}),
}
_COMPRESSIONS = (".gz", ".zst")
# What damaged files and a missing network raise from below `datasets`, which itself raises plain RuntimeErrors as well.
_UNREADABLE = (ConnectionError, EOFError, OSError, RuntimeError, ValueError, zlib.error, zstandard.ZstdError)


def read_texts(data: DataConfig, split: str = "train") -> Iterator[str]:
    """Yields the texts of `data.source`, one document after the other, always in the same order.

    Args:
        data: names the source.
        split: of a Hub dataset; files and the installed documentation have only "train".

    Raises:
        ConfigError: the source does not exist, its files are of no known kind or broken, or the text column is missing.
    """
    files = require_source(data)
    if data.source == INSTALLED_DOCUMENTATION:
        return read_installed_documentation()
    if files:
        builder, options = _builder_of(data.source, files)
        return _stream(data, split="train", path=builder, data_files=files, **options)
    return _stream(data, split=split, path=data.source, name=data.subset)


def require_source(data: DataConfig) -> list[str]:
    """Refuses a source that cannot be read, as far as that shows without opening it.

    Returns:
        The source's files; none for a Hub dataset and for the installed documentation.

    Raises:
        ConfigError: the files are not there, of no known kind or of several, or are asked for splits they do not have.
    """
    files = [] if data.source == INSTALLED_DOCUMENTATION else _find_files(data.source)
    if files:
        _builder_of(data.source, files)
    if files or data.source == INSTALLED_DOCUMENTATION:
        for key in ("subset", "validation_split"):
            if (value := getattr(data, key)) is not None:
                raise ConfigError(
                    f"data.{key}={value}: only datasets of the Hub have that, not data.source={data.source}; "
                    f"set data.{key}=null."
                )
    return files


def _find_files(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if file.is_file() and _kind(str(file)) is not None)
        if not files:
            raise ConfigError(f"data.source={source}: the folder holds no {', '.join(_BUILDERS)} file.")
        return files
    if path.is_file():
        return [source]
    files = sorted(glob.glob(source, recursive=True))
    looks_like_a_path = path.is_absolute() or source.startswith(".") or _kind(source) is not None or "*" in source
    if not files and looks_like_a_path:
        raise ConfigError(f"data.source={source}: no such file; give a path, a folder, a glob or a Hub dataset's name.")
    return files


def _builder_of(source: str, files: list[str]) -> tuple[str, dict[str, Any]]:
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1 or None in kinds:
        raise ConfigError(
            f"data.source={source}: files end in {sorted({Path(file).suffix for file in files})}; "
            f"they must all be of one kind: {', '.join(_BUILDERS)}, each also with {' or '.join(_COMPRESSIONS)}."
        )
    return _BUILDERS[next(kind for kind in kinds if kind)]


def _kind(file: str) -> str | None:
    path = Path(file)
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSIONS else path.suffix
    return suffix if suffix in _BUILDERS else None


def _stream(data: DataConfig, **arguments: Any) -> Iterator[str]:
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    place = f"data.source={data.source}"
    try:
        rows = datasets.load_dataset(**arguments, streaming=True)
    except StopIteration as error:  # what `datasets` says of an empty file
        raise ConfigError(f"{place}: holds no document.") from error
    except (DatasetNotFoundError, *_UNREADABLE) as error:
        raise ConfigError(f"{place}: cannot be opened: {_first_line(error)}") from error
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            text = row.get(data.text_column)
            if not isinstance(text, str):
                raise ConfigError(
                    f"{place}: document {number} has no text in column {data.text_column!r}, only {sorted(row)}; "
                    "set data.text_column."
                )
            yield text
    except (DatasetGenerationError, *_UNREADABLE) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{place}: cannot be read after document {number}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().split("\n")[0] or type(cause).__name__
