"""Sources to token store: a tokenizer, slices, and the store out of them. Continues where it was cut off."""

import contextlib
import fcntl
import json
import math
import shutil
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.prepare.dedup import assemble
from mosaicbert.data.prepare.partition import (
    SliceRecord,
    lock,
    parts_of_slice,
    prepare_slice,
    refuse_bad,
    refuse_damage,
    slice_folder,
)
from mosaicbert.data.prepare.progress_bar import Progress
from mosaicbert.data.prepare.readers import BadDocument, Position, decode, read_blocks
from mosaicbert.data.prepare.sources import (
    TRAIN,
    VALIDATION,
    Part,
    find_files,
    list_parts,
    require_sources,
    resolve_revisions,
)
from mosaicbert.data.prepare.tokenize import SampleRules, clean, hash_text, split_of
from mosaicbert.data.store import (
    StoreRecord,
    TokenStore,
    count_ids,
    id_dtype,
    open_tokenizer,
    read_shard,
    sha256_of,
    write_file,
)
from mosaicbert.data.tokenizer import hash_tokenizer, load_tokenizer, train_tokenizer

TOKENIZER_CHARACTERS = 100_000_000  # from the beginnings of all sources, held in memory to train a tokenizer


def prepare(recipe: Recipe, console: Console | None = None) -> StoreRecord:
    """Makes the token store of `recipe`, continues to make it, or finds it made.

    A store appears in its place only when it is complete. Until then, what is finished stands beside it in a folder
    named `.partial`; it survives the process, and is the same whenever that was killed.

    Raises:
        ConfigError: a source or the tokenizer cannot be read, no text is left for a split, the tokenizer does not fit
            the model, the store there was made from something else, or the recipe asks for a slice alone.
    """
    data = recipe.data
    if data.slice is not None:
        raise ConfigError(
            f"data.slice={data.slice}: a slice is no store; leave data.slice out once all slices are prepared."
        )
    folder = recipe.store_folder
    console = console or Console(stderr=True)
    if folder.exists():
        record = check_store(recipe)
        _warn_of_other_files(recipe, record, console)
        return record
    with _workplace(recipe, console) as (partial, progress):
        if not (partial / "store.json").exists():
            plan = _make_plan(recipe, partial, progress)
            slices = [_prepare_slice(recipe, partial, plan, number, progress) for number in range(data.num_slices)]
            progress.say("putting the shards together")
        else:
            plan, slices = None, []  # interrupted when all was done but the cleaning up
        with lock(partial):
            if not folder.exists():  # another process may have finished while this one waited
                if plan is not None:
                    _finish_store(recipe, partial, plan, slices)
                for leftover in ("slices", "prepared_from.json", "revisions.json", "assembly.txt", "lock", "in_use"):
                    _remove(partial / leftover)
                partial.rename(folder)
    return check_store(recipe)


def prepare_one_slice(recipe: Recipe, slice_number: int, console: Console | None = None) -> SliceRecord:
    """Makes one of the slices that `prepare` puts together, beside other machines that make the others.

    Raises:
        ConfigError: as `prepare`; or the store is finished.
    """
    if recipe.store_folder.exists():
        raise ConfigError(f"{recipe.store_folder}: this store is finished; leave data.slice out.")
    with _workplace(recipe, console or Console(stderr=True)) as (partial, progress):
        plan = _make_plan(recipe, partial, progress)
        return _prepare_slice(recipe, partial, plan, slice_number, progress)[1]


