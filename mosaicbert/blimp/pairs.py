"""Minimal pairs of BLiMP, read from the Hub or from local files."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import zstandard

from mosaicbert.config import ConfigError
from mosaicbert.config.blimp import PAIRS_PER_PARADIGM, BlimpConfig
from mosaicbert.data.prepare.hub import list_subsets, load_hub_table

_SUFFIXES = (".jsonl", ".jsonl.zst")
_COLUMNS = ("UID", "linguistics_term", "sentence_good", "sentence_bad")


@dataclass(frozen=True, kw_only=True)
class Paradigm:
    """Minimal pairs of one construction.

    Attributes:
        name: Name of the paradigm, e.g. "adjunct_island".
        phenomenon: Name of the phenomenon, e.g. "island_effects".
        good: Grammatical sentences.
        bad: Ungrammatical sentences in the same order.
    """

    name: str
    phenomenon: str
    good: list[str]
    bad: list[str]


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Minimal pairs of a recipe.

    Attributes:
        paradigms: Paradigms by phenomenon, in the order of the data.
        digest: Hash of the names and sentences.
        is_partial: True if a paradigm has fewer pairs than the official data.
    """

    paradigms: dict[str, list[Paradigm]]
    digest: str
    is_partial: bool


def read_pairs(config: BlimpConfig) -> PairData:
    """Read the minimal pairs.

    Args:
        config: Settings of the evaluation.

    Raises:
        ConfigError: If the data do not exist, cannot be read, or have an invalid row.
    """
    paradigms: dict[str, Paradigm] = {}
    digest = hashlib.sha256()
    for source, row in _rows(config):
        values = [row.get(name) for name in _COLUMNS]
        if not all(isinstance(value, str) and value for value in values):
            raise ConfigError(f"{source} must have text in {', '.join(_COLUMNS)}, got {row}. Fix or remove the row.")
        name, phenomenon, good, bad = map(str, values)
        paradigm = paradigms.setdefault(name, Paradigm(name=name, phenomenon=phenomenon, good=[], bad=[]))
        if config.pairs_per_paradigm is not None and len(paradigm.good) >= config.pairs_per_paradigm:
            continue
        paradigm.good.append(good)
        paradigm.bad.append(bad)
        digest.update(json.dumps(values).encode())
    if not paradigms:
        raise ConfigError(f"`data` must contain minimal pairs, got {config.data} with none. Check the path.")
    by_phenomenon: dict[str, list[Paradigm]] = {}
    for paradigm in paradigms.values():
        by_phenomenon.setdefault(paradigm.phenomenon, []).append(paradigm)
    return PairData(
        paradigms=by_phenomenon,
        digest=digest.hexdigest()[:12],
        is_partial=any(len(paradigm.good) < PAIRS_PER_PARADIGM for paradigm in paradigms.values()),
    )


def _rows(config: BlimpConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    path = Path(config.data)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_SUFFIXES))
        if not files:
            raise ConfigError(f"`data` must be a folder with {' or '.join(_SUFFIXES)} files, got {path} with none.")
        for file in files:
            yield from _read_lines(file)
        return
    if config.data.startswith((".", "/", "~")) or config.data.count("/") > 1:
        raise ConfigError(
            f"`data` must be an existing folder or the name of a Hub dataset, got {config.data}. Check the path."
        )
    for subset in list_subsets(config.data, config.revision):
        for row in load_hub_table(config.data, subset, "train", config.revision).to_pylist():
            yield f"{config.data} ({subset})", row


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = path.read_bytes()
        text = (_decompress(content) if path.suffix == ".zst" else content).decode()
        for number, line in enumerate(text.splitlines(), start=1):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object")
            yield f"{path}, line {number},", cast(dict[str, Any], row)
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise ConfigError(f"{path} must have one JSON object per line, got {error}. Fix the file.") from error


def _decompress(content: bytes) -> bytes:
    frames: list[bytes] = []
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        frames.append(frame.decompress(content))
        if not frame.eof:
            raise ValueError("a truncated file")
        content = frame.unused_data
    return b"".join(frames)
