"""Resolution of a recipe into the values that training needs, with its checks. Does not import Composer."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.data.loading.loader import make_train_plan
from mosaicbert.data.prepare.pipeline import check_store, prepare
from mosaicbert.data.store import VALIDATION, StoreRecord
from mosaicbert.train.device import PRECISIONS, choose_precision
from mosaicbert.train.measure.precision import measure_precisions
from mosaicbert.train.measure.processes import measure_processes
from mosaicbert.train.run_folder import RunFolder, check_run_folder, check_same_store
from mosaicbert.train_plan import TrainPlan

_AS_RECORDED = "as chosen when the run began"
_MIN_GAIN = 1.05  # speed of several processes relative to one; less may be a random difference


@dataclass(frozen=True)
class ResolvedRun:
    """A run whose recipe, folder, token store and device have been checked.

    Attributes:
        recipe: Recipe of the run, with the precision "fp32" or "bf16".
        folder: Run folder, which may not exist yet.
        store: Record of the token store.
        plan: Training plan over the store.
        precision: dtype of matrix products.
        precision_reason: Reason for the precision, in words.
    """

    recipe: Recipe
    folder: RunFolder
    store: StoreRecord
    plan: TrainPlan
    precision: torch.dtype
    precision_reason: str


def resolve_run(recipe: Recipe, console: Console) -> ResolvedRun:
    """Check the settings of a run, and prepare its token store if it is missing. Every process that trains calls it.

    Args:
        recipe: Recipe of the run.
        console: Console for the progress of the preparation.

    Raises:
        ConfigError: If an error of `prepare_run` occurs, or if the device does not support the precision.
    """
    choose_precision(recipe.train.precision)  # an unsupported precision is an error before the store is prepared
    folder, store = prepare_run(recipe, console, int(os.environ.get("WORLD_SIZE", 1)))
    recipe, precision_reason = resolve_precision(recipe, folder)
    precision, _ = choose_precision(recipe.train.precision)
    plan = make_train_plan(recipe.data, recipe.train, store)
    return ResolvedRun(recipe, folder, store, plan, precision, precision_reason)


def prepare_run(recipe: Recipe, console: Console, num_processes: int) -> tuple[RunFolder, StoreRecord]:
    """Check run folder, loggers, token store and number of processes, and prepare the store if it is missing.

    It does not use the device, so that a process that only starts the ranks has no memory on a GPU. One of several
    ranks does not prepare the store: whatever started the ranks has prepared it. A finished run needs only the copy of
    the store's record in its own folder.

    Args:
        recipe: Recipe of the run.
        console: Console for the progress of the preparation.
        num_processes: Number of processes that train.

    Returns:
        Run folder, which may not exist yet, and record of the token store.

    Raises:
        ConfigError: If the run folder belongs to a different recipe, a logger is not installed, the token store cannot
            be prepared or was replaced, or there are too few samples.
    """
    folder = check_run_folder(recipe)
    check_loggers(recipe.log.loggers)
    if folder.is_finished:
        return folder, StoreRecord.read(folder.path)
    is_one_of_several_ranks = "RANK" in os.environ and num_processes > 1
    store = check_store(recipe) if is_one_of_several_ranks else prepare(recipe, console)
    check_num_processes(recipe, store, num_processes)
    check_same_store(folder, store)
    return folder, store


def resolve_precision(recipe: Recipe, folder: RunFolder) -> tuple[Recipe, str]:
    """Replace `train.precision=auto` by the precision of the run.

    A run that has begun keeps its precision. Otherwise a GPU decides by what it supports. On a CPU, steps of a small
    model with the widths of the recipe are timed in both precisions. One of several ranks that another launcher has
    started does not measure, since the ranks could decide differently: the instructions of the CPU decide.

    Args:
        recipe: Recipe of the run.
        folder: Run folder, which may not exist yet.

    Returns:
        Recipe with the precision "fp32" or "bf16", and the reason for it in words.

    Raises:
        ConfigError: If the GPU does not support the precision that is set.
    """
    if recipe.train.precision == "auto" and folder.recipe.exists():
        precision, reason = load_recipe(folder.recipe).train.precision, _AS_RECORDED
    elif recipe.train.precision != "auto" or torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dtype, reason = choose_precision(recipe.train.precision)
        precision = next(name for name, candidate in PRECISIONS.items() if candidate == dtype)
    else:
        seconds = measure_precisions(recipe)
        precision = min(seconds, key=lambda name: seconds[name])
        ratio = max(seconds.values()) / seconds[precision]
        other = next(name for name in seconds if name != precision)
        reason = f"a measured step is {ratio:.1f} times as fast as in {other}"
    return replace(recipe, train=replace(recipe.train, precision=precision)), reason


def resolve_num_processes(recipe: Recipe, folder: RunFolder) -> tuple[int, str]:
    """Choose the number of processes for `train.num_processes=auto` on a CPU.

    A run that has begun keeps its number. Otherwise training steps are timed, see `measure_processes`.

    Args:
        recipe: Recipe of the run, with the precision "fp32" or "bf16".
        folder: Run folder, which may not exist yet.

    Returns:
        The number, and the reason for it in words.
    """
    if folder.recipe.exists():
        recorded = load_recipe(folder.recipe).train.num_processes
        if isinstance(recorded, int):
            return recorded, _AS_RECORDED
    seconds = measure_processes(recipe)
    several, _ = min(seconds.items(), key=lambda item: (item[0] == 1, item[1]))
    if several == 1:
        return 1, "this machine has one CPU, or a step has one sample"
    gain = seconds[1] / seconds[several]
    number = several if gain >= _MIN_GAIN else 1
    return number, f"a measured step takes {1 / gain:.2f} of the time with {several} processes"


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of Composer's loggers are installed.

    Args:
        names: Names of the loggers, which are also the names of their packages.

    Raises:
        ConfigError: If a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"`log.loggers` must name installed packages, got {name}. Run `pip install {name}`.")


def check_num_processes(recipe: Recipe, store: StoreRecord, num_processes: int) -> None:
    """Check that every process gets a sample in each training step and in the evaluation.

    Args:
        recipe: Recipe of the run.
        store: Record of its token store.
        num_processes: Number of processes that train.

    Raises:
        ConfigError: If there are fewer samples than processes.
    """
    num_samples, num_validation = recipe.train.min_batch_samples, store.splits[VALIDATION].samples
    if num_processes > num_samples:
        raise ConfigError(
            f"The smallest step must have a sample for each of the {num_processes} processes, got {num_samples}. "
            "Raise `train.global_batch_samples` or `train.initial_batch_samples`, or set `train.num_processes`."
        )
    if num_processes > num_validation:
        raise ConfigError(
            f"{recipe.store_folder} must have a validation sample for each of the {num_processes} processes, got "
            f"{num_validation}. Delete the store and raise `data.validation_fraction`, or set `train.num_processes`."
        )
