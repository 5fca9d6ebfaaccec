"""Prepares a token store: inputs, tokenizer, partitions, and the store out of them. Continues where it was cut off."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.prepare.dedup import assemble
from mosaicbert.data.prepare.partition import (
    PartitionRecord,
    input_files_of_partition,
    partition_folder,
    prepare_partition,
)
from mosaicbert.data.prepare.plan import PreparePlan
from mosaicbert.data.prepare.progress_bar import Progress
from mosaicbert.data.prepare.readers import read_texts
from mosaicbert.data.prepare.sources import InputFile, check_sources, find_files, list_input_files, resolve_revisions
from mosaicbert.data.prepare.staging import open_staging, publish_store
from mosaicbert.data.prepare.tokenize import SampleRules, hash_text, split_of
from mosaicbert.data.store import (
    TRAIN,
    VALIDATION,
    StoreRecord,
    count_ids,
    id_dtype,
    read_shard,
    sha256_of,
    unigram_entropy,
)
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer, train_tokenizer
from mosaicbert.filesystem import lock_folder, write_file

TOKENIZER_CHARACTERS = 100_000_000  # from the beginnings of all sources, held in memory to train a tokenizer


# --- What other packages call.


def prepare(recipe: Recipe, console: Console | None = None) -> StoreRecord:
    """Make the token store of `recipe`, continue to make it, or find it made.

    A store appears in its place only when it is complete. Until then, what is finished lies in the staging directory
    beside it; it survives the process, and is the same whenever that was killed.

    Raises:
        ConfigError: If a source or the tokenizer cannot be read, no text is left for a split, the tokenizer does not
            fit the model, the existing store was made from something else, or the recipe names a single partition.
    """
    return _prepare_store(PreparePlan.resolve(recipe), console or Console(stderr=True))


def prepare_single_partition(recipe: Recipe, partition_number: int, console: Console | None = None) -> PartitionRecord:
    """Make one of the partitions that `prepare` puts together, beside other machines that make the others.

    Raises:
        ConfigError: If the store is finished, or as `prepare`.
    """
    return _prepare_single_partition(PreparePlan.resolve(recipe), partition_number, console or Console(stderr=True))


def prepare_and_report(recipe: Recipe, console: Console) -> None:
    """Prepare the store, or the partition that the recipe names, and print the number of documents of each source.

    Raises:
        ConfigError: As `prepare`.
    """
    plan = PreparePlan.resolve(recipe)
    if plan.partition is None:
        record = _prepare_store(plan, console)
        lines = [
            f"{plan.store_folder / name}: {split.samples:,} samples, {split.tokens:,} tokens"
            for name, split in record.splits.items()
        ]
        end = f"unigram entropy of the held-out text: {record.unigram_entropy:.3f} nats"
    else:
        record = _prepare_single_partition(plan, plan.partition, console)
        folder = partition_folder(plan.staging_folder, plan.partition, plan.num_partitions)
        lines = [f"{folder}: {record.tokens:,} tokens"]
        end = (
            f"slice {plan.partition} of {plan.num_partitions} is done; once all are in {folder.parent}, "
            "leave data.partition out"
        )
    for name, documents in record.documents.items():
        lines.append(
            f"{name}: {documents:,} documents, {record.text_bytes[name] / 1e6:,.1f} MB; "
            f"left out: {_describe_skipped({name: record.skipped_documents.get(name, {})})}"
        )
    for line in [*lines, end]:
        console.print(line, highlight=False, soft_wrap=True)


def check_store(recipe: Recipe) -> StoreRecord:
    """Read the record of an existing store, and check that the store is the one that `recipe` describes.

    Raises:
        ConfigError: If there is no store, it is corrupted, or it was made from other sources or with another tokenizer.
    """
    return PreparePlan.resolve(recipe).check_store()


# --- Stages.


@dataclass(frozen=True)
class _Inputs:
    """What all partitions share."""

    input_files: Sequence[InputFile]
    tokenizer: Tokenizer
    revisions: dict[str, str | None]


def _prepare_store(plan: PreparePlan, console: Console) -> StoreRecord:
    if plan.partition is not None:
        raise ConfigError(
            f"data.partition={plan.partition}: a slice is no store; "
            "leave data.partition out once all slices are prepared."
        )
    if plan.store_folder.exists():
        record = plan.check_store()
        _warn_of_other_files(plan, record, console)
        return record
    check_sources(plan.sources)
    with open_staging(plan) as staging, Progress(console) as progress:
        inputs, partitions = None, []
        if not (staging / "store.json").exists():  # else interrupted when all was done but the cleaning up
            inputs = _find_inputs(plan, staging, progress)
            partitions = [
                _prepare_partition(plan, staging, inputs, number, progress) for number in range(plan.num_partitions)
            ]
            progress.log("putting the shards together")
        with lock_folder(staging):
            if not plan.store_folder.exists():  # another process may have finished while this one waited
                if inputs is not None:
                    _assemble_store(plan, staging, inputs, partitions)
                publish_store(staging, plan.store_folder)
    return plan.check_store()


def _prepare_single_partition(plan: PreparePlan, number: int, console: Console) -> PartitionRecord:
    if plan.store_folder.exists():
        raise ConfigError(f"{plan.store_folder}: this store is finished; leave data.partition out.")
    check_sources(plan.sources)
    with open_staging(plan) as staging, Progress(console) as progress:
        inputs = _find_inputs(plan, staging, progress)
        return _prepare_partition(plan, staging, inputs, number, progress)[1]


def _find_inputs(plan: PreparePlan, staging: Path, progress: Progress) -> _Inputs:
    revisions = _pin_revisions(plan, staging)
    input_files = list_input_files(plan.sources, revisions)
    if len(input_files) < plan.num_partitions:
        raise ConfigError(
            f"data.num_partitions={plan.num_partitions}: the sources have only {len(input_files)} files; "
            "give at most that number."
        )
    if plan.tokenizer_source != "train":
        tokenizer = load_tokenizer(plan.tokenizer_source)
        plan.check_tokenizer(tokenizer)
        return _Inputs(input_files, tokenizer, revisions)
    path = staging / "tokenizer.json"
    with lock_folder(staging):  # one of several machines trains it
        if not path.exists():
            progress.log("training a tokenizer")
            tokenizer = train_tokenizer(_select_training_texts(plan, input_files), plan.vocab_size)
            write_file(path, tokenizer.to_str(pretty=True).encode())
    return _Inputs(input_files, load_tokenizer(str(path)), revisions)


def _pin_revisions(plan: PreparePlan, staging: Path) -> dict[str, str | None]:
    """Return the commits of the sources that were found first, however datasets change meanwhile."""
    path = staging / "revisions.json"
    with lock_folder(staging):
        if not path.exists():
            write_file(path, json.dumps(resolve_revisions(plan.sources)).encode())
    return json.loads(path.read_text())


def _select_training_texts(plan: PreparePlan, input_files: Sequence[InputFile]) -> list[str]:
    """Select the first texts of the training split of every source, as many characters as its weight says."""
    texts: list[str] = []
    seen: set[tuple[int, int]] = set()
    total_weight = sum(source.weight or 1.0 for source in plan.sources.values())
    for name, source in plan.sources.items():
        num_missing = TOKENIZER_CHARACTERS * (source.weight or 1.0) / total_weight
        files_of_source = [
            input_file for input_file in input_files if input_file.source == name and input_file.split != VALIDATION
        ]
        for input_file, text in read_texts(files_of_source, plan.skip_invalid_documents):
            if num_missing <= 0:
                break
            bits = hash_text(text)
            if len(text) >= plan.min_characters and bits not in seen:
                seen.add(bits)
                if split_of(input_file, bits[0], plan.validation_fraction) == TRAIN:
                    texts.append(text)
                    num_missing -= len(text)
    if not texts:
        raise ConfigError(
            f"{plan.describe_sources()}: no text to train a tokenizer on; "
            "point it at more text, lower data.min_characters or change data.validation_fraction."
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
    begun = PartitionRecord(
        tokenizer_sha256=hash_tokenizer(inputs.tokenizer),
        input_files=[str(input_file) for input_file in input_files],
        sizes=[input_file.size for input_file in input_files],
    )
    activity = "tokenising" if plan.num_partitions == 1 else f"tokenising slice {number} of {plan.num_partitions}"
    folder = partition_folder(staging, number, plan.num_partitions)
    return folder, prepare_partition(folder, input_files, begun, rules, plan.skip_invalid_documents, progress, activity)


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
                f"{plan.describe_sources()}: no text for the {split} split (left out: {_describe_skipped(skipped)}); "
                "point it at more text, lower data.min_characters or change data.validation_fraction."
            )
    write_file(staging / "tokenizer.json", inputs.tokenizer.to_str(pretty=True).encode())
    frequencies = np.zeros(plan.vocab_size, dtype=np.int64)
    for shard in splits[VALIDATION].shards:
        frequencies += count_ids(read_shard(staging / VALIDATION / shard.file)[0], len(frequencies))
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
    ).write(staging)


# --- Counts and messages.


def _warn_of_other_files(plan: PreparePlan, record: StoreRecord, console: Console) -> None:
    """Print a note if local files were added or removed since; a folder that is gone is not worth a note."""
    for name, source in plan.sources.items():
        files = find_files(name, source)
        size = sum(Path(file).stat().st_size for file in files)
        if files and (len(files), size) != tuple(record.files[name]):
            number, bytes_then = record.files[name]
            console.print(
                f"note: {source.path} holds {len(files):,} files of {size:,} bytes now, {number:,} of {bytes_then:,} "
                f"when {plan.store_folder} was prepared; delete that folder to prepare them anew.",
                highlight=False,
                soft_wrap=True,
            )


def _count_files(input_files: Sequence[InputFile]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for input_file in input_files:
        number, size = counts.get(input_file.source, (0, 0))
        counts[input_file.source] = number + 1, size + input_file.size
    return counts


def _describe_skipped(skipped: Mapping[str, Mapping[str, int]]) -> str:
    reasons: Counter[str] = Counter()
    for counts in skipped.values():
        reasons.update(counts)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "nothing"
