"""How many processes train a run on this machine. Without Composer, which takes seconds to import."""

import torch

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.data.prepare.sources import VALIDATION
from mosaicbert.data.store import StoreRecord


def count_processes(recipe: Recipe) -> int:
    """How many processes a run starts on this machine: one per GPU, or what the recipe says."""
    if recipe.train.num_processes is not None:
        available = torch.cuda.device_count()
        if available and recipe.train.num_processes > available:
            raise ConfigError(
                f"train.num_processes={recipe.train.num_processes}, but this machine has {available} GPUs; "
                "give at most as many."
            )
        return recipe.train.num_processes
    return max(1, torch.cuda.device_count())


def require_work_for_all(recipe: Recipe, record: StoreRecord, num_processes: int) -> None:
    """Refuses more processes than there are samples for.

    Raises:
        ConfigError: a process would have no sample in a training step, or none to evaluate.
    """
    per_step, held_out = recipe.train.smallest_batch_samples, record.splits[VALIDATION].samples
    if num_processes > per_step:
        raise ConfigError(
            f"the smallest step has {per_step} samples, less than the {num_processes} processes; every process needs "
            "one: raise train.global_batch_samples or train.initial_batch_samples, or set train.num_processes."
        )
    if num_processes > held_out:
        raise ConfigError(
            f"{recipe.store_folder}: {held_out} held-out samples are less than the {num_processes} processes; "
            "delete the store and raise data.held_out_fraction, or set train.num_processes."
        )
