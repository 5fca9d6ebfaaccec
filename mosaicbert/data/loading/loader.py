"""Recipe to data loaders."""

import signal
import threading
from collections.abc import Collection

import numpy as np
import torch
from torch.utils.data import DataLoader

from mosaicbert.batch import StepBatch
from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.loading.collator import EVAL_SEED, NUM_SPECIAL_TOKENS, EvalDataset, MlmCollator, TrainDataset
from mosaicbert.data.loading.sample_order import Group
from mosaicbert.data.prepare.pipeline import open_store
from mosaicbert.data.prepare.sources import TRAIN, VALIDATION
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.data.tokenizer import vocabulary_of
from mosaicbert.processes import end_with_parent
from mosaicbert.train_plan import TrainPlan


def build_train_loader(
    recipe: Recipe, rank: int, world_size: int, *, first_step: int = 0, skipped: Collection[int] = ()
) -> DataLoader[StepBatch]:
    """The training steps of one rank, to the end of the run, or without end if its duration is a time or in tokens.

    Args:
        recipe: of the run.
        rank: of this process among world_size.
        world_size: processes that share a step.
        first_step: to begin at; nothing before it is read.
        skipped: numbers of the batches that are left out, see `TrainDataset`.
    """
    plan = plan_run(recipe)
    rates = recipe.data.mask_rate, recipe.data.final_mask_rate or 0.0
    maker = _build_maker(recipe, TRAIN, recipe.seed, max(rates), rank, world_size)
    steps = TrainDataset(
        maker,
        groups=sample_groups(recipe, maker.store.samples_by_source),
        first_sample=plan.first_sample,
        num_steps=plan.num_steps if recipe.train.length.unit in ("steps", "samples") else None,
        mask_rate=plan.mask_rate,
        first_step=first_step,
        skipped=skipped,
    )
    # Copies to a GPU go on beside the computation only from memory that stays where it is.
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=recipe.data.num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )


def _start_worker(_number: int) -> None:
    # Signals are for the training process, which still needs steps. Copies of its open files, locks among them, may not
    # outlive it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def plan_run(recipe: Recipe) -> TrainPlan:
    """The course of a run over its token store."""
    split = StoreRecord.read(recipe.store_folder).splits[TRAIN]
    tokens: dict[str, int] = {}
    for shard in split.shards:
        tokens[shard.source] = tokens.get(shard.source, 0) + shard.tokens
    groups = sample_groups(recipe, split.samples_by_source())
    per_group = list(tokens.values()) if len(groups) > 1 else [split.tokens]
    means = [tokens / group.num_samples for tokens, group in zip(per_group, groups, strict=True)]
    mean = np.average(means, weights=[group.weight for group in groups])
    return TrainPlan(recipe, tokens_per_sample=float(mean) + NUM_SPECIAL_TOKENS)


def build_eval_loader(recipe: Recipe, rank: int, world_size: int) -> DataLoader[StepBatch]:
    """The held-out samples of one rank, in portions.

    Raises:
        ValueError: there are fewer held-out samples than ranks.
    """
    maker = _build_maker(recipe, VALIDATION, EVAL_SEED, recipe.eval.mask_rate, rank, world_size)
    steps = EvalDataset(maker, max_samples=recipe.eval.max_samples, mask_rate=recipe.eval.mask_rate)
    return DataLoader(steps, batch_size=None)


def sample_groups(recipe: Recipe, samples_by_source: dict[str, int]) -> list[Group]:
    """The training samples as the recipe mixes them: all together, or each source with its weight.

    Raises:
        ConfigError: a source has a weight but no training sample.
    """
    for name, source in recipe.data.sources.items():
        if source.weight is not None and name not in samples_by_source:
            raise ConfigError(
                f"data.sources.{name}.weight={source.weight}: the store holds no training sample of this source; "
                "give it more text, or leave it out."
            )
    weights = {name: recipe.data.sources[name].weight for name in samples_by_source}
    if None in weights.values():
        return [Group(first_sample=0, num_samples=sum(samples_by_source.values()), weight=1.0)]
    groups: list[Group] = []
    first = 0
    for name, samples in samples_by_source.items():
        groups.append(Group(first_sample=first, num_samples=samples, weight=weights[name] or 0.0))
        first += samples
    return groups


def _build_maker(
    recipe: Recipe, split: str, seed: int, largest_mask_rate: float, rank: int, world_size: int
) -> MlmCollator:
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    return MlmCollator(
        store=open_store(recipe, split),
        vocabulary=vocabulary_of(tokenizer),
        seed=seed,
        max_seq_len=recipe.data.max_seq_len,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        largest_mask_rate=largest_mask_rate,
        rank=rank,
        world_size=world_size,
    )
