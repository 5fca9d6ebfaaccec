"""Checkpoints to score, and the cost of their pretraining."""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers.utils.hub import cached_file, extract_commit_hash

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.load import load_recipe
from mosaicbert.data.store import StoreRecord
from mosaicbert.estimate import training_flops
from mosaicbert.filesystem import is_locked
from mosaicbert.report.metrics import read_metrics
from mosaicbert.report.runs import describe_cpu
from mosaicbert.scores.predictions import PREDICTIONS_FILE
from mosaicbert.scores.records import SCORES_FILE, Pretraining
from mosaicbert.train.checkpoint.format import CheckpointError, checkpoint_path, read_state, step_of
from mosaicbert.train.results import RunResult, summarize
from mosaicbert.train.run_folder import RunFolder, newest_export

_EXPORTS = "step-*[0-9]"  # folder names of a run's exported checkpoints
_MODEL_FILES = (
    *("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model"),
    *("*.safetensors", "pytorch_model*.bin"),
)
_BLOCK_SIZE = 2**24  # bytes


@dataclass(frozen=True, kw_only=True)
class CheckpointToScore:
    """A model to score.

    Attributes:
        model: Path of the Hugging Face folder, or name of the model on the Hub.
        step: Training step of a run's checkpoint; None for an external model.
        pretraining: Cost of the pretraining; None if it is not available.
        version: Version of an external model: commit on the Hub, or hash of the model files; None for a run's
            checkpoint.
    """

    model: str
    step: int | None
    pretraining: Pretraining | None
    version: str | None = None

    @property
    def identity(self) -> str:
        """Name of the model in score records, with the version of an external model."""
        return self.model if self.version is None else f"{self.model}@{self.version}"

    @property
    def label(self) -> str:
        """Name of the checkpoint in console output."""
        return self.model if self.step is None else f"step {self.step:,}"


class CheckpointSource:
    """Checkpoints to score of a run, or an external model.

    Args:
        model: Run folder or one of its exports, Hugging Face folder, or name of a model on the Hub.
        checkpoints: Checkpoints of a run: "newest", or "all", including those written during the scoring.
        external_folder: Folder for the scores of a model that is not a run.
        benchmark: Name of the benchmark: the folder for its temporary files.

    Attributes:
        run: Run folder that contains the checkpoints; None for an external model.
        scores_path: Path of the score records.
        predictions_path: Path of the predictions of the score records.
        work_folder: Folder for temporary files, and for the log of failures.
    """

    def __init__(
        self, model: str, checkpoints: Literal["newest", "all"], *, external_folder: Path, benchmark: str
    ) -> None:
        self._model, self._selection = model, checkpoints
        self.run, self._step = _find_run(Path(model))
        folder = external_folder if self.run is None else self.run.path
        self.scores_path = folder / SCORES_FILE
        self.predictions_path = folder / PREDICTIONS_FILE
        self.work_folder = folder / benchmark

    def checkpoints(self) -> list[CheckpointToScore]:
        """List the checkpoints that exist now, in the order of their steps.

        Raises:
            ConfigError: If there are no checkpoints and the run is not training.
        """
        if self.run is None:
            return [self._external_checkpoint]
        steps = sorted(step_of(path) for path in self.run.hugging_face.glob(_EXPORTS))
        if self._step is not None:
            if not steps:
                raise ConfigError(_no_exports_message(self.run))
            if self._step not in steps:
                raise ConfigError(
                    f"The model must be an exported checkpoint of {self.run.path}, got {self._model}. "
                    f"Choose one of: {', '.join(str(self.run.export_of(step)) for step in steps)}."
                )
            steps = [self._step]
        elif self._selection == "newest":
            steps = steps[-1:]
        if not steps and not self.may_add_checkpoints():
            raise ConfigError(_no_exports_message(self.run))
        return [self._describe(self.run, step) for step in steps]

    @cached_property
    def _external_checkpoint(self) -> CheckpointToScore:
        path = Path(self._model)
        # Normalized, because shells complete the name of a folder with a slash.
        model = str(path) if path.is_dir() else self._model
        return CheckpointToScore(model=model, step=None, pretraining=None, version=_version_of(model))

    def may_add_checkpoints(self) -> bool:
        """Return whether new checkpoints may appear, because all are scored and the run is training."""
        return self._scores_all and self.run is not None and is_locked(self.run.path)

    @property
    def _scores_all(self) -> bool:
        return self._selection == "all" and self._step is None

    def has_removed(self, checkpoint: CheckpointToScore) -> bool:
        """Return whether the run has deleted a checkpoint since it was listed.

        Args:
            checkpoint: Checkpoint of the run. The result is False unless all checkpoints are scored.
        """
        return self._scores_all and self.run is not None and not Path(checkpoint.model).is_dir()

    def has_replaced(self, checkpoint: CheckpointToScore) -> bool:
        """Return whether the run has rolled back and trained the step of a checkpoint again.

        Args:
            checkpoint: Checkpoint of the run.
        """
        if self.run is None or checkpoint.step is None or checkpoint.pretraining is None:
            return False
        current = self._describe(self.run, checkpoint.step).pretraining
        return current is not None and not current.is_same_training(checkpoint.pretraining)

    def _describe(self, run: RunFolder, step: int) -> CheckpointToScore:
        pretraining = None
        try:
            state = read_state(checkpoint_path(run.checkpoints, step))
            environment = json.loads(run.environment.read_text())
            result = summarize(read_metrics(run.metrics), state, StoreRecord.read(run.path))
            pretraining = _describe_pretraining(load_recipe(run.recipe), environment, result)
        except CheckpointError:
            pass  # the training checkpoint has been deleted, but its export still exists
        return CheckpointToScore(model=str(run.export_of(step)), step=step, pretraining=pretraining)


