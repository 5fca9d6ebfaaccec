"""The run folder: what a run was asked, where it ran, what it measured. It explains itself to a stranger."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe, recipe_differences, save_recipe
from mosaicbert.data.store import StoreRecord, write_file
from mosaicbert.train.checkpoint.format import step_of

# Keys that move work about without changing what is computed: a run may be continued with other values.
_FREE_KEYS = frozenset(
    {
        "runs_folder",
        "data.store",
        "data.num_workers",
        "data.num_slices",
        "data.skip_bad_documents",
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
_PACKAGES = ("mosaicbert", "torch", "transformers", "mosaicml", "datasets", "tokenizers", "numpy", "omegaconf")


class RunFolder:
    """`runs/<run_name>/` and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.store = path / "store.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.faults = path / "faults.jsonl"
        self.figure = path / "loss.png"
        self.checkpoints = path / "checkpoints"
        self.hugging_face = path / "hf"

    def export_of(self, step: int) -> Path:
        """The Hugging Face folder of the checkpoint after `step` steps."""
        return self.hugging_face / f"step-{step}"


def newest_export(run: RunFolder) -> Path | None:
    """The Hugging Face folder of the latest step that has one."""
    return max(run.hugging_face.glob("step-*[0-9]"), key=step_of, default=None)


def check_run(recipe: Recipe) -> RunFolder:
    """Finds the run folder of `recipe` and refuses one that belongs to another recipe. Writes nothing.

    Raises:
        ConfigError: the folder's recipe differs, in keys that the message names.
    """
    run = RunFolder(recipe.run_folder)
    if not run.recipe.exists():
        return run
    before = load_recipe(run.recipe)
    differences = {key: pair for key, pair in recipe_differences(before, recipe).items() if key not in _FREE_KEYS}
    if differences:
        changes = ", ".join(f"{key} ({old} there, {new} now)" for key, (old, new) in differences.items())
        raise ConfigError(
            f"{run.path}: holds a run of another recipe, which differs in {changes}; choose another run_name=, "
            "or delete the folder."
        )
    return run


def require_same_store(run: RunFolder, record: StoreRecord) -> None:
    """Refuses to go on with other samples than the run began with: the same position would be other text.

    Raises:
        ConfigError: the store has been prepared again, from other text, since the run began.
    """
    if run.store.exists() and StoreRecord.read(run.path).shard_hashes() != record.shard_hashes():
        raise ConfigError(
            f"{run.path}: this run began with another token store, see its store.json; choose another run_name=, "
            "or give it that store back: data.store=."
        )


def open_run(recipe: Recipe, record: StoreRecord) -> RunFolder:
    """Makes the run folder with the resolved recipe, the store's record and tokenizer, and the environment.

    What is there already stays as it is: it tells how the run began.

    Raises:
        ConfigError: as `check_run` and `require_same_store`.
    """
    run = check_run(recipe)
    require_same_store(run, record)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{run.path}: cannot be written ({error}); choose another runs_folder.") from error
    if not run.recipe.exists():
        partial = run.recipe.with_suffix(".partial")
        save_recipe(recipe, partial)
        partial.rename(run.recipe)
    if not run.store.exists():
        write_file(run.path / "tokenizer.json", (recipe.store_folder / "tokenizer.json").read_bytes())
        record.write(run.path)
    if not run.environment.exists():
        write_file(run.environment, (json.dumps(describe_environment(), indent=2) + "\n").encode())
    return run


def describe_environment() -> dict[str, Any]:
    """Commit, hardware and versions."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES if _is_installed(name)},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": gpus,
    }


def _is_installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def _commit() -> str | None:
    """The commit of the source tree that this package runs from, -dirty if files differ; None for a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
