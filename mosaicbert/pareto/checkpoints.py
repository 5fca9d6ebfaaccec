"""Scored checkpoints, read from the scores.jsonl and predictions.jsonl files of run folders."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.scores.predictions import PREDICTIONS_FILE, Predictions, read_predictions, record_key
from mosaicbert.scores.records import SCORES_FILE, Pretraining, Score, read_scores


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Conditions of a score. Only scores of one task with equal conditions are averaged or compared.

    Attributes:
        protocol: Fingerprint of the fine-tuning settings.
        initialized_from: Source of the initial weights, see `mosaicbert.scores.records.Score`.
        is_partial: True if the data had fewer examples than the official splits.
    """

    protocol: str
    initialized_from: str
    is_partial: bool

    def __str__(self) -> str:
        return f"{self.protocol} from {self.initialized_from}{' on partial data' if self.is_partial else ''}"


@dataclass(frozen=True, kw_only=True)
class BlimpScores:
    """BLiMP scores of a checkpoint with one protocol.

    Attributes:
        is_partial: True if a paradigm had fewer pairs than the official data.
        accuracies: Accuracy of each paradigm, as a fraction.
        predictions: Predictions of the paradigms, by phenomenon; phenomena without predictions are missing.
    """

    is_partial: bool
    accuracies: dict[str, float]
    predictions: dict[str, Predictions]


@dataclass(frozen=True, kw_only=True)
class ScoredCheckpoint:
    """Scores of one checkpoint of a run, or of an external model.

    Attributes:
        folder: Folder of scores.jsonl, as written in the recipe.
        step: Step of the run; None for an external model.
        pretraining: Cost of the pretraining; None if it is unknown.
        scores: GLUE scores from 0 to 100, by task, variant and seed.
        predictions: Predictions of the GLUE scores that have them, by task, variant and seed.
        blimp: BLiMP scores by protocol.
        num_outdated_scores: Number of unused score records, which belong to weights that the run has replaced.
    """

    folder: str
    step: int | None
    pretraining: Pretraining | None
    scores: dict[str, dict[Variant, dict[int, float]]]
    predictions: dict[str, dict[Variant, dict[int, Predictions]]]
    blimp: dict[str, BlimpScores]
    num_outdated_scores: int

    @property
    def name(self) -> str:
        """Name of the checkpoint, as an argument of `--compare`."""
        return self.folder if self.step is None else f"{self.folder}@{self.step}"


def read_checkpoints(folder: str, metrics: Mapping[str, Sequence[str]] | None = None) -> list[ScoredCheckpoint]:
    """Read the scored checkpoints of a folder, sorted by step. Of two records of the same score, the later one is used.

    Scores on training examples (`glue.tuning_examples`) are not read.

    Args:
        folder: Folder with scores.jsonl, for example a run folder.
        metrics: Metrics to average, by task; all metrics for other tasks.

    Raises:
        ConfigError: If the folder has no scores, or a record is not a score of GLUE or BLiMP.
    """
    path = Path(folder) / SCORES_FILE
    by_step: dict[int | None, list[Score]] = {}
    for score in read_scores(path):
        _check_score(path, score)
        if score.settings.get("tuning_examples") is None:
            by_step.setdefault(score.step, []).append(score)
    if not by_step:
        raise ConfigError(
            f"{path} must have scores, got none. Score the run with `mosaicbert glue` or `mosaicbert blimp`."
        )
    predictions = read_predictions(path.with_name(PREDICTIONS_FILE))
    return [
        _merge_scores(folder, by_step[step], predictions, metrics or {})
        for step in sorted(by_step, key=lambda step: -1 if step is None else step)
    ]


