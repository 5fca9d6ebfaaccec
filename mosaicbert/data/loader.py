"""Recipe to data loaders."""

from torch.utils.data import DataLoader

from mosaicbert.batch import Step
from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.batches import EVAL_SEED, BatchMaker, EvalSteps, TrainSteps
from mosaicbert.data.order import Group
from mosaicbert.data.prepare import open_store
from mosaicbert.data.sources import TRAIN, VALIDATION
from mosaicbert.data.store import StoreRecord, open_tokenizer
from mosaicbert.data.tokenizer import vocabulary_of


def build_loader(recipe: Recipe, rank: int, world_size: int) -> DataLoader[Step]:
    """The training steps of one rank."""
    last = recipe.train.total_steps - 1
    largest_mask_rate = max(recipe.mask_rate_at(0), recipe.mask_rate_at(last))
    maker = _build_maker(recipe, TRAIN, recipe.seed, largest_mask_rate, rank, world_size)
    steps = TrainSteps(
        maker,
        groups=sample_groups(recipe, maker.store.samples_by_source),
        samples_per_step=recipe.train.global_batch_samples,
        num_steps=recipe.train.total_steps,
        mask_rate=recipe.mask_rate_at,
    )
    return DataLoader(steps, batch_size=None, num_workers=recipe.data.num_workers)


def build_eval_loader(recipe: Recipe, rank: int, world_size: int) -> DataLoader[Step]:
    """The held-out samples of one rank, in portions.

    Raises:
        ValueError: there are fewer held-out samples than ranks.
    """
    maker = _build_maker(recipe, VALIDATION, EVAL_SEED, recipe.eval.mask_rate, rank, world_size)
    steps = EvalSteps(maker, max_samples=recipe.eval.max_samples, mask_rate=recipe.eval.mask_rate)
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
) -> BatchMaker:
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    return BatchMaker(
        store=open_store(recipe, split),
        vocabulary=vocabulary_of(tokenizer),
        seed=seed,
        max_seq_len=recipe.data.max_seq_len,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        largest_mask_rate=largest_mask_rate,
        rank=rank,
        world_size=world_size,
    )
