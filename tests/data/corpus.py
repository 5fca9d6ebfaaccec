"""A small corpus of real English for tests: docstrings of the standard library; and what tests of stores share."""

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
    found = []
    for name in _MODULES:
        tree = ast.parse(Path(sysconfig.get_path("stdlib"), name).read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        found += [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 40]
    return found


def short_texts(count: int, first: int = 0) -> list[str]:
    """Short texts, all different; some of them are held out."""
    words = "token mask batch loss layer head step shard".split()
    return [
        f"text {number} of {words[number % 8]} and {words[number // 8 % 8]}" for number in range(first, first + count)
    ]


def jsonl(documents: Iterable[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in documents).encode()


def write_jsonl(path: Path, documents: list[str] | None = None, column: str = "text") -> Path:
    path.write_bytes(jsonl(texts() if documents is None else documents, column))
    return path


@functools.cache
def trained() -> Tokenizer:
    """A tokenizer of 512 entries, to which "[MASK]" in a text is a word like any other."""
    tokenizer = train_tokenizer(texts(), vocab_size=512)
    tokenizer.encode_special_tokens = True
    return tokenizer


def write_tokenizer(folder: Path) -> str:
    """Writes it as tokenizer.json."""
    path = folder / "tokenizer.json"
    trained().save(str(path))
    return str(path)


def encode(text: str, longest: int = 30) -> list[int]:
    """What a recipe of max_seq_len=32 makes of a text with `trained`."""
    return trained().encode(text, add_special_tokens=False).ids[:longest]


def samples_of(store: Path, split: str) -> list[list[int]]:
    """All samples of a split, in order."""
    opened = TokenStore(store, split)
    return [ids.tolist() for ids in opened.read(np.arange(opened.num_samples))]


def all_samples(store: Path) -> dict[str, list[list[int]]]:
    return {split: samples_of(store, split) for split in StoreRecord.read(store).splits}


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def map_here(function, items, initializer=None, arguments=()) -> Iterator:
    """`map_in_order` without its processes, which take a second to start; test_workers.py tests them."""
    if initializer is not None:
        initializer(*arguments)
    return map(function, items)


def use_small_shards(monkeypatch: pytest.MonkeyPatch, shard_tokens: int = 60, block_bytes: int = 200) -> None:
    """Makes a shard of a few short texts, without processes."""
    monkeypatch.setattr("mosaicbert.data.prepare.partition.SHARD_TOKENS", shard_tokens)
    monkeypatch.setattr("mosaicbert.data.prepare.readers.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("mosaicbert.data.prepare.partition.map_in_order", map_here)
    monkeypatch.setattr("os.fsync", lambda _: None)  # it matters when the power fails, and takes most of the time


def wait_until_gone(processes: Iterable[psutil.Process], seconds: float = 10) -> bool:
    """Whether processes end soon, and ends those that do not; a zombie, whose new parent takes its time, has ended."""
    deadline = time.monotonic() + seconds
    waiting = list(processes)
    while waiting and time.monotonic() < deadline:
        waiting = [process for process in waiting if _runs(process)]
        time.sleep(0.005)
    for process in waiting:
        process.kill()
    return not waiting


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_hub_dataset(folder: Path, splits: dict[str, list[list[str]]], subset: str = "default") -> Path:
    """A dataset as the Hub holds it: a file for each shard of each split, and a README.md that names them."""
    lines = ["---", "configs:", f"- config_name: {subset}", "  data_files:"]
    (folder / subset).mkdir(parents=True)
    for split, shards in splits.items():
        lines += [f"  - split: {split}", f"    path: {subset}/{split}-*.jsonl"]
        for number, documents in enumerate(shards):
            write_jsonl(folder / subset / f"{split}-{number:05d}.jsonl", documents)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def name_like_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders then stand in for datasets of the Hub: `datasets` opens both alike."""
    monkeypatch.setattr("mosaicbert.data.prepare.sources._find_files", lambda _name, _path: [])