def find_checkpoint(name: str, metrics: Mapping[str, Sequence[str]] | None = None) -> ScoredCheckpoint:
    """Read one scored checkpoint.

    Args:
        name: Folder with a scores.jsonl, or FOLDER@STEP. Without a step, the newest checkpoint is selected.
        metrics: Metrics to average, see `read_checkpoints`.

    Raises:
        ConfigError: If the folder has no scores, or the step has not been scored.
    """
    folder, separator, step = name.rpartition("@")
    if not (separator and step.isdecimal()) or Path(name).is_dir():
        return read_checkpoints(name, metrics)[-1]
    checkpoints = read_checkpoints(folder, metrics)
    matches = [checkpoint for checkpoint in checkpoints if checkpoint.step == int(step)]
    if not matches:
        steps = ", ".join(str(checkpoint.step) for checkpoint in checkpoints if checkpoint.step is not None)
        raise ConfigError(
            f"The step of {name} must be a scored step of {folder} ({steps or 'none'}), got {step}. "
            "Score it with `mosaicbert glue` or `mosaicbert blimp`."
        )
    return matches[0]


def describe_outdated_scores(checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    """Describe the unused scores of replaced weights, in one sentence per checkpoint."""
    return [
        f"{checkpoint.name}: {checkpoint.num_outdated_scores} score(s) of earlier weights are not used."
        for checkpoint in checkpoints
        if checkpoint.num_outdated_scores
    ]


def _check_score(path: Path, score: Score) -> None:
    if score.is_blimp:
        return
    if score.task not in TASKS:
        raise ConfigError(
            f"{path}: `task` must be a phenomenon of BLiMP or one of {', '.join(TASKS)}, got {score.task!r}. Remove "
            "the lines of this task."
        )
    metrics = TASKS[score.task].metrics
    if set(score.metrics) != set(metrics):
        raise ConfigError(
            f"{path}: `metrics` of {score.task} must be {', '.join(metrics)}, got {', '.join(score.metrics)}. "
            "Remove the line."
        )
    if not math.isfinite(score.value):
        raise ConfigError(
            f"{path}: the score of {score.task} with seed {score.seed} must be a finite number, got {score.value}. "
            "Remove the line."
        )


def _merge_scores(
    folder: str, scores: list[Score], predictions: Sequence[Predictions], metrics: Mapping[str, Sequence[str]]
) -> ScoredCheckpoint:
    step, num_scores = scores[0].step, len(scores)
    pretraining = next((score.pretraining for score in reversed(scores) if score.pretraining is not None), None)
    if pretraining is not None:
        # A step that was trained again after a rollback has different weights and a different cost.
        scores = [
            score for score in scores if score.pretraining is None or score.pretraining.is_same_training(pretraining)
        ]
    if step is None:
        models = sorted({score.model_name for score in scores})
        if len(models) > 1:
            raise ConfigError(
                f"{folder} must have the scores of one model, got {', '.join(models)}. Use one folder per model."
            )
        scores = [score for score in scores if score.model == scores[-1].model]
    by_key = {record_key(record): record for record in predictions}
    by_task: dict[str, dict[Variant, dict[int, float]]] = {}
    predictions_by_task: dict[str, dict[Variant, dict[int, Predictions]]] = {}
    blimp: dict[str, BlimpScores] = {}
    for score in _latest_records(scores):
        record = by_key.get(record_key(score))
        if score.is_blimp:
            merged = blimp.setdefault(
                score.protocol, BlimpScores(is_partial=score.is_partial, accuracies={}, predictions={})
            )
            merged.accuracies.update(score.metrics)
            if record is not None:
                merged.predictions[score.task] = record
            continue
        variant = _variant_of(score)
        names = metrics.get(score.task, list(score.metrics))
        value = 100.0 * statistics.fmean(score.metrics[name] for name in names)
        by_task.setdefault(score.task, {}).setdefault(variant, {})[score.seed] = value
        if record is not None:
            predictions_by_task.setdefault(score.task, {}).setdefault(variant, {})[score.seed] = record
    return ScoredCheckpoint(
        folder=folder,
        step=step,
        pretraining=pretraining,
        scores=by_task,
        predictions=predictions_by_task,
        blimp=blimp,
        num_outdated_scores=num_scores - len(scores),
    )


def _latest_records(scores: Sequence[Score]) -> list[Score]:
    return list({(score.task, _variant_of(score), score.seed): score for score in scores}.values())


def _variant_of(score: Score) -> Variant:
    return Variant(protocol=score.protocol, initialized_from=score.initialized_from, is_partial=score.is_partial)
