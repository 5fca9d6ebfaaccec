"""Preparation pipeline: input files, tokenizer, partitions, and assembly of the token store. Resumable at any point."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.validators import must_be
from mosaicbert.console import print_line
from mosaicbert.data.prepare.dedup import assemble
from mosaicbert.data.prepare.partition import (
    PartitionRecord,
    input_files_of_partition,
    partition_folder,
    prepare_partition,
)
from mosaicbert.data.prepare.plan import PreparePlan
from mosaicbert.data.prepare.progress_bar import Progress
from mosaicbert.data.prepare.readers import BlockCache, read_texts
from mosaicbert.data.prepare.sources import InputFile, check_sources, find_files, list_input_files, resolve_revisions
from mosaicbert.data.prepare.staging import open_staging, publish_store
from mosaicbert.data.prepare.tokenize import SampleRules, hash_text, split_of
from mosaicbert.data.store import (
    TRAIN,
    VALIDATION,
    StoreRecord,
    count_ids,
    count_text_bytes,
    id_dtype,
    read_shard,
    sha256_of,
    unigram_entropy,
)
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer, train_tokenizer
from mosaicbert.filesystem import lock_folder, write_file

TOKENIZER_CHARACTERS = 100_000_000  # of the first texts of all sources, kept in memory to train a tokenizer
_MAX_CACHED_BYTES = 2**27  # of the blocks with these texts, kept in memory until the store has them


# --- Public functions.


def prepare(recipe: Recipe, console: Console | None = None) -> StoreRecord:
    """Prepare the token store of a recipe, or continue an interrupted session. Does nothing for a finished store.

    The store folder is created when the store is complete. Until then, finished work is in the staging directory next
    to it. The content of the store does not depend on interruptions.

    Args:
        recipe: Recipe of a run.
        console: Console for the progress; None prints to stderr.

    Returns:
        Record of the store.

    Raises:
        ConfigError: If an input cannot be read, a split has no text, the tokenizer does not fit the model, or the
            recipe does not match the existing store.
    """
    return _prepare_store(PreparePlan.resolve(recipe), console or Console(stderr=True))


def prepare_single_partition(recipe: Recipe, partition_number: int, console: Console | None = None) -> PartitionRecord:
    """Prepare one partition of the store, for example on one of several machines.

    Args:
        recipe: Recipe of a run.
        partition_number: Number of the partition, from 0.
        console: Console for the progress; None prints to stderr.

    Returns:
        Record of the partition.

    Raises:
        ConfigError: If the store is finished, or an error of `prepare` occurs.
    """
    return _prepare_single_partition(PreparePlan.resolve(recipe), partition_number, console or Console(stderr=True))


def prepare_and_report(recipe: Recipe, console: Console) -> None:
    """Prepare the store, or the partition that the recipe selects, and print the counts of each source.

    Args:
        recipe: Recipe of a run.
        console: Console for the progress and the counts.

    Raises:
        ConfigError: If an error of `prepare` occurs.
    """
    plan = PreparePlan.resolve(recipe)
    if plan.partition is None:
        record = _prepare_store(plan, console)
        lines = [
            f"{plan.store_folder / name}: {split.samples:,} samples, {split.tokens:,} tokens"
            for name, split in record.splits.items()
        ]
        end = f"Unigram entropy of the validation split: {record.unigram_entropy:.3f} nats per token"
    else:
        record = _prepare_single_partition(plan, plan.partition, console)
        folder = partition_folder(plan.staging_folder, plan.partition, plan.num_partitions)
        lines = [f"{folder}: {record.num_tokens:,} tokens"]
        end = (
            f"Partition {plan.partition} of {plan.num_partitions} is finished. When all partitions are in "
            f"{folder.parent}, run the command without `data.partition`."
        )
    for name, num_documents in record.documents.items():
        lines.append(
            f"{name}: {num_documents:,} documents, {record.text_bytes[name] / 1e6:,.1f} MB; "
            f"skipped: {_describe_skipped({name: record.skipped_documents.get(name, {})})}"
        )
    for line in [*lines, end]:
        print_line(console, line)


def check_store(recipe: Recipe) -> StoreRecord:
    """Read the record of an existing store, and check that the store matches a recipe.

    Args:
        recipe: Recipe of a run.

    Raises:
        ConfigError: If the store does not exist, is corrupted, or was made from different sources or with a different
            tokenizer.
    """
    return PreparePlan.resolve(recipe).check_store()


# --- Stages.


@dataclass(frozen=True)
class _Inputs:
    """Inputs shared by all partitions."""

    input_files: Sequence[InputFile]
    cache: BlockCache
    tokenizer: Tokenizer
    revisions: dict[str, str | None]


def _prepare_store(plan: PreparePlan, console: Console) -> StoreRecord:
    if plan.partition is not None:
        raise must_be(
            "data.partition",
            "null to prepare the store",
            plan.partition,
            "Remove it when all partitions are prepared.",
        )
    if plan.store_folder.exists():
        record = plan.check_store()
        _warn_of_changed_files(plan, record, console)
        return record
    check_sources(plan.sources)
    with open_staging(plan) as staging, Progress(console) as progress:
        inputs, partitions = None, []
        if not (staging / "store.json").exists():  # otherwise only the cleanup was interrupted
            inputs = _find_inputs(plan, staging, progress)
            partitions = [
                _prepare_partition(plan, staging, inputs, number, progress) for number in range(plan.num_partitions)
            ]
            progress.log("Assembling the store")
        with lock_folder(staging):
            if not plan.store_folder.exists():  # otherwise another process has finished the store
                if inputs is not None:
                    _assemble_store(plan, staging, inputs, partitions)
                publish_store(staging, plan.store_folder)
    return plan.check_store()


def _prepare_single_partition(plan: PreparePlan, number: int, console: Console) -> PartitionRecord:
    if plan.store_folder.exists():
        raise ConfigError(
            f"`data.partition={number}` is not supported with the finished store {plan.store_folder}. "
            "Remove `data.partition`."
        )
    check_sources(plan.sources)
    with open_staging(plan) as staging, Progress(console) as progress:
        inputs = _find_inputs(plan, staging, progress)
        return _prepare_partition(plan, staging, inputs, number, progress)[1]


def _find_inputs(plan: PreparePlan, staging: Path, progress: Progress) -> _Inputs:
    revisions = _pin_revisions(plan, staging)
    input_files = list_input_files(plan.sources, revisions)
    if len(input_files) < plan.num_partitions:
        raise must_be(
            "data.num_partitions", f"at most {len(input_files)}, the number of input files", plan.num_partitions
        )
    cache = BlockCache(_MAX_CACHED_BYTES)
    if plan.tokenizer_source != "train":
        tokenizer = load_tokenizer(plan.tokenizer_source)
        plan.check_tokenizer(tokenizer)
        return _Inputs(input_files, cache, tokenizer, revisions)
    path = staging / "tokenizer.json"
    with lock_folder(staging):  # only one of several machines trains the tokenizer
        if not path.exists():
            progress.log("Training a tokenizer")
            tokenizer = train_tokenizer(_select_training_texts(plan, input_files, cache), plan.vocab_size)
            write_file(path, tokenizer.to_str(pretty=True).encode())
    return _Inputs(input_files, cache, load_tokenizer(str(path)), revisions)


def _pin_revisions(plan: PreparePlan, staging: Path) -> dict[str, str | None]:
    """Return the commits found by the first process, so that later changes of the datasets have no effect."""
    path = staging / "revisions.json"
    with lock_folder(staging):
        if not path.exists():
            write_file(path, json.dumps(resolve_revisions(plan.sources)).encode())
    return json.loads(path.read_text())


def _select_training_texts(plan: PreparePlan, input_files: Sequence[InputFile], cache: BlockCache) -> list[str]:
    """Select the first training texts of every source, with numbers of characters proportional to the weights."""
    texts: list[str] = []
    seen: set[tuple[int, int]] = set()
    total_weight = sum(source.weight or 1.0 for source in plan.sources.values())
    for name, source in plan.sources.items():
        num_missing_characters = TOKENIZER_CHARACTERS * (source.weight or 1.0) / total_weight
        files_of_source = [
            input_file for input_file in input_files if input_file.source == name and input_file.split != VALIDATION
        ]
        blocks = itertools.chain.from_iterable(map(cache.read_first, files_of_source))
        for input_file, text in read_texts(blocks, plan.skip_invalid_documents):
            if num_missing_characters <= 0:
                break
            bits = hash_text(text)
            if len(text) >= plan.min_characters and bits not in seen:
                seen.add(bits)
                if split_of(input_file, bits[0], plan.validation_fraction) == TRAIN:
                    texts.append(text)
                    num_missing_characters -= len(text)
    if not texts:
        raise ConfigError(
            f"{plan.describe_sources()} must have text to train a tokenizer, got none. "
            "Add text, lower `data.min_characters`, or change `data.validation_fraction`."
        )
    return texts


def _prepare_partition(
    plan: PreparePlan, staging: Path, inputs: _Inputs, number: int, progress: Progress
) -> tuple[Path, PartitionRecord]:
    rules = SampleRules(
        tokenizer=inputs.tokenizer.to_str(),
        max_tokens=plan.max_tokens,
        sampling=plan.sampling,
        min_characters=plan.min_characters,
        validation_fraction=plan.validation_fraction,
        dtype=id_dtype(plan.vocab_size),
    )
    input_files = input_files_of_partition(inputs.input_files, number, plan.num_partitions)
    initial = PartitionRecord(
        tokenizer_sha256=hash_tokenizer(inputs.tokenizer),
        input_files=[str(input_file) for input_file in input_files],
        sizes=[input_file.size for input_file in input_files],
    )
    activity = "Tokenizing" if plan.num_partitions == 1 else f"Tokenizing partition {number} of {plan.num_partitions}"
    folder = partition_folder(staging, number, plan.num_partitions)
    return folder, prepare_partition(
        folder, input_files, inputs.cache, initial, rules, plan.skip_invalid_documents, progress, activity
    )


def _assemble_store(
    plan: PreparePlan, staging: Path, inputs: _Inputs, partitions: Sequence[tuple[Path, PartitionRecord]]
) -> None:
    splits, duplicates = assemble(staging, partitions, id_dtype(plan.vocab_size))
    skipped = {name: Counter({"duplicate": duplicates[name]} if name in duplicates else {}) for name in plan.sources}
    documents: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    for _, record in partitions:
        documents.update(record.documents)
        text_bytes.update(record.text_bytes)
        for name, reasons in record.skipped_documents.items():
            skipped[name].update(reasons)
    for split, shards in splits.items():
        if not shards.samples:
            raise ConfigError(
                f"{plan.describe_sources()} must have text for the {split} split, got none "
                f"(skipped documents: {_describe_skipped(skipped)}). "
                "Add text, lower `data.min_characters`, or change `data.validation_fraction`."
            )
    write_file(staging / "tokenizer.json", inputs.tokenizer.to_str(pretty=True).encode())
    frequencies = np.zeros(plan.vocab_size, dtype=np.int64)
    num_bytes = 0
    for shard in splits[VALIDATION].shards:
        ids, offsets = read_shard(staging / VALIDATION / shard.file)
        frequencies += count_ids(ids, len(frequencies))
        num_bytes += count_text_bytes(ids, offsets, inputs.tokenizer)
    StoreRecord(
        prepared_from=dict(plan.prepared_from),
        tokenizer_sha256=sha256_of(staging / "tokenizer.json"),
        revisions=inputs.revisions,
        files=_count_files(inputs.input_files),
        splits=splits,
        documents=dict(documents),
        text_bytes=dict(text_bytes),
        skipped_documents={name: dict(reasons) for name, reasons in skipped.items()},
        unigram_entropy=unigram_entropy(frequencies),
        bytes_per_token=num_bytes / splits[VALIDATION].tokens,
    ).write(staging)


# --- Counts and messages.


def _warn_of_changed_files(plan: PreparePlan, record: StoreRecord, console: Console) -> None:
    """Print a note if local files have changed since the store was prepared. Deleted sources get no note."""
    for name, source in plan.sources.items():
        files = find_files(name, source)
        size = sum(Path(file).stat().st_size for file in files)
        if files and (len(files), size) != tuple(record.files[name]):
            num_files, num_bytes = record.files[name]
            print_line(
                console,
                f"Note: {source.path} has {len(files):,} files of {size:,} bytes. {plan.store_folder} was prepared "
                f"from {num_files:,} files of {num_bytes:,} bytes. Delete that folder to prepare the store again.",
            )


def _count_files(input_files: Sequence[InputFile]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for input_file in input_files:
        num_files, size = counts.get(input_file.source, (0, 0))
        counts[input_file.source] = num_files + 1, size + input_file.size
    return counts


def _describe_skipped(skipped: Mapping[str, Mapping[str, int]]) -> str:
    reasons: Counter[str] = Counter()
    for counts in skipped.values():
        reasons.update(counts)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "none"
