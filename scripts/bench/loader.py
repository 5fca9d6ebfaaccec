"""Benchmark of the data loader in one process: throughput of masked micro-batches, and time to the first step.

Run: taskset -c 0 python scripts/bench/loader.py [RECIPE]
Without a recipe, a synthetic store has documents as long as those of web text, and tokens with Zipf frequencies.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
import torch
from torch.utils.data import DataLoader

from mosaicbert.batch import StepBatch
from mosaicbert.bench.documents import build_run_loader
from mosaicbert.config import DataConfig, Recipe, SourceConfig, TokenizerConfig, TrainConfig
from mosaicbert.config.load import load_recipe
from mosaicbert.data.store import SplitRecord, StoreRecord, sha256_of, write_shard
from mosaicbert.data.tokenizer import train_tokenizer

VOCAB_SIZE = 30_528
NUM_LARGE_SAMPLES = 10**9
NUM_LARGE_SHARDS = 3_000  # hard links to the same file
NUM_INSPECTED_STEPS = 20


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        recipe = load_recipe(sys.argv[1], ["data.num_workers=0"])
        measure(recipe, recipe.run_name)
        return
    with tempfile.TemporaryDirectory() as folder:
        for max_seq_len, samples in ((128, 4096), (512, 1024)):
            store = Path(folder) / str(max_seq_len)
            write_synthetic_store(store, num_samples=200_000, max_seq_len=max_seq_len, num_shards=1)
            measure(synthetic_recipe(store, max_seq_len, samples), f"synthetic, up to {max_seq_len} tokens")
        write_synthetic_store(
            Path(folder) / "large",
            num_samples=NUM_LARGE_SAMPLES // NUM_LARGE_SHARDS,
            max_seq_len=16,
            num_shards=NUM_LARGE_SHARDS,
        )
        measure_resuming(synthetic_recipe(Path(folder) / "large", 16, 4096))


def measure(recipe: Recipe, description: str) -> None:
    """Time a step on the rank of a run on one GPU, and on the first of eight ranks."""
    loaders = {"rank 0 of 1": steps_of(recipe, 1), "rank 0 of 8": steps_of(recipe, 8)}
    extra_fields, units = {}, {}
    for by, steps in loaders.items():
        inspected_steps = [next(steps) for _ in range(NUM_INSPECTED_STEPS)]
        batches = [batch for step in inspected_steps for batch in step.micro_batches]
        units[by] = sum(batch.num_tokens for batch in batches) / NUM_INSPECTED_STEPS
        extra_fields[by] = {
            "fill_rate": round(units[by] * NUM_INSPECTED_STEPS / sum(batch.shape[0] for batch in batches), 4),
            "shapes": len({batch.shape for batch in batches}),
            "micro_batches": len(batches) // NUM_INSPECTED_STEPS,
        }
    harness.record(
        "loader",
        f"a step of masked micro-batches, {description}",
        {by: (lambda steps=steps: next(steps)) for by, steps in loaders.items()},
        shape={
            "samples": recipe.train.global_batch_samples,
            "max_seq_len": recipe.data.max_seq_len,
            "micro_batch_tokens": recipe.train.micro_batch_tokens,
        },
        seconds=10.0,
        units=units,
        extra_fields=extra_fields,
    )
    for by in loaders:
        print(f"  {by}: {extra_fields[by]}")


def measure_resuming(recipe: Recipe) -> None:
    """Time the opening of a store and the first batch, from the first step and from a late one."""

    def first_step(step: int) -> StepBatch:
        return next(iter(build_loader(recipe, 1, first_step=step)))

    late_step = NUM_LARGE_SAMPLES // recipe.train.global_batch_samples * 9 // 10
    harness.record(
        "loader",
        "opening a store and making the first step",
        {"from the beginning": lambda: first_step(0), f"from step {late_step:,}": lambda: first_step(late_step)},
        shape={"samples": NUM_LARGE_SAMPLES, "shards": NUM_LARGE_SHARDS},
        seconds=20.0,
    )


def steps_of(recipe: Recipe, world_size: int) -> Iterator[StepBatch]:
    start = time.perf_counter()
    steps = iter(build_loader(recipe, world_size))
    next(steps)
    print(f"  first step after {time.perf_counter() - start:.2f} s")
    return steps


def build_loader(recipe: Recipe, world_size: int, first_step: int = 0) -> DataLoader[StepBatch]:
    record = StoreRecord.read(recipe.store_folder)
    return build_run_loader(recipe, record, world_size=world_size, first_step=first_step)


def synthetic_recipe(store: Path, max_seq_len: int, samples: int) -> Recipe:
    return Recipe(
        run_name="synthetic",
        data=DataConfig(
            sources={"text": SourceConfig(path="synthetic")}, store=str(store), max_seq_len=max_seq_len, num_workers=0
        ),
        tokenizer=TokenizerConfig(source="train"),
        train=TrainConfig(duration="10_000_000_000 samples", global_batch_samples=samples),
    )


def write_synthetic_store(folder: Path, *, num_samples: int, max_seq_len: int, num_shards: int) -> None:
    """Write a store whose shards are hard links to one file."""
    (folder / "train").mkdir(parents=True)
    rng = np.random.default_rng(0)
    # Documents of web text have a median of about 250 tokens and a long tail.
    seqlens = np.clip(rng.lognormal(5.5, 1.1, num_samples), 1, max_seq_len - 2).astype(np.int32)
    ids = (1000 + rng.zipf(1.3, seqlens.sum()) % 29_000).astype(np.uint16)
    shard = write_shard(folder / "train" / "data-00000.arrow", "text", ids, seqlens)
    for number in range(1, num_shards):
        (folder / "train" / f"data-{number:05d}.arrow").hardlink_to(folder / "train" / shard.file)
    shards = [replace(shard, file=f"data-{number:05d}.arrow") for number in range(num_shards)]
    tokenizer = train_tokenizer(["any text"], VOCAB_SIZE)
    tokenizer.add_tokens([f"word{number}" for number in range(VOCAB_SIZE - tokenizer.get_vocab_size())])
    tokenizer.save(str(folder / "tokenizer.json"))
    StoreRecord(
        prepared_from={},
        tokenizer_sha256=sha256_of(folder / "tokenizer.json"),
        revisions={},
        files={},
        splits={"train": SplitRecord(shards=shards)},
        documents={},
        text_bytes={},
        skipped_documents={},
        unigram_entropy=0.0,
    ).write(folder)


if __name__ == "__main__":
    main()
