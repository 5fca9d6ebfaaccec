"""Where text comes from: the parts that the recipe's sources consist of, always in the same order."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mosaicbert.config import ConfigError, SourceConfig
from mosaicbert.data.prepare.hub import count_shards, find_revision
from mosaicbert.data.store import TRAIN, VALIDATION

INSTALLED_DOCUMENTATION = "installed-documentation"


# Kinds of files; all of them may be followed by .gz or .zst but those of Arrow and Parquet, which compress themselves.
_LINES = (".jsonl", ".json", ".txt")
_COLUMNS = (".parquet", ".arrow")
_COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """What is read from its beginning to its end: a file, or a shard of a Hub dataset.

    Attributes:
        source: its name in the recipe.
        path: of the file, the name of the Hub dataset, or "installed-documentation".
        kind: ".jsonl", ".txt", ".parquet", ".arrow", "hub" or "installed-documentation".
        compression: ".gz", ".zst" or "".
        text_column: that holds the text.
        split: that all its texts go to; None: each to the one that its hash says.
        revision: commit of a Hub dataset.
        subset: configuration of a Hub dataset.
        hub_split: of a Hub dataset.
        shard: of a Hub dataset, and how many it has.
        size: bytes on disk; 0 where that is not known.
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
    """The commit that each Hub dataset is at; None for everything else.

    Raises:
        ConfigError: as `list_input_files`.
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
    """The parts of all sources, in the order of the recipe; of a source, training before validation.

    Args:
        sources: by name.
        revisions: of each, if `resolve_revisions` has found them before.

    Raises:
        ConfigError: a source does not exist, holds files of no known kind, or is asked for splits it does not have.
    """
    check_sources(sources)
    found = resolve_revisions(sources) if revisions is None else revisions
    return [input_file for name, source in sources.items() for input_file in _list_source(name, source, found[name])]


def check_sources(sources: Mapping[str, SourceConfig]) -> None:
    """Refuses sources that cannot be read, as far as that shows without opening them.

    Raises:
        ConfigError: as `list_input_files`, but for datasets of the Hub.
    """
    for name, source in sources.items():
        files = _find_files(name, source.path)
        kinds = sorted({_file_kind(name, file)[0] for file in files})
        if len(kinds) > 1:
            raise ConfigError(
                f"data.sources.{name}.path={source.path}: holds {' and '.join(kinds)} files; take a glob for one kind, "
                f"e.g. {source.path}/*{kinds[0]}, and another source for the other."
            )
        if not files and source.path != INSTALLED_DOCUMENTATION:
            continue
        for key in ("subset", "validation_split"):
            if (value := getattr(source, key)) is not None:
                raise ConfigError(
                    f"data.sources.{name}.{key}={value}: only datasets of the Hub have that, not {source.path}; "
                    f"set data.sources.{name}.{key}=null."
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
        total = count_shards(source.path, revision, source.subset, hub_split)
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
                shard=(number, total),
            )
            for number in range(total)
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
    """The files of a source, by name; none for a dataset of the Hub, for the installed documentation, and if all have
    gone that a folder or a glob once named."""
    try:
        return _find_files(name, source.path)
    except ConfigError:
        return []


def _find_files(name: str, path: str) -> list[str]:
    if path == INSTALLED_DOCUMENTATION:
        return []
    place = f"data.sources.{name}.path={path}"
    if Path(path).is_dir():
        files = sorted(str(file) for file in Path(path).rglob("*") if file.is_file() and _split_suffix(str(file))[0])
        if not files:
            raise ConfigError(f"{place}: the folder holds no {', '.join((*_LINES, *_COLUMNS))} file.")
        return files
    if Path(path).is_file():
        return [path]
    files = sorted(glob.glob(path, recursive=True))
    is_hub_name = not (Path(path).is_absolute() or path.startswith(".") or _split_suffix(path)[0] or "*" in path)
    if not files and not is_hub_name:
        raise ConfigError(f"{place}: no such file; give a path, a folder, a glob or a Hub dataset's name.")
    return files


def _file_kind(name: str, file: str) -> tuple[str, str]:
    kind, compression = _split_suffix(file)
    if not kind:
        raise ConfigError(
            f"data.sources.{name}.path: {file} is of no known kind; its name must end in {', '.join(_LINES)} "
            f"(each also with {' or '.join(_COMPRESSIONS)}), {' or '.join(_COLUMNS)}."
        )
    return kind, compression


def _split_suffix(file: str) -> tuple[str, str]:
    path = Path(file)
    if path.suffix in _COMPRESSIONS:
        kind = Path(path.stem).suffix
        return (kind, path.suffix) if kind in _LINES else ("", "")
    return (path.suffix, "") if path.suffix in (*_LINES, *_COLUMNS) else ("", "")
