"""Benchmark of `prepare`: speed against the tokenizers library alone on the same text, and peak memory.

Run: python scripts/bench/prepare.py [RECIPE]
The text is the first part of the text of the recipe (default: the quickstart), in one compressed file.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import harness
import psutil
import zstandard
from rich.console import Console
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, Recipe, SourceConfig, TokenizerConfig
from mosaicbert.config.load import load_recipe, save_recipe
from mosaicbert.data.prepare.pipeline import prepare
from mosaicbert.data.prepare.readers import FilePosition, read_blocks, read_texts
from mosaicbert.data.prepare.sources import list_input_files
from mosaicbert.data.tokenizer import load_tokenizer, train_tokenizer
from mosaicbert.processes import count_cpus

MAX_CHARACTERS = 60_000_000
TEXTS_PER_CALL = 1024
QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def main() -> None:
    recipe = load_recipe(sys.argv[1] if len(sys.argv) > 1 else QUICKSTART)
    texts: list[str] = []
    num_characters = 0
    input_files = list_input_files(recipe.data.sources)
    blocks = (block for input_file in input_files for block in read_blocks(input_file, FilePosition()))
    for _, text in read_texts(blocks, recipe.data.skip_invalid_documents):
        texts.append(text)
        num_characters += len(text)
        if num_characters > MAX_CHARACTERS:
            break
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.jsonl.zst"
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        source.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
        if recipe.tokenizer.source == "train":
            tokenizer = train_tokenizer(texts, recipe.model.vocab_size)
        else:
            tokenizer = load_tokenizer(recipe.tokenizer.source)
        tokenizer.save(str(Path(folder) / "tokenizer.json"))
        stores = (f"{folder}/store-{number}" for number in itertools.count())
        modes = {f"prepare, {mode}": prepared_recipe(recipe, source, mode) for mode in ("chunk", "truncate")}
        harness.record(
            "prepare",
            f"text to token store, {recipe.run_name}",
            {
                "tokenizers alone": lambda: tokenize_all(tokenizer, texts),
                **{
                    by: (lambda mode=mode: prepare(in_store(mode, next(stores)), Console(quiet=True)))
                    for by, mode in modes.items()
                },
            },
            shape={"documents": len(texts), "bytes": size, "processes": count_cpus()},
            units={by: size for by in ("tokenizers alone", *modes)},
            extra_fields={
                "tokenizers alone": {},
                **{by: peak_memory(in_store(mode, next(stores)), Path(folder)) for by, mode in modes.items()},
            },
        )


def tokenize_all(tokenizer: Tokenizer, texts: list[str]) -> None:
    for first in range(0, len(texts), TEXTS_PER_CALL):
        tokenizer.encode_batch_fast(texts[first : first + TEXTS_PER_CALL], add_special_tokens=False)


def prepared_recipe(recipe: Recipe, source: Path, sampling: str) -> Recipe:
    tokenizer = TokenizerConfig(source=str(source.with_name("tokenizer.json")))
    data = replace(recipe.data, sources={"text": SourceConfig(path=str(source))}, sampling=sampling, num_partitions=1)
    return replace(recipe, data=data, tokenizer=tokenizer)


def in_store(recipe: Recipe, store: str) -> Recipe:
    return replace(recipe, data=replace(recipe.data, store=store))


def peak_memory(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Measure the peak memory of the `prepare` command in MiB: main process, and largest worker process.

    Args:
        recipe: Recipe to prepare.
        folder: Folder for the recipe file.

    Raises:
        ConfigError: If the command fails.
    """
    path = folder / "recipe.yaml"
    save_recipe(recipe, path)
    process = psutil.Popen(
        [sys.executable, "-m", "mosaicbert", "prepare", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peaks = {"main_mib": 0.0, "worker_mib": 0.0}
    while process.poll() is None:
        try:
            workers = [child.memory_info().rss for child in process.children(recursive=True)]
            peaks["main_mib"] = max(peaks["main_mib"], round(process.memory_info().rss / 2**20, 1))
            peaks["worker_mib"] = max(peaks["worker_mib"], round(max(workers, default=0) / 2**20, 1))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.05)
    if process.returncode:
        raise ConfigError(f"`mosaicbert prepare {path}` must exit with 0, got {process.returncode}.")
    return peaks


if __name__ == "__main__":
    main()
