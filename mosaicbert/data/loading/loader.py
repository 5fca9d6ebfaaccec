"""Data loaders for training and evaluation, and the training plan for a token store."""

import signal
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from mosaicbert.batch import StepBatch
from mosaicbert.config import ConfigError, DataConfig, EvalConfig, SourceConfig, TrainConfig
from mosaicbert.config.recipe import NUM_SPECIAL_TOKENS
from mosaicbert.data.loading.collator import MlmCollator
from mosaicbert.data.loading.dataset import EvalDataset, TrainDataset
from mosaicbert.data.loading.sample_order import Group
from mosaicbert.data.store import TRAIN, VALIDATION, SplitRecord, StoreRecord, TokenStore, open_tokenizer
from mosaicbert.data.tokenizer import Vocabulary, vocabulary_of
from mosaicbert.processes import end_with_parent
from mosaicbert.train_plan import TrainPlan

_EVAL_SEED = 0  # runs with different seeds are evaluated with the same masks


@dataclass(frozen=True)
class OpenStore:
    """Token store opened for reading.

    Attributes:
        train: Training split.
        validation: Validation split.
        vocabulary: Vocabulary of the store's tokenizer.
    """

    train: TokenStore
    validation: TokenStore
    vocabulary: Vocabulary


def open_store(folder: Path, record: StoreRecord) -> OpenStore:
    """Open a token store.

    Args:
        folder: Folder of the store.
        record: Record of the store.

    Raises:
        ConfigError: If the tokenizer in the folder is missing or differs from that of the record.
    """
    vocabulary = vocabulary_of(open_tokenizer(folder, record))
    return OpenStore(TokenStore(folder, TRAIN), TokenStore(folder, VALIDATION), vocabulary)


def make_train_plan(data: DataConfig, train: TrainConfig, record: StoreRecord) -> TrainPlan:
    """Create the training plan of a run on a token store.

    Args:
        data: Data section of the recipe.
        train: Train section of the recipe.
        record: Record of the store.

    Raises:
        ConfigError: If a source has a weight but no training samples.
    """
    split = record.splits[TRAIN]
    groups = sample_groups(data.sources, split.samples_by_source())
    num_tokens = list(_tokens_by_source(split).values()) if len(groups) > 1 else [split.tokens]
    means = [tokens / group.num_samples for tokens, group in zip(num_tokens, groups, strict=True)]
    mean = np.average(means, weights=[group.weight for group in groups])
    return TrainPlan(data, train, tokens_per_sample=float(mean) + NUM_SPECIAL_TOKENS)


def build_train_loader(
    plan: TrainPlan,
    data: DataConfig,
    store: OpenStore,
    *,
    seed: int,
    micro_batch_tokens: int,
    rank: int,
    world_size: int,
    first_step: int = 0,
    skipped_batches: Collection[int] = (),
) -> DataLoader[StepBatch]:
    """Build the data loader for the training steps of one rank.

    The loader is endless if the plan does not have an exact number of steps.

    Args:
        plan: Training plan of the run.
        data: Data section of the recipe.
        store: Token store of the run.
        seed: Seed of the sample order and the masking.
        micro_batch_tokens: Maximum number of tokens per micro-batch.
        rank: Rank of this process.
        world_size: Number of ranks.
        first_step: Index of the first step.
        skipped_batches: Indices of the batches to skip, see `TrainDataset`.
    """
    collator = MlmCollator(
        store=store.train,
        vocabulary=store.vocabulary,
        seed=seed,
        max_seq_len=data.max_seq_len,
        micro_batch_tokens=micro_batch_tokens,
        max_mask_rate=max(data.mask_rate, data.final_mask_rate or 0.0),
        rank=rank,
        world_size=world_size,
    )
    dataset = TrainDataset(
        collator,
        groups=sample_groups(data.sources, store.train.samples_by_source),
        first_sample=plan.first_sample,
        num_steps=plan.exact_num_steps,
        mask_rate=plan.mask_rate,
        first_step=first_step,
        skipped_batches=skipped_batches,
    )
    # Only copies from pinned memory overlap with computation on the GPU.
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=data.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )


def build_eval_loader(
    config: EvalConfig, store: OpenStore, *, max_seq_len: int, micro_batch_tokens: int, rank: int, world_size: int
) -> DataLoader[StepBatch]:
    """Build the data loader for the evaluation steps of one rank.

    Args:
        config: Eval section of the recipe.
        store: Token store of the run.
        max_seq_len: Maximum number of tokens per sample.
        micro_batch_tokens: Maximum number of tokens per micro-batch.
        rank: Rank of this process.
        world_size: Number of ranks.

    Raises:
        ValueError: If the number of validation samples is smaller than the number of ranks.
    """
    collator = MlmCollator(
        store=store.validation,
        vocabulary=store.vocabulary,
        seed=_EVAL_SEED,
        max_seq_len=max_seq_len,
        micro_batch_tokens=micro_batch_tokens,
        max_mask_rate=config.mask_rate,
        rank=rank,
        world_size=world_size,
    )
    return DataLoader(
        EvalDataset(collator, max_samples=config.max_samples, mask_rate=config.mask_rate), batch_size=None
    )


def sample_groups(sources: Mapping[str, SourceConfig], samples_by_source: Mapping[str, int]) -> list[Group]:
    """Group the training samples: one group per weighted source, or a single group without weights.

    Args:
        sources: Sources of the recipe, by name.
        samples_by_source: Number of training samples of each source, in store order.

    Raises:
        ConfigError: If a source has a weight but no training samples.
    """
    for name, source in sources.items():
        if source.weight is not None and name not in samples_by_source:
            raise ConfigError(
                f"`data.sources.{name}.weight` must not be set for a source without training samples in the store, "
                f"got {source.weight}. Add text to the source, or remove it."
            )
    weights = {name: sources[name].weight for name in samples_by_source}
    if None in weights.values():
        return [Group(first_sample=0, num_samples=sum(samples_by_source.values()), weight=1.0)]
    groups: list[Group] = []
    first = 0
    for name, num_samples in samples_by_source.items():
        groups.append(Group(first_sample=first, num_samples=num_samples, weight=weights[name] or 0.0))
        first += num_samples
    return groups


def _tokens_by_source(split: SplitRecord) -> dict[str, int]:
    num_tokens: dict[str, int] = {}
    for shard in split.shards:
        num_tokens[shard.source] = num_tokens.get(shard.source, 0) + shard.tokens
    return num_tokens


def _start_worker(_worker_id: int) -> None:
    # The training process handles these signals and needs batches until it stops. A worker inherits the open files and
    # locks of the training process, so it must end with it.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
