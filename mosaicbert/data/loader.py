"""Recipe to data loaders."""

from torch.utils.data import DataLoader

from mosaicbert.batch import Batch
from mosaicbert.config import Recipe
from mosaicbert.data.batches import BatchMaker, EvalSteps, TrainSteps
from mosaicbert.data.prepare import open_store
from mosaicbert.data.store import TRAIN, VALIDATION, StoreRecord, open_tokenizer
from mosaicbert.data.tokenizer import vocabulary_of


def build_loader(recipe: Recipe, rank: int, world_size: int) -> DataLoader[list[Batch]]:
    """The training steps of one rank: an item is a step, as a list of micro-batches."""
    maker = _build_maker(recipe, TRAIN, recipe.data.mask_rate, rank, world_size)
    steps = TrainSteps(maker, samples_per_step=recipe.train.global_batch_samples, num_steps=recipe.train.total_steps)
    return DataLoader(steps, batch_size=None, num_workers=recipe.data.num_workers)


def build_eval_loader(recipe: Recipe, rank: int, world_size: int) -> DataLoader[list[Batch]]:
    """The held-out samples of one rank, in portions, each a list of micro-batches.

    Raises:
        ValueError: there are fewer held-out samples than ranks.
    """
    maker = _build_maker(recipe, VALIDATION, recipe.eval.mask_rate, rank, world_size)
    return DataLoader(EvalSteps(maker, max_samples=recipe.eval.max_samples), batch_size=None)


def _build_maker(recipe: Recipe, split: str, mask_rate: float, rank: int, world_size: int) -> BatchMaker:
    tokenizer = open_tokenizer(recipe.store_folder, StoreRecord.read(recipe.store_folder))
    return BatchMaker(
        store=open_store(recipe, split),
        vocabulary=vocabulary_of(tokenizer),
        seed=recipe.seed,
        mask_rate=mask_rate,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
    )
