"""Small English test corpus (docstrings of the standard library), and helpers for tests of token stores."""

import ast
import functools
import json
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from mosaicbert.data.store import StoreRecord, TokenStore
from mosaicbert.data.tokenizer import train_tokenizer

_MODULES = (
    "argparse.py",
    "datetime.py",
    "decimal.py",
    "difflib.py",
    "optparse.py",
    "random.py",
    "statistics.py",
    "typing.py",
)


def texts() -> list[str]:
    """Collect the docstrings of some standard library modules."""
    return list(_docstrings())


@functools.cache
def _docstrings() -> tuple[str, ...]:
    docstrings: list[str] = []
    for name in _MODULES:
        tree = ast.parse(Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        docstrings += [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 40]
    return tuple(docstrings)


def short_texts(num_texts: int, first: int = 0) -> list[str]:
    """Make short, distinct texts. Some of them are in the validation split."""
    words = "token mask batch loss layer head step shard".split()
    return [
        f"text {number} of {words[number % 8]} and {words[number // 8 % 8]}"
        for number in range(first, first + num_texts)
    ]


def jsonl(documents: Iterable[str], column: str = "text") -> bytes:
    """Encode texts as JSON lines."""
    return "".join(json.dumps({column: text}) + "\n" for text in documents).encode()


def write_jsonl(path: Path, documents: list[str] | None = None, column: str = "text") -> Path:
    """Write texts, by default `texts()`, as a file of JSON lines."""
    path.write_bytes(jsonl(texts() if documents is None else documents, column))
    return path


@functools.cache
def trained() -> Tokenizer:
    """Train a tokenizer with 512 entries that treats "[MASK]" in a text as ordinary text."""
    tokenizer = train_tokenizer(texts(), vocab_size=512)
    tokenizer.encode_special_tokens = True
    return tokenizer


def write_tokenizer(folder: Path) -> str:
    """Write the tokenizer of `trained` as tokenizer.json."""
    path = folder / "tokenizer.json"
    trained().save(str(path))
    return str(path)


def encode(text: str, max_tokens: int | None = 30) -> list[int]:
    """Tokenize a text with `trained`, as a recipe with max_seq_len=32 does."""
    return trained().encode(text, add_special_tokens=False).ids[:max_tokens]


def samples_of(store: Path, split: str) -> list[list[int]]:
    """Read all samples of a split, in order."""
    token_store = TokenStore(store, split)
    return [ids.tolist() for ids in token_store.read(np.arange(token_store.num_samples))]


def all_samples(store: Path) -> dict[str, list[list[int]]]:
    """Read all samples of a store, by split."""
    return {split: samples_of(store, split) for split in StoreRecord.read(store).splits}


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def map_here(function, items, initializer=None, arguments=()) -> Iterator:
    """Map in this process, as a fast replacement of `map_in_order`, whose processes start slowly."""
    if initializer is not None:
        initializer(*arguments)
    return map(function, items)


def use_small_shards(monkeypatch: pytest.MonkeyPatch, shard_tokens: int = 60, block_bytes: int = 200) -> None:
    """Reduce shards to a few short texts, and disable worker processes."""
    monkeypatch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
    monkeypatch.setattr("os.fsync", lambda _: None)  # slow, and only relevant for power failures


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float = 10) -> bool:
    """Return whether processes end within a time limit, and kill the others. A zombie process counts as ended."""
    deadline = time.monotonic() + seconds
    running = list(processes)
    while running and time.monotonic() < deadline:
        running = [process for process in running if _runs(process)]
        time.sleep(0.005)
    for process in running:
        process.kill()
    return not running


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_hub_dataset(folder: Path, splits: dict[str, list[list[str]]], subset: str = "default") -> Path:
    """Write a dataset in the format of the Hub: one file per shard, and a README.md that lists the splits."""
    lines = ["---", "configs:", f"- config_name: {subset}", "  data_files:"]
    (folder / subset).mkdir(parents=True)
    for split, shards in splits.items():
        lines += [f"  - split: {split}", f"    path: {subset}/{split}-*.jsonl"]
        for number, documents in enumerate(shards):
            write_jsonl(folder / subset / f"{split}-{number:05d}.jsonl", documents)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def treat_paths_as_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat local folders as Hub datasets, which `datasets` opens in the same way."""
    monkeypatch.setattr("mosaicbert.data.prepare.sources._find_files", lambda _name, _path: [])
