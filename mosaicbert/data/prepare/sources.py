"""Input files of the sources of a recipe, in a fixed order."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.config.validators import must_be
from mosaicbert.data.prepare.hub import count_shards, find_revision
from mosaicbert.data.store import TRAIN, VALIDATION

INSTALLED_DOCUMENTATION = "installed-documentation"


# File formats. Text formats may be compressed; Arrow and Parquet files have their own compression.
_TEXT_SUFFIXES = (".jsonl", ".json", ".txt")
_TABLE_SUFFIXES = (".parquet", ".arrow")
_COMPRESSION_SUFFIXES = (".gz", ".zst")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """Input that is read from start to end: a file, or a shard of a Hub dataset.

    Attributes:
        source: Name of the source in the recipe.
        path: Path of the file, name of the Hub dataset, or "installed-documentation".
        kind: ".jsonl", ".txt", ".parquet", ".arrow", "hub" or "installed-documentation".
        compression: ".gz", ".zst" or "".
        text_column: Name of the column with the text.
        split: Split of all texts; None assigns each text to a split by its hash.
        revision: Commit of the Hub dataset.
        subset: Configuration of the Hub dataset.
        hub_split: Split of the Hub dataset.
        shard: Index of the shard of the Hub dataset, and number of its shards.
        size: Size on disk in bytes; 0 if unknown.
    """

    source: str
    path: str
    kind: str
    compression: str = ""
    text_column: str
    split: str | None = None
    revision: str | None = None
    subset: str | None = None
    hub_split: str = TRAIN
    shard: tuple[int, int] = (0, 1)
    size: int = 0

    def __str__(self) -> str:
        if self.kind != "hub":
            return self.path
        commit = "" if self.revision is None else f"@{self.revision}"
        return f"{self.path}{commit}, {self.hub_split} shard {self.shard[0]} of {self.shard[1]}"


def resolve_revisions(sources: Mapping[str, SourceConfig]) -> dict[str, str | None]:
    """Find the commit of each Hub dataset.

    Args:
        sources: Sources by name.

    Returns:
        Commits by source name; None for a source that is not a Hub dataset.

    Raises:
        ConfigError: If a source cannot be read, see `list_input_files`.
    """
    check_sources(sources)
    return {
        name: find_revision(source.path, source.subset, source.revision)
        if source.path != INSTALLED_DOCUMENTATION and not _find_files(name, source.path)
        else None
        for name, source in sources.items()
    }


def list_input_files(
    sources: Mapping[str, SourceConfig], revisions: Mapping[str, str | None] | None = None
) -> list[InputFile]:
    """List the input files of all sources, in the order of the recipe.

    The training split of a Hub dataset precedes its validation split.

    Args:
        sources: Sources by name.
        revisions: Result of `resolve_revisions`; None resolves the revisions now.

    Raises:
        ConfigError: If a source does not exist, has files of an unknown format, or does not have the requested splits.
    """
    check_sources(sources)
    commits = resolve_revisions(sources) if revisions is None else revisions
    return [input_file for name, source in sources.items() for input_file in _list_source(name, source, commits[name])]


def check_sources(sources: Mapping[str, SourceConfig]) -> None:
    """Check the paths and options of all sources without opening a file or a Hub dataset.

    Args:
        sources: Sources by name.

    Raises:
        ConfigError: If a local source does not exist, has files of an unknown format, or has options of a Hub dataset.
    """
    for name, source in sources.items():
        files = _find_files(name, source.path)
        kinds = sorted({_file_kind(name, file)[0] for file in files})
        if len(kinds) > 1:
            raise must_be(
                f"data.sources.{name}.path",
                "files of one format",
                source.path,
                f"It has {' and '.join(kinds)} files: use a glob, e.g. {source.path}/*{kinds[0]}, and add a source "
                "for the other format.",
            )
        if not files and source.path != INSTALLED_DOCUMENTATION:
            continue
        for key in ("subset", "validation_split"):
            if (value := getattr(source, key)) is not None:
                raise must_be(
                    f"data.sources.{name}.{key}",
                    f"null, because `data.sources.{name}.path={source.path}` is not a Hub dataset",
                    value,
                    "Remove it.",
                )


def _list_source(name: str, source: SourceConfig, revision: str | None) -> list[InputFile]:
    if source.path == INSTALLED_DOCUMENTATION:
        return [InputFile(source=name, path=source.path, kind=INSTALLED_DOCUMENTATION, text_column=source.text_column)]
    files = _find_files(name, source.path)
    if files:
        return [_describe_file(name, source, file) for file in files]
    splits: list[tuple[str, str | None]] = [(TRAIN, None)]
    if source.validation_split is not None:
        splits = [(TRAIN, TRAIN), (source.validation_split, VALIDATION)]
    input_files: list[InputFile] = []
    for hub_split, split in splits:
        num_shards = count_shards(source.path, revision, source.subset, hub_split)
        input_files += [
            InputFile(
                source=name,
                path=source.path,
                kind="hub",
                text_column=source.text_column,
                split=split,
                revision=revision,
                subset=source.subset,
                hub_split=hub_split,
                shard=(index, num_shards),
            )
            for index in range(num_shards)
        ]
    return input_files


def _describe_file(name: str, source: SourceConfig, file: str) -> InputFile:
    kind, compression = _file_kind(name, file)
    return InputFile(
        source=name,
        path=file,
        kind=".jsonl" if kind == ".json" else kind,
        compression=compression,
        text_column=source.text_column,
        size=Path(file).stat().st_size,
    )


def find_files(name: str, source: SourceConfig) -> list[str]:
    """Find the local files of a source, in alphabetical order.

    Args:
        name: Name of the source.
        source: Source of the recipe.

    Returns:
        Paths of the files. The list is empty for a Hub dataset, for the installed documentation, and for a path whose
        files do not exist any more.
    """
    try:
        return _find_files(name, source.path)
    except ConfigError:
        return []


def _find_files(name: str, path: str) -> list[str]:
    if path == INSTALLED_DOCUMENTATION:
        return []
    key = f"data.sources.{name}.path"
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).rglob("*") if file.is_file() and _split_suffix(str(file))[0])
        if not files:
            raise must_be(key, f"a folder with {', '.join((*_TEXT_SUFFIXES, *_TABLE_SUFFIXES))} files", path)
        return files
    if Path(path).is_file():
        return [path]
    files = sorted(glob.glob(path, recursive=True))
    is_hub_name = not (Path(path).is_absolute() or path.startswith(".") or _split_suffix(path)[0] or "*" in path)
    if not files and not is_hub_name:
        raise must_be(key, "an existing file, folder, glob or Hub dataset", path, "Correct the path.")
    return files


def _file_kind(name: str, file: str) -> tuple[str, str]:
    kind, compression = _split_suffix(file)
    if not kind:
        raise must_be(
            f"data.sources.{name}.path",
            f"a file name that ends in {', '.join(_TEXT_SUFFIXES)} (each also with "
            f"{' or '.join(_COMPRESSION_SUFFIXES)}), {' or '.join(_TABLE_SUFFIXES)}",
            file,
            "Convert or rename the file.",
        )
    return kind, compression


def _split_suffix(file: str) -> tuple[str, str]:
    path = Path(file)
    if path.suffix in _COMPRESSION_SUFFIXES:
        kind = Path(path.stem).suffix
        return (kind, path.suffix) if kind in _TEXT_SUFFIXES else ("", "")
    return (path.suffix, "") if path.suffix in (*_TEXT_SUFFIXES, *_TABLE_SUFFIXES) else ("", "")