# Returns 12 hexadecimal digits, or None if the Hub does not provide a commit.
def _version_of(model: str) -> str | None:
    folder = Path(model)
    if not folder.is_dir():
        try:
            commit = extract_commit_hash(cached_file(model, "config.json"), None)
        except (OSError, ValueError):
            return None  # loading the model reports the error
        return None if commit is None else commit[:12]
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _MODEL_FILES):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK_SIZE):
                    digest.update(block)
    return digest.hexdigest()[:12]


def newest_model(name: str) -> str:
    """Return the newest export of a run, or the name unchanged if it is not a run.

    Args:
        name: Path of a run folder or Hugging Face folder, or name of a model on the Hub.

    Raises:
        ConfigError: If the run has not exported a checkpoint.
    """
    run, step = _find_run(Path(name))
    if run is None or step is not None:
        return name
    newest = newest_export(run)
    if newest is None:
        raise ConfigError(_no_exports_message(run))
    return str(newest)


def _no_exports_message(run: RunFolder) -> str:
    return f"Run {run.path} must have an exported checkpoint, got none. Run `mosaicbert export RECIPE` first."


# Returns the run of a run folder, or the run and the step of an export in its hf folder.
def _find_run(path: Path) -> tuple[RunFolder | None, int | None]:
    export = path.parent / path.resolve().name if path.is_symlink() else path  # hf/latest is a link to a step
    for folder, step in ((path, None), (path.parent, None), (path.parent.parent, export)):
        if (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file():
            if step is not None and not fnmatch(step.name, _EXPORTS):
                return None, None
            return RunFolder(folder), None if step is None else step_of(step)
    return None, None


def _describe_pretraining(recipe: Recipe, environment: dict[str, Any], result: RunResult) -> Pretraining:
    gpus: list[str] = environment["gpus"]
    mask_rate = (
        recipe.data.mask_rate
        if recipe.data.final_mask_rate is None
        else (recipe.data.mask_rate + recipe.data.final_mask_rate) / 2
    )
    # Training does not record the sum of squared lengths. Equal lengths give its minimum, so the FLOPs are a lower
    # bound.
    flops = training_flops(
        recipe.model,
        num_tokens=result.tokens,
        squared_lengths=result.tokens * result.tokens / result.samples,
        num_masked=mask_rate * result.tokens,
    )
    is_evaluated = result.eval_step == result.steps
    return Pretraining(
        steps=result.steps,
        tokens=result.tokens,
        seconds=result.training_seconds,
        wall_seconds=result.wall_seconds,
        flops=flops,
        device=gpus[0] if gpus else describe_cpu(environment),
        num_devices=_count_devices(recipe.train.num_processes, len(gpus)),
        cpu_seconds=result.cpu_seconds,
        eval_loss=result.eval_loss if is_evaluated else None,
        eval_bits_per_byte=result.eval_bits_per_byte if is_evaluated else None,
        seed=recipe.seed,
    )


def _count_devices(num_processes: int | str | None, num_gpus: int) -> int:
    if num_gpus == 0:
        return 1
    return num_processes if isinstance(num_processes, int) else num_gpus
