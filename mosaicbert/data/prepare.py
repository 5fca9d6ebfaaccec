"""Source to token store: reads, splits, deduplicates, tokenises and writes, in one pass and bounded memory."""

import contextlib
import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, DataConfig, Recipe
from mosaicbert.data.sources import read_texts, require_source
from mosaicbert.data.store import TRAIN, VALIDATION, SplitWriter, StoreRecord, TokenStore, open_tokenizer
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer, train_tokenizer

_TOKENIZER_CHARACTERS = 100_000_000  # the first texts of the corpus, held in memory, from which a tokenizer is trained
_TEXTS_PER_BATCH = 1024  # tokenised together, on all cores


def prepare(recipe: Recipe) -> StoreRecord:
    """Makes the token store of `recipe`, or finds it made.

    A store appears in its place only when it is complete.

    Raises:
        ConfigError: the source or the tokenizer cannot be read, no text is left for a split, the tokenizer does not fit
            the model, or the store there was made from something else.
    """
    folder = recipe.store_folder
    if folder.exists():
        return check_store(recipe)
    require_source(recipe.data)
    loaded = None if recipe.tokenizer.source == "train" else _load_fitting_tokenizer(recipe)
    partial = folder.with_name(folder.name + ".partial")
    new_folders = [place for place in partial.parents if not place.exists()]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error}); choose another data.store or runs_folder."
        ) from error
    try:
        with _progress() as progress:
            record = _write_store(recipe, loaded, partial, progress)
    except ConfigError:
        shutil.rmtree(partial)  # nothing is left of what cannot work
        with contextlib.suppress(OSError):  # but what another run has put there meanwhile
            for place in new_folders:
                place.rmdir()
        raise
    partial.rename(folder)
    return record


def check_store(recipe: Recipe) -> StoreRecord:
    """Reads the record of an existing store and refuses one that is not what `recipe` asks for.

    Raises:
        ConfigError: there is no store, it is damaged, or it was made from another source or with another tokenizer.
    """
    folder = recipe.store_folder
    record = StoreRecord.read(folder)
    for key, value in _prepared_from(recipe).items():
        if record.prepared_from.get(key) != value:
            raise ConfigError(
                f"{folder}: was prepared with {key}={record.prepared_from.get(key)}, the recipe says {value}; "
                "point data.store at another folder, or delete this one."
            )
    tokenizer = open_tokenizer(folder, record)
    source = recipe.tokenizer.source
    if source != "train" and Path(source).exists():
        if hash_tokenizer(load_tokenizer(source)) != hash_tokenizer(tokenizer):
            raise ConfigError(
                f"{folder}: was prepared with another tokenizer than tokenizer.source={source}; "
                "point data.store at another folder, or delete this one."
            )
    _require_fit(tokenizer, recipe)
    return record


def open_store(recipe: Recipe, split: str) -> TokenStore:
    """Opens one split of the recipe's store, which `prepare` has made."""
    record = StoreRecord.read(recipe.store_folder)
    return TokenStore(recipe.store_folder / split, record.splits[split])