def prepare_and_report(recipe: Recipe, console: Console) -> None:
    """Prepares the store, or the slice that the recipe names, and says what has become of the documents.

    Raises:
        ConfigError: as `prepare`.
    """
    number, total = recipe.data.slice, recipe.data.num_slices
    if number is None:
        record = prepare(recipe, console)
        lines = [
            f"{recipe.store_folder / name}: {split.samples:,} samples, {split.tokens:,} tokens"
            for name, split in record.splits.items()
        ]
        end = f"unigram entropy of the held-out text: {record.unigram_entropy:.3f} nats"
    else:
        record = prepare_one_slice(recipe, number, console)
        folder = slice_folder(_partial_folder(recipe), number, total)
        lines = [f"{folder}: {record.tokens:,} tokens"]
        end = f"slice {number} of {total} is done; once all are in {folder.parent}, leave data.slice out"
    for name, documents in record.documents.items():
        lines.append(
            f"{name}: {documents:,} documents, {record.text_bytes[name] / 1e6:,.1f} MB; "
            f"left out: {_describe({name: record.dropped.get(name, {})})}"
        )
    for line in [*lines, end]:
        console.print(line, highlight=False, soft_wrap=True)


def check_store(recipe: Recipe) -> StoreRecord:
    """Reads the record of an existing store and refuses one that is not what `recipe` asks for.

    Raises:
        ConfigError: there is no store, it is damaged, or it was made from another source or with another tokenizer.
    """
    folder = recipe.store_folder
    record = StoreRecord.read(folder)
    _require_same(folder, record.prepared_from, recipe)
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
    return TokenStore(recipe.store_folder, split)


def unigram_entropy(frequencies: NDArray[np.int64]) -> float:
    """Entropy in nats of the distribution that gives each token its frequency: -sum p log p."""
    shares = frequencies[frequencies > 0] / frequencies.sum()
    return float(-(shares * np.log(shares)).sum())


