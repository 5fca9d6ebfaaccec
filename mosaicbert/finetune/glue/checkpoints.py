"""What a GLUE recipe scores: the checkpoints of a run, or one model; and what each had cost."""

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.glue import GlueRecipe
from mosaicbert.config.load import load_recipe
from mosaicbert.estimate import training_flops
from mosaicbert.filesystem import is_locked
from mosaicbert.report.runs import describe_cpu
from mosaicbert.scores.records import SCORES_FILE, Pretraining
from mosaicbert.train.checkpoint.format import CheckpointError, checkpoint_path, read_state, step_of
from mosaicbert.train.run_folder import RunFolder, newest_export

_EXPORTS = "step-*[0-9]"  # of a run's checkpoints
_MODEL_FILES = (
    *("config.json", "*token*.json", "vocab.*", "merges.txt", "*.model"),
    *("*.safetensors", "pytorch_model*.bin"),
)
_BLOCK_SIZE = 2**24  # bytes


@dataclass(frozen=True, kw_only=True)
class CheckpointToScore:
    """A model to score.

    Attributes:
        model: its Hugging Face folder, or its name on the Hub.
        step: of the run; None for a model that is no run of ours.
        pretraining: what it had cost; None likewise.
        version: of a model that is no run of ours: the commit on the Hub, or a digest of the folder's files.
    """

    model: str
    step: int | None
    pretraining: Pretraining | None
    version: str | None = None

    @property
    def identity(self) -> str:
        """What the ledger calls it: other weights under the same name are another model."""
        return self.model if self.version is None else f"{self.model}@{self.version}"

    @property
    def label(self) -> str:
        """For people."""
        return self.model if self.step is None else f"step {self.step:,}"


class CheckpointSource:
    """Where the models of a recipe are, and where their scores go.

    Args:
        recipe: of the scoring.
    """

    def __init__(self, recipe: GlueRecipe) -> None:
        self.config = recipe.glue
        self.run, self._step = _find_run(Path(recipe.glue.model))
        folder = recipe.run_folder if self.run is None else self.run.path
        self.scores_path = folder / SCORES_FILE
        self.work_folder = folder / "glue"  # models fine-tuned on MNLI, while other tasks need them

    def checkpoints(self) -> list[CheckpointToScore]:
        """What there is to score now, oldest first.

        Raises:
            ConfigError: nothing is.
        """
        if self.run is None:
            return [self._external_checkpoint]
        steps = sorted(step_of(path) for path in self.run.hugging_face.glob(_EXPORTS))
        if self._step is not None:
            if self._step not in steps:
                raise ConfigError(
                    f"{self.config.model}: no such checkpoint; {self.run.hugging_face} has "
                    f"{', '.join(f'step-{step}' for step in steps) or 'none'}."
                )
            steps = [self._step]
        elif self.config.checkpoints == "newest":
            steps = steps[-1:]
        if not steps and not self.may_add_checkpoints():
            raise ConfigError(
                f"{self.run.path}: no checkpoint has been exported; run `mosaicbert export RECIPE` first."
            )
        return [self._describe(self.run, step) for step in steps]

    @cached_property
    def _external_checkpoint(self) -> CheckpointToScore:
        path = Path(self.config.model)
        model = str(path) if path.is_dir() else self.config.model  # a shell completes folders with a slash
        return CheckpointToScore(model=model, step=None, pretraining=None, version=_version_of(model))

    def may_add_checkpoints(self) -> bool:
        """Whether more checkpoints may come: all are wanted, and a process trains the run."""
        return self._scores_all and self.run is not None and is_locked(self.run.path)

    @property
    def _scores_all(self) -> bool:
        return self.config.checkpoints == "all" and self._step is None

    def has_removed(self, checkpoint: CheckpointToScore) -> bool:
        """Whether a run, of which all checkpoints are wanted, keeps one no longer."""
        return self._scores_all and self.run is not None and not Path(checkpoint.model).is_dir()

    def has_replaced(self, checkpoint: CheckpointToScore) -> bool:
        """Whether a run has gone back and trained the step of a checkpoint again."""
        if self.run is None or checkpoint.step is None or checkpoint.pretraining is None:
            return False
        current = self._describe(self.run, checkpoint.step).pretraining
        return current is not None and not current.is_same_training(checkpoint.pretraining)

    def _describe(self, run: RunFolder, step: int) -> CheckpointToScore:
        pretraining = None
        try:
            state = read_state(checkpoint_path(run.checkpoints, step))
            environment = json.loads(run.environment.read_text())
            pretraining = _pretraining_cost(
                load_recipe(run.recipe), environment, state["position"], state["training_seconds"]
            )
        except CheckpointError:
            pass  # it has been removed, while its export is still there
        return CheckpointToScore(model=str(run.export_of(step)), step=step, pretraining=pretraining)


def _version_of(model: str) -> str | None:
    """Twelve digits that tell a model from others of its name; None if the Hub does not say."""
    folder = Path(model)
    if not folder.is_dir():
        try:
            commit = extract_commit_hash(cached_file(model, "config.json"), None)
        except (OSError, ValueError):
            return None  # whoever loads it says what is wrong
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
    """The Hugging Face folder or Hub name that a recipe's model stands for: of a run, its newest export.

    Raises:
        ConfigError: the run has none.
    """
    run, step = _find_run(Path(name))
    if run is None or step is not None:
        return name
    newest = newest_export(run)
    if newest is None:
        raise ConfigError(f"{run.path}: no checkpoint has been exported; run `mosaicbert export RECIPE` first.")
    return str(newest)


def _find_run(path: Path) -> tuple[RunFolder | None, int | None]:
    """The run that a folder is, or is the export of; and the step, if it is that of one."""
    export = path.parent / path.resolve().name if path.is_symlink() else path  # hf/latest is a step, too
    for folder, step in ((path, None), (path.parent, None), (path.parent.parent, export)):
        if (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file():
            if step is not None and not fnmatch(step.name, _EXPORTS):
                return None, None
            return RunFolder(folder), None if step is None else step_of(step)
    return None, None


def _pretraining_cost(
    recipe: Recipe, environment: dict[str, Any], position: dict[str, float], seconds: float
) -> Pretraining:
    tokens, samples = position["tokens"], position["samples"]
    gpus: list[str] = environment["gpus"]
    mask_rate = (
        recipe.data.mask_rate
        if recipe.data.final_mask_rate is None
        else (recipe.data.mask_rate + recipe.data.final_mask_rate) / 2
    )
    # The squares of the lengths are not counted while training; those of equal lengths are the least they can be.
    flops = training_flops(
        recipe.model, num_tokens=tokens, squared_lengths=tokens * tokens / samples, num_masked=mask_rate * tokens
    )
    return Pretraining(
        steps=int(position["steps"]),
        tokens=int(tokens),
        seconds=seconds,
        wall_seconds=position["seconds"],
        flops=flops,
        device=gpus[0] if gpus else describe_cpu(environment),
        num_devices=(recipe.train.num_processes or len(gpus)) if gpus else 1,
    )
