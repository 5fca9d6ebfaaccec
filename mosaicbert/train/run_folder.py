"""Run folder `runs/<run_name>/`: recipe, environment, token store record, metrics, checkpoints, exports."""

import json
from pathlib import Path

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe, recipe_differences, save_recipe
from mosaicbert.data.store import StoreRecord
from mosaicbert.environment import describe_environment
from mosaicbert.filesystem import atomic_path, write_file
from mosaicbert.train.checkpoint.format import step_of

# Keys whose values may change when a run is resumed.
_FREE_KEYS = frozenset(
    {
        "runs_folder",
        "data.store",
        "data.num_workers",
        "data.num_partitions",
        "data.skip_invalid_documents",
        "train.num_processes",
        "train.micro_batch_tokens",
        "train.compile",
        "train.cuda_graphs",
        "train.sharding",
        "checkpoint.interval",
        "checkpoint.keep_last",
        "checkpoint.keep_every",
        "faults.spike_deviations",
        "faults.max_skipped_steps",
        "faults.max_rollbacks",
        "log.interval_steps",
        "log.loggers",
        "eval.fill_mask",
    }
)


class RunFolder:
    """Paths of a run folder's files.

    Attributes:
        path: Run folder.
        recipe: Resolved recipe.
        store: Record of the token store that the run began with.
        environment: Environment that the run began in.
        metrics: Lines of measurements.
        result: Result of a finished run.
        faults: Fault log.
        loss_figure: Figure of the loss against time.
        checkpoints: Folder of the checkpoints.
        hugging_face: Folder of the exports.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.store = path / "store.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.faults = path / "faults.jsonl"
        self.loss_figure = path / "loss.png"
        self.checkpoints = path / "checkpoints"
        self.hugging_face = path / "hf"

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.result.exists()

    def export_of(self, step: int) -> Path:
        """Return the path of the Hugging Face folder of the checkpoint after `step` steps."""
        return self.hugging_face / f"step-{step}"


def newest_export(run: RunFolder) -> Path | None:
    """Return the Hugging Face folder of the latest exported step, or None."""
    return max(run.hugging_face.glob("step-*[0-9]"), key=step_of, default=None)


def check_run_folder(recipe: Recipe) -> RunFolder:
    """Return the run folder of a recipe, and check that it does not belong to a different recipe.

    Args:
        recipe: Recipe of the run.

    Raises:
        ConfigError: If the recipe of an existing run differs in keys that change what is computed.
    """
    run = RunFolder(recipe.run_folder)
    if not run.recipe.exists():
        return run
    differences = recipe_differences(load_recipe(run.recipe), recipe)
    if recipe.train.precision == "auto":
        differences.pop("train.precision", None)  # the run keeps the recorded precision, see `resolve_precision`
    changes = [
        f"`{key}` (recorded: {old}, now: {new})" for key, (old, new) in differences.items() if key not in _FREE_KEYS
    ]
    if changes:
        raise ConfigError(
            f"{run.path} must be the folder of a run with this recipe, got different values of {', '.join(changes)}. "
            "Set a different `run_name`, or delete the folder."
        )
    return run


def check_same_store(run: RunFolder, record: StoreRecord) -> None:
    """Check that a run is resumed with the token store that it began with.

    Args:
        run: Run folder.
        record: Record of the token store.

    Raises:
        ConfigError: If the store was prepared from different text since the run began.
    """
    if run.store.exists() and StoreRecord.read(run.path).shard_hashes() != record.shard_hashes():
        raise ConfigError(
            f"`data.store` must be the token store that {run.path} began with, got a store of different text. "
            f"Set it to the store that {run.store} describes, or set a different `run_name`."
        )


def create_run_folder(recipe: Recipe, record: StoreRecord) -> RunFolder:
    """Create the run folder with resolved recipe, record and tokenizer of the store, and environment.

    Existing files are left as they are: they describe how the run began.

    Args:
        recipe: Recipe of the run, whose folder has been checked.
        record: Record of the token store.

    Raises:
        ConfigError: If the folder cannot be written.
    """
    run = RunFolder(recipe.run_folder)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not run.recipe.exists():
            with atomic_path(run.recipe) as partial:
                save_recipe(recipe, partial)
    except OSError as error:
        raise ConfigError(f"{run.path} cannot be written ({error}). Set a different `runs_folder`.") from error
    if not run.store.exists():
        write_file(run.path / "tokenizer.json", (recipe.store_folder / "tokenizer.json").read_bytes())
        record.write(run.path)
    if not run.environment.exists():
        write_file(run.environment, (json.dumps(describe_environment(), indent=2) + "\n").encode())
    return run
