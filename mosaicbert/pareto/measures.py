"""Measures of a point: validation loss, BLiMP and GLUE, averaged over pretraining seeds, with their variance."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mosaicbert.pareto.checkpoints import BlimpScores, ScoredCheckpoint
from mosaicbert.pareto.selection import Selection
from mosaicbert.scores.predictions import Predictions
from mosaicbert.scores.resampling import bootstrap_examples
from mosaicbert.scores.statistics import (
    VarianceTerm,
    example_term,
    mean_over_tasks,
    seed_terms,
    t_interval,
)

_SQUARED_PERCENT = 100.0**2


@dataclass(frozen=True, kw_only=True)
class PointEstimate:
    """Mean of a measure over the pretraining seeds of a point.

    Attributes:
        value: Mean: nats for the validation loss, percent for BLiMP and GLUE.
        values: Value of each pretraining seed.
        seed_terms: Variance due to the seeds: those of the pretraining if there are several, otherwise those of the
            fine-tuning.
        example_terms: Variance due to the choice of the examples.
    """

    value: float
    values: tuple[float, ...]
    seed_terms: tuple[VarianceTerm, ...]
    example_terms: tuple[VarianceTerm, ...]

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the value, or None if no variance is known."""
        return t_interval(self.value, [*self.seed_terms, *self.example_terms])


def estimate_loss(checkpoints: Sequence[ScoredCheckpoint]) -> PointEstimate | None:
    """Average the validation losses, or return None if a checkpoint was not evaluated."""
    losses = [None if item.pretraining is None else item.pretraining.eval_loss for item in checkpoints]
    values = [loss for loss in losses if loss is not None]
    if len(values) < len(losses):
        return None
    return PointEstimate(
        value=statistics.fmean(values),
        values=tuple(values),
        seed_terms=tuple(seed_terms([values])),
        example_terms=(),
    )


def estimate_blimp(checkpoints: Sequence[ScoredCheckpoint], selection: Selection) -> PointEstimate | None:
    """Average the BLiMP scores, or return None if a checkpoint has no complete scores of the selected protocol."""
    complete = blimp_scores(checkpoints, selection)
    if not complete:
        return None
    values = [100.0 * statistics.fmean(item.accuracies.values()) for item in complete]
    term = blimp_example_term(complete)
    return PointEstimate(
        value=statistics.fmean(values),
        values=tuple(values),
        seed_terms=tuple(seed_terms([values])),
        example_terms=() if term is None else (term,),
    )


def blimp_scores(checkpoints: Sequence[ScoredCheckpoint], selection: Selection) -> list[BlimpScores]:
    """Return the BLiMP scores of all checkpoints, or none if a checkpoint has no complete scores."""
    scores = [item.blimp.get(selection.blimp or "") for item in checkpoints]
    complete = [item for item in scores if item is not None and frozenset(item.accuracies) == selection.blimp_paradigms]
    return complete if len(complete) == len(checkpoints) else []


def blimp_example_term(first: Sequence[BlimpScores], second: Sequence[BlimpScores] = ()) -> VarianceTerm | None:
    """PointEstimate the variance of a BLiMP score, or of the difference of two, due to the choice of the pairs.

    The models are evaluated on the same pairs, so that the difference is paired.

    Args:
        first: Scores of the pretraining seeds of a model.
        second: Scores of a model that is subtracted; empty for the score of one model.

    Returns:
        Variance in squared percent, or None if predictions are missing.
    """
    all_correct = [_correct_by_paradigm(scores) for scores in (*first, *second)]
    if any(set(correct) != set(first[0].accuracies) for correct in all_correct):
        return None
    weights = [1.0 / len(first)] * len(first) + [-1.0 / len(second) for _ in second]
    term = example_term(
        [
            np.sum([weight * correct[name] for weight, correct in zip(weights, all_correct, strict=True)], axis=0)
            for name in all_correct[0]
        ]
    )
    return VarianceTerm(_SQUARED_PERCENT * term.variance, term.degrees_of_freedom)


def _correct_by_paradigm(scores: BlimpScores) -> dict[str, NDArray[np.float64]]:
    return {
        name: split.prediction_array()
        for record in scores.predictions.values()
        for name, split in record.splits.items()
    }


def estimate_glue(checkpoints: Sequence[ScoredCheckpoint], selection: Selection) -> PointEstimate | None:
    """Average the GLUE scores over pretraining seeds, tasks and fine-tuning seeds.

    Args:
        checkpoints: Checkpoints that differ in the pretraining seed.
        selection: Tasks and metrics to average.

    Returns:
        PointEstimate, or None if the checkpoints have no GLUE scores.
    """
    if not selection.variants or not all(item.scores for item in checkpoints):
        return None
    tasks = [[list(task_scores(item, selection, task).values()) for task in selection.variants] for item in checkpoints]
    values = [mean_over_tasks(scores) for scores in tasks]
    terms: list[VarianceTerm] = []
    for task in selection.variants:
        predictions = task_predictions(checkpoints, selection, task)
        if predictions is not None:
            term = bootstrap_examples(selection.metrics_of(task), predictions)
            terms.append(VarianceTerm(term.variance / len(selection.variants) ** 2, term.degrees_of_freedom))
    return PointEstimate(
        value=statistics.fmean(values),
        values=tuple(values),
        seed_terms=tuple(seed_terms([values]) if len(values) > 1 else seed_terms(tasks[0])),
        example_terms=tuple(terms) if len(terms) == len(selection.variants) else (),
    )


def task_scores(checkpoint: ScoredCheckpoint, selection: Selection, task: str) -> dict[int, float]:
    """Return the scores of a task by fine-tuning seed."""
    return checkpoint.scores[task][selection.variants[task]]


def task_predictions(
    checkpoints: Sequence[ScoredCheckpoint], selection: Selection, task: str
) -> list[Predictions] | None:
    """Return the predictions of all seeds of a task, or None if some are missing."""
    predictions: list[Predictions] = []
    for checkpoint in checkpoints:
        by_seed = checkpoint.predictions.get(task, {}).get(selection.variants[task], {})
        if set(by_seed) != set(task_scores(checkpoint, selection, task)):
            return None
        predictions += by_seed.values()
    return predictions
