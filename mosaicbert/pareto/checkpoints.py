"""Scored checkpoints, as scores.jsonl of a run folder records them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.scores.records import SCORES_FILE, Pretraining, Score, read_scores


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The fields that scores of a task must share to be averaged or compared: see `mosaicbert.scores.records.Score`."""

    protocol: str
    initialized_from: str
    is_partial: bool

    def __str__(self) -> str:
        return f"{self.protocol} from {self.initialized_from}{' on partial data' if self.is_partial else ''}"


@dataclass(frozen=True, kw_only=True)
class ScoredCheckpoint:
    """Scores of one checkpoint of a run, or of an external model.

    Attributes:
        folder: Folder of the scores, as the recipe names it.
        step: Step of the run; None for an external model.
        pretraining: Cost of the pretraining; None if it is not known.
        scores: Scores from 0 to 100, by task, variant and seed.
        num_outdated: Number of unused lines, which are of weights that the run has replaced.
    """

    folder: str
    step: int | None
    pretraining: Pretraining | None
    scores: dict[str, dict[Variant, dict[int, float]]]
    num_outdated_scores: int

    @property
    def name(self) -> str:
        """As `--compare` takes it."""
        return self.folder if self.step is None else f"{self.folder}@{self.step}"


def read_checkpoints(folder: str) -> list[ScoredCheckpoint]:
    """Read the scored checkpoints of a run folder, by step. A later line replaces an earlier one of the same score.

    Raises:
        ConfigError: If there are no scores, or a line is not a score of a GLUE task.
    """
    path = Path(folder) / SCORES_FILE
    by_step: dict[int | None, list[Score]] = {}
    for score in read_scores(path):
        _check_score(path, score)
        by_step.setdefault(score.step, []).append(score)
    if not by_step:
        raise ConfigError(f"{path}: no scores; name the folder of a run that has been scored with mosaicbert glue.")
    return [
        _merge_lines(folder, by_step[step]) for step in sorted(by_step, key=lambda step: -1 if step is None else step)
    ]


def find_checkpoint(name: str) -> ScoredCheckpoint:
    """Read one checkpoint.

    Args:
        name: Folder with scores, or folder@STEP; without a step the newest checkpoint.

    Raises:
        ConfigError: If the folder has no scores, or the step has none.
    """
    folder, at, step = name.rpartition("@")
    if not (at and step.isdecimal()) or Path(name).is_dir():
        return read_checkpoints(name)[-1]
    checkpoints = read_checkpoints(folder)
    found = [checkpoint for checkpoint in checkpoints if checkpoint.step == int(step)]
    if not found:
        scored = ", ".join("none" if checkpoint.step is None else str(checkpoint.step) for checkpoint in checkpoints)
        raise ConfigError(f"{name}: step {step} has not been scored; of {folder} there are {scored}.")
    return found[0]


def describe_outdated_scores(checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    """A sentence on each checkpoint or model whose weights are others than when it was first scored."""
    return [
        f"{one.name}: {one.num_outdated_scores} score(s) of its earlier weights are not used."
        for one in checkpoints
        if one.num_outdated_scores
    ]


def _check_score(path: Path, score: Score) -> None:
    if score.task not in TASKS:
        raise ConfigError(f"{path}: a score of task {score.task!r}; the tasks are {', '.join(TASKS)}.")
    names = TASKS[score.task].metrics
    if set(score.metrics) != set(names):
        raise ConfigError(
            f"{path}: a score of {score.task} by {', '.join(score.metrics)}; that task has {', '.join(names)}: "
            "take the line out."
        )
    if not math.isfinite(score.value):
        raise ConfigError(
            f"{path}: the score of {score.task} with seed {score.seed} is {score.value}, no number: take the line out."
        )


def _merge_lines(folder: str, lines: list[Score]) -> ScoredCheckpoint:
    first, num_lines = lines[0], len(lines)
    cost = next((line.pretraining for line in reversed(lines) if line.pretraining is not None), None)
    if cost is not None:
        lines = [line for line in lines if line.pretraining is None or line.pretraining.is_same_training(cost)]
    if first.step is None:
        models = sorted({line.model_name for line in lines})
        if len(models) > 1:
            named = ", ".join(models)
            raise ConfigError(f"{folder}: scores of several models ({named}); give each a folder of its own.")
        lines = [line for line in lines if line.model == lines[-1].model]
    scores: dict[str, dict[Variant, dict[int, float]]] = {}
    for line in lines:
        variant = Variant(protocol=line.protocol, initialized_from=line.initialized_from, is_partial=line.is_partial)
        scores.setdefault(line.task, {}).setdefault(variant, {})[line.seed] = line.value
    outdated = num_lines - len(lines)
    return ScoredCheckpoint(
        folder=folder, step=first.step, pretraining=cost, scores=scores, num_outdated_scores=outdated
    )