def unigram_entropy(frequencies: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that gives each token its frequency: -sum p log p."""
    shares = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(shares * np.log(shares)).sum())


def _write_store(recipe: Recipe, loaded: Tokenizer | None, folder: Path, progress: Progress) -> StoreRecord:
    data = recipe.data
    dropped: Counter[str] = Counter()
    task = progress.add_task("reading text", total=None, tokens=0, megabytes=0.0)
    texts = _label_splits(data, dropped)
    tokenizer, texts = (loaded, texts) if loaded is not None else _train_tokenizer(recipe, texts)
    tokenizer.enable_truncation(data.max_seq_len - 2)
    writers = {name: SplitWriter(folder / name, recipe.model.vocab_size) for name in (TRAIN, VALIDATION)}
    progress.update(task, description="tokenising")
    characters = 0
    while batch := list(itertools.islice(texts, _TEXTS_PER_BATCH)):
        encodings = tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
        for name, writer in writers.items():
            writer.write(
                encoding.ids
                for (split, _), encoding in zip(batch, encodings, strict=True)
                if split == name and encoding.ids
            )
        if blank := sum(not encoding.ids for encoding in encodings):
            dropped["without a token"] += blank
        characters += sum(len(text) for _, text in batch)
        tokens = sum(writer.total_tokens for writer in writers.values())
        progress.update(task, advance=len(batch), tokens=tokens, megabytes=characters / 1e6)
    tokenizer.no_truncation()
    counts = {name: writer.close() for name, writer in writers.items()}
    for name, split in counts.items():
        if not split.samples:
            raise ConfigError(
                f"data.source={data.source}: no text for the {name} split ({dict(dropped)} left out); "
                "point it at more text, lower data.min_characters or change data.held_out_fraction."
            )
    tokenizer.save(str(folder / "tokenizer.json"))
    record = StoreRecord(
        prepared_from=_prepared_from(recipe),
        tokenizer_sha256=hash_tokenizer(tokenizer),
        splits=counts,
        dropped=dict(dropped),
        unigram_entropy=unigram_entropy(writers[VALIDATION].frequencies),
    )
    record.write(folder)
    return record


def _label_splits(data: DataConfig, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields (split, text), without texts that are too short or, if asked, were there before."""
    if data.validation_split is None:
        texts = ((None, text) for text in read_texts(data))
    else:
        training = ((TRAIN, text) for text in read_texts(data))
        held_out = ((VALIDATION, text) for text in read_texts(data, data.validation_split))
        texts = itertools.chain(training, held_out)
    seen: set[int] = set()
    for split, raw in texts:
        text = raw.encode("utf-8", "replace").decode()  # a lone surrogate is no character, and tokenizers refuse it
        if len(text) < data.min_characters:
            dropped["too short"] += 1
            continue
        digest = xxhash.xxh3_64_intdigest(text.encode())
        if data.deduplicate:
            if digest in seen:
                dropped["duplicate"] += 1
                continue
            seen.add(digest)
        if split is None:
            split = VALIDATION if digest < data.held_out_fraction * 2**64 else TRAIN
        yield split, text


def _load_fitting_tokenizer(recipe: Recipe) -> Tokenizer:
    tokenizer = load_tokenizer(recipe.tokenizer.source)
    _require_fit(tokenizer, recipe)
    return tokenizer


def _train_tokenizer(recipe: Recipe, texts: Iterator[tuple[str, str]]) -> tuple[Tokenizer, Iterator[tuple[str, str]]]:
    """A tokenizer of the first texts, and all texts again."""
    first: list[tuple[str, str]] = []
    characters = 0
    for split, text in texts:
        first.append((split, text))
        characters += len(text) * (split == TRAIN)
        if characters >= _TOKENIZER_CHARACTERS:
            break
    if not characters:
        raise ConfigError(
            f"data.source={recipe.data.source}: holds no text to train a tokenizer on; "
            "point it at more text, lower data.min_characters or change data.held_out_fraction."
        )
    tokenizer = train_tokenizer((text for split, text in first if split == TRAIN), recipe.model.vocab_size)
    return tokenizer, itertools.chain(first, texts)


def _require_fit(tokenizer: Tokenizer, recipe: Recipe) -> None:
    entries, pad_token_id = tokenizer.get_vocab_size(), tokenizer.token_to_id("[PAD]")
    if entries > recipe.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={recipe.model.vocab_size} is smaller than the {entries} entries of "
            f"tokenizer.source={recipe.tokenizer.source}; set model.vocab_size={math.ceil(entries / 64) * 64}."
        )
    if pad_token_id != recipe.model.pad_token_id:
        raise ConfigError(
            f"model.pad_token_id={recipe.model.pad_token_id} is not the [PAD] of "
            f"tokenizer.source={recipe.tokenizer.source}; set model.pad_token_id={pad_token_id}."
        )


def _prepared_from(recipe: Recipe) -> dict[str, Any]:
    not_about_the_text = ("store", "mask_rate", "num_workers")
    keys = {f"data.{key}": value for key, value in asdict(recipe.data).items() if key not in not_about_the_text}
    keys["tokenizer.source"] = recipe.tokenizer.source
    if recipe.tokenizer.source == "train":
        keys["model.vocab_size"] = recipe.model.vocab_size
    return keys


def _progress() -> Progress:
    columns: list[ProgressColumn] = [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,} texts, {task.fields[megabytes]:,.1f} MB, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    ]
    return Progress(*columns)