@contextlib.contextmanager
def _workplace(recipe: Recipe, console: Console) -> Generator[tuple[Path, Progress]]:
    """The folder in which the store grows. Who makes it takes it away again if an error comes before any shard."""
    require_sources(recipe.data.sources)
    partial = _partial_folder(recipe)
    new_folders = [place for place in (partial, *partial.parents) if not place.exists()]
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{recipe.store_folder}: cannot be written ({error}); choose another data.store or runs_folder."
        ) from error
    with (partial / "in_use").open("w") as guests:
        fcntl.flock(guests, fcntl.LOCK_SH)  # any number of processes may work here
        try:
            with Progress(console) as progress:
                _begin(recipe, partial)
                yield partial, progress
        except ConfigError:
            with contextlib.suppress(OSError):  # another process works here, or another run has put something there
                fcntl.flock(guests, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if partial in new_folders and not any(partial.glob("slices/*/*.arrow")):
                    shutil.rmtree(partial)
                    for place in new_folders[1:]:
                        place.rmdir()
            raise


def _begin(recipe: Recipe, partial: Path) -> None:
    """Notes what is prepared here, and refuses to mix it with something else."""
    path = partial / "prepared_from.json"
    with lock(partial):
        if recipe.store_folder.exists():
            raise ConfigError(f"{recipe.store_folder}: another process has just finished this store; run again.")
        if (partial / "store.json").exists():  # interrupted while cleaning up
            _require_same(partial, StoreRecord.read(partial).prepared_from, recipe)
        elif path.exists():
            _require_same(partial, json.loads(path.read_text()), recipe)
        else:
            write_file(path, json.dumps(_prepared_from(recipe)).encode())
        suffix = slice_folder(partial, 0, recipe.data.num_slices).name.partition("-")[2]
        if others := [place for place in partial.glob("slices/*") if not place.name.endswith(suffix)]:
            raise ConfigError(
                f"{others[0]}: was begun with another data.num_slices than {recipe.data.num_slices}; "
                f"set that again, or delete {partial} to begin again."
            )


@dataclass(frozen=True)
class _Plan:
    """What all slices share."""

    parts: Sequence[Part]
    tokenizer: Tokenizer
    revisions: dict[str, str | None]


def _make_plan(recipe: Recipe, partial: Path, progress: Progress) -> _Plan:
    revisions = _find_revisions(recipe, partial)
    parts = list_parts(recipe.data.sources, revisions)
    if len(parts) < recipe.data.num_slices:
        raise ConfigError(
            f"data.num_slices={recipe.data.num_slices}: the sources have only {len(parts)} files; "
            "give at most that number."
        )
    if recipe.tokenizer.source != "train":
        tokenizer = load_tokenizer(recipe.tokenizer.source)
        _require_fit(tokenizer, recipe)
        return _Plan(parts, tokenizer, revisions)
    path = partial / "tokenizer.json"
    with lock(partial):  # one of several machines trains it
        if not path.exists():
            progress.say("training a tokenizer")
            tokenizer = train_tokenizer(_training_texts(recipe, parts), recipe.model.vocab_size)
            write_file(path, tokenizer.to_str(pretty=True).encode())
    return _Plan(parts, load_tokenizer(str(path)), revisions)


def _find_revisions(recipe: Recipe, partial: Path) -> dict[str, str | None]:
    """The commits of the sources: those that were found first, however datasets change meanwhile."""
    path = partial / "revisions.json"
    with lock(partial):
        if not path.exists():
            write_file(path, json.dumps(resolve_revisions(recipe.data.sources)).encode())
    return json.loads(path.read_text())


def _prepare_slice(
    recipe: Recipe, partial: Path, plan: _Plan, number: int, progress: Progress
) -> tuple[Path, SliceRecord]:
    data = recipe.data
    rules = SampleRules(
        tokenizer=plan.tokenizer.to_str(),
        max_tokens=data.max_seq_len - 2,
        sampling=data.sampling,
        min_characters=data.min_characters,
        held_out_fraction=data.held_out_fraction,
        dtype=id_dtype(recipe.model.vocab_size),
    )
    parts = parts_of_slice(plan.parts, number, data.num_slices)
    begun = SliceRecord(
        tokenizer_sha256=hash_tokenizer(plan.tokenizer),
        parts=[str(part) for part in parts],
        sizes=[part.size for part in parts],
    )
    doing = "tokenising" if data.num_slices == 1 else f"tokenising slice {number} of {data.num_slices}"
    folder = slice_folder(partial, number, data.num_slices)
    return folder, prepare_slice(folder, parts, begun, rules, data.skip_bad_documents, progress, doing)


def _training_texts(recipe: Recipe, parts: Sequence[Part]) -> list[str]:
    """The first texts of all sources that are not held out, as many characters of each as its weight says."""
    data = recipe.data
    texts: list[str] = []
    seen: set[tuple[int, int]] = set()
    whole = sum(source.weight or 1.0 for source in data.sources.values())
    for name, source in data.sources.items():
        room = TOKENIZER_CHARACTERS * (source.weight or 1.0) / whole
        parts_of_source = [part for part in parts if part.source == name and part.split != VALIDATION]
        for part, text in read_texts(parts_of_source, data.skip_bad_documents):
            if room <= 0:
                break
            bits = hash_text(text)
            if len(text) >= data.min_characters and bits not in seen:
                seen.add(bits)
                if split_of(part, bits[0], data.held_out_fraction) == TRAIN:
                    texts.append(text)
                    room -= len(text)
    if not texts:
        raise ConfigError(
            f"{_describe_sources(recipe)}: no text to train a tokenizer on; "
            "point it at more text, lower data.min_characters or change data.held_out_fraction."
        )
    return texts


def read_texts(parts: Sequence[Part], skip_bad: bool) -> Iterator[tuple[Part, str]]:
    """Yields the part and the text of every document, in order.

    Raises:
        ConfigError: a document or the rest of a part cannot be read, unless `skip_bad` leaves them out.
    """
    for part in parts:
        for block in read_blocks(part, Position()):
            for document in decode(block):
                if isinstance(document, BadDocument):
                    refuse_bad(document, skip_bad)
                else:
                    yield part, clean(document)
            refuse_damage(block, skip_bad)


def _finish_store(recipe: Recipe, partial: Path, plan: _Plan, slices: Sequence[tuple[Path, SliceRecord]]) -> None:
    splits, repeated = assemble(partial, slices, id_dtype(recipe.model.vocab_size))
    dropped = {name: Counter({"duplicate": repeated[name]} if name in repeated else {}) for name in recipe.data.sources}
    documents: Counter[str] = Counter()
    text_bytes: Counter[str] = Counter()
    for _, record in slices:
        documents.update(record.documents)
        text_bytes.update(record.text_bytes)
        for name, reasons in record.dropped.items():
            dropped[name].update(reasons)
    for split, shards in splits.items():
        if not shards.samples:
            raise ConfigError(
                f"{_describe_sources(recipe)}: no text for the {split} split (left out: {_describe(dropped)}); "
                "point it at more text, lower data.min_characters or change data.held_out_fraction."
            )
    write_file(partial / "tokenizer.json", plan.tokenizer.to_str(pretty=True).encode())
    frequencies = np.zeros(recipe.model.vocab_size, dtype=np.int64)
    for shard in splits[VALIDATION].shards:
        frequencies += count_ids(read_shard(partial / VALIDATION / shard.file)[0], len(frequencies))
    StoreRecord(
        prepared_from=_prepared_from(recipe),
        tokenizer_sha256=sha256_of(partial / "tokenizer.json"),
        revisions=plan.revisions,
        files=_count_files(plan.parts),
        splits=splits,
        documents=dict(documents),
        text_bytes=dict(text_bytes),
        dropped={name: dict(reasons) for name, reasons in dropped.items()},
        unigram_entropy=unigram_entropy(frequencies),
    ).write(partial)


def _describe(dropped: Mapping[str, Mapping[str, int]]) -> str:
    reasons: Counter[str] = Counter()
    for counts in dropped.values():
        reasons.update(counts)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "nothing"


def _describe_sources(recipe: Recipe) -> str:
    return ", ".join(f"data.sources.{name}.path={source.path}" for name, source in recipe.data.sources.items())


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


def _require_same(folder: Path, prepared_from: Mapping[str, Any], recipe: Recipe) -> None:
    asked = _prepared_from(recipe)
    for key in dict.fromkeys([*asked, *prepared_from]):
        if prepared_from.get(key) != asked.get(key):
            raise ConfigError(
                f"{folder}: was prepared with {key}={prepared_from.get(key)}, the recipe says {asked.get(key)}; "
                "point data.store at another folder, or delete this one."
            )


def _prepared_from(recipe: Recipe) -> dict[str, Any]:
    """The keys that decide what a store holds."""
    keys: dict[str, Any] = {}
    for name, source in recipe.data.sources.items():
        keys |= {f"data.sources.{name}.{key}": value for key, value in asdict(source).items() if key != "weight"}
    for key in ("held_out_fraction", "min_characters", "sampling", "max_seq_len"):
        keys[f"data.{key}"] = getattr(recipe.data, key)
    keys["tokenizer.source"] = recipe.tokenizer.source
    if recipe.tokenizer.source == "train":
        keys["model.vocab_size"] = recipe.model.vocab_size
    return keys


def _partial_folder(recipe: Recipe) -> Path:
    return recipe.store_folder.with_name(recipe.store_folder.name + ".partial")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _count_files(parts: Sequence[Part]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for part in parts:
        number, size = counts.get(part.source, (0, 0))
        counts[part.source] = number + 1, size + part.size
    return counts


def _warn_of_other_files(recipe: Recipe, record: StoreRecord, console: Console) -> None:
    """Says if local files have come or gone since the store was made; they may also be gone for good."""
    for name, source in recipe.data.sources.items():
        files = find_files(name, source)
        size = sum(Path(file).stat().st_size for file in files)
        if files and (len(files), size) != tuple(record.files[name]):
            number, bytes_then = record.files[name]
            console.print(
                f"note: {source.path} holds {len(files):,} files of {size:,} bytes now, {number:,} of {bytes_then:,} "
                f"when {recipe.store_folder} was prepared; delete that folder to prepare them anew.",
                highlight=False,
                soft_wrap=True,
            )
