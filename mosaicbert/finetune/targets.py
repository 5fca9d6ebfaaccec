"""What a GLUE recipe scores: the checkpoints of a run, or one model; and what each had cost."""

from dataclasses import dataclass
from pathlib import Path

from mosaicbert.accounting import training_flops
from mosaicbert.checkpoint import CheckpointError, checkpoint_path, read_state, step_of
from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.glue import GlueRecipe
from mosaicbert.config.load import load_recipe
from mosaicbert.lock import is_locked
from mosaicbert.scores.ledger import FILE_NAME, Pretraining
from mosaicbert.train.run import RunFolder, newest_export


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model to score.

    Attributes:
        model: its Hugging Face folder, or its name on the Hub.
        step: of the run; None for a model that is no run of ours.
        pretraining: what it had cost; None likewise.
    """

    model: str
    step: int | None
    pretraining: Pretraining | None

    @property
    def label(self) -> str:
        """For people."""
        return self.model if self.step is None else f"step {self.step:,}"


class Target:
    """Where the models of a recipe are, and where their scores go.

    Args:
        recipe: of the scoring.
    """

    def __init__(self, recipe: GlueRecipe) -> None:
        self.config = recipe.glue
        self.run, self._step = _find_run(Path(recipe.glue.model))
        folder = recipe.run_folder if self.run is None else self.run.path
        self.scores = folder / FILE_NAME
        self.work = folder / "glue"  # models fine-tuned on MNLI, while other tasks need them

    def checkpoints(self) -> list[Checkpoint]:
        """What there is to score now, oldest first.

        Raises:
            ConfigError: nothing is.
        """
        if self.run is None:
            return [Checkpoint(model=self.config.model, step=None, pretraining=None)]
        steps = sorted(step_of(path) for path in self.run.hugging_face.glob("step-*[0-9]"))
        if self._step is not None:
            steps = [self._step]
        elif self.config.checkpoints == "newest":
            steps = steps[-1:]
        if not steps and not self.is_growing():
            raise ConfigError(
                f"{self.run.path}: no checkpoint has been exported; run `mosaicbert export RECIPE` first."
            )
        return [self._describe(self.run, step) for step in steps]

    def is_growing(self) -> bool:
        """Whether more checkpoints may come: all are wanted, and a process trains the run."""
        return self.run is not None and self.config.checkpoints == "all" and is_locked(self.run.path)

    def has_removed(self, checkpoint: Checkpoint) -> bool:
        """Whether a run keeps a checkpoint no longer."""
        return self.run is not None and not Path(checkpoint.model).is_dir()

    def _describe(self, run: RunFolder, step: int) -> Checkpoint:
        pretraining = None
        try:
            state = read_state(checkpoint_path(run.checkpoints, step))
            pretraining = _cost(load_recipe(run.recipe), state["position"], state["training_seconds"])
        except CheckpointError:
            pass  # it has been removed, while its export is still there
        return Checkpoint(model=str(run.export_of(step)), step=step, pretraining=pretraining)


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
    named = path.parent / path.resolve().name if path.is_symlink() else path  # hf/latest is a step, too
    for folder, step in ((path, None), (path.parent, None), (path.parent.parent, named)):
        if (folder / "environment.json").is_file() and (folder / "recipe.yaml").is_file():
            return RunFolder(folder), None if step is None else step_of(step)
    return None, None


def _cost(recipe: Recipe, position: dict[str, float], seconds: float) -> Pretraining:
    tokens, samples = position["tokens"], position["samples"]
    rate = (
        recipe.data.mask_rate
        if recipe.data.final_mask_rate is None
        else (recipe.data.mask_rate + recipe.data.final_mask_rate) / 2
    )
    # The squares of the lengths are not counted while training; those of equal lengths are the least they can be.
    flops = training_flops(recipe.model, tokens=tokens, squared_lengths=tokens * tokens / samples, masked=rate * tokens)
    return Pretraining(
        steps=int(position["steps"]),
        tokens=int(tokens),
        seconds=seconds,
        wall_seconds=position["seconds"],
        flops=flops,
    )
