"""Training plans and data loaders of prepared recipes, for tests."""

from mosaicbert.data.loading.loader import build_eval_loader, build_train_loader, make_train_plan, open_store
from mosaicbert.data.store import StoreRecord


def plan_of(recipe):
    """Make the training plan of a recipe."""
    return make_train_plan(recipe.data, recipe.train, StoreRecord.read(recipe.store_folder))


def train_loader_of(recipe, rank=0, world_size=1, **fields):
    """Build the training loader of one rank. `fields` are further arguments of `build_train_loader`."""
    return build_train_loader(
        plan_of(recipe),
        recipe.data,
        _open(recipe),
        seed=recipe.seed,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
        **fields,
    )


def eval_loader_of(recipe, rank=0, world_size=1):
    """Build the evaluation loader of one rank."""
    return build_eval_loader(
        recipe.eval,
        _open(recipe),
        max_seq_len=recipe.data.max_seq_len,
        micro_batch_tokens=recipe.train.micro_batch_tokens,
        rank=rank,
        world_size=world_size,
    )


def _open(recipe):
    return open_store(recipe.store_folder, StoreRecord.read(recipe.store_folder))
