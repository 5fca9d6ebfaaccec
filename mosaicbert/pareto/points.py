"""Points of the Pareto figure: cost and measures of checkpoints that differ in the seed, and the frontier."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.checkpoints import ScoredCheckpoint
from mosaicbert.pareto.measures import (
    PointEstimate,
    estimate_blimp,
    estimate_glue,
    estimate_loss,
    task_scores,
)
from mosaicbert.pareto.selection import Selection
from mosaicbert.scores.records import SCORES_FILE, Pretraining
from mosaicbert.scores.statistics import mean_over_tasks, sample_deviation


@dataclass(frozen=True, kw_only=True)
class Point:
    """Cost and measures of a checkpoint, or of several checkpoints that differ in the pretraining seed.

    Attributes:
        series: Name of the series.
        checkpoints: Checkpoints that are averaged.
        hours: Mean wall-clock hours of training, including evaluations and checkpoints.
        tokens: Mean number of tokens.
        num_devices: Number of devices of the training.
        dollars: Cost in US dollars: hours x devices x price; None without a price.
        scores: GLUE scores from 0 to 100 by task and fine-tuning seed, of each checkpoint.
        loss: Validation loss in nats; None if it was not measured.
        blimp: BLiMP score; None without complete scores.
        glue: Mean GLUE score; None without scores.
    """

    series: str
    checkpoints: tuple[ScoredCheckpoint, ...]
    hours: float
    tokens: float
    num_devices: int
    dollars: float | None
    scores: tuple[dict[str, dict[int, float]], ...]
    loss: PointEstimate | None
    blimp: PointEstimate | None
    glue: PointEstimate | None

    @property
    def name(self) -> str:
        """Name of the first checkpoint, as an argument of `--compare`, and the number of further seeds."""
        name = self.checkpoints[0].name
        return name if len(self.checkpoints) == 1 else f"{name} and {len(self.checkpoints) - 1} more"

    @property
    def folder(self) -> str:
        """Run folder of the first checkpoint."""
        return self.checkpoints[0].folder

    @property
    def step(self) -> int:
        """Step of the first checkpoint."""
        step = self.checkpoints[0].step
        assert step is not None
        return step

    @property
    def pretraining(self) -> Pretraining:
        """Cost of the first checkpoint."""
        return _cost_of(self.checkpoints[0])

    def values_of(self, task: str) -> list[float]:
        """Return the scores of a task, of all pretraining and fine-tuning seeds."""
        return [value for scores in self.scores for value in scores[task].values()]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Horizontal line of the figure.

    Attributes:
        series: Series of an untrained baseline; None for a line of its own label.
        label: Label at the line; empty for an untrained baseline, which the legend explains.
        loss: Validation loss in nats; None for no line.
        blimp: BLiMP score; None for no line.
        glue: Mean GLUE score; None for no line.
    """

    series: str | None
    label: str = ""
    loss: float | None = None
    blimp: float | None = None
    glue: float | None = None


def exclude_unknown_costs(
    series: str, checkpoints: Sequence[ScoredCheckpoint]
) -> tuple[list[ScoredCheckpoint], list[str]]:
    """Select the checkpoints of known cost.

    Args:
        series: Name of the series, for messages.
        checkpoints: Checkpoints of the series.

    Returns:
        Checkpoints of known cost, and one sentence on each skipped checkpoint.

    Raises:
        ConfigError: If the scores are those of an external model, or a training time is not positive and finite.
    """
    usable: list[ScoredCheckpoint] = []
    notices: list[str] = []
    for checkpoint in checkpoints:
        if checkpoint.step is None:
            raise ConfigError(
                f"`pareto.series.{series}` must have run folders only, got {checkpoint.name} with scores of an "
                "external model. Remove the folder, because its training time is unknown."
            )
        if checkpoint.pretraining is None:
            notices.append(f"Skipped: {checkpoint.name} (deleted before it was scored, so its cost is unknown).")
            continue
        if not 0 < checkpoint.pretraining.wall_seconds < math.inf:
            raise ConfigError(
                f"`pareto.series.{series}`: `wall_seconds` of {checkpoint.name} must be positive and finite for a "
                f"logarithmic axis, got {checkpoint.pretraining.wall_seconds}. Remove its lines from {SCORES_FILE}."
            )
        usable.append(checkpoint)
    return usable, notices


def make_point(
    series: str,
    series_config: SeriesConfig,
    checkpoints: Sequence[ScoredCheckpoint],
    selection: Selection,
) -> Point:
    """Create the point of checkpoints that differ in the pretraining seed.

    Args:
        series: Name of the series.
        series_config: Configuration of the series, for its number of devices and price.
        checkpoints: Checkpoints of runs, with known cost.
        selection: Scores to average.
    """
    costs = [_cost_of(checkpoint) for checkpoint in checkpoints]
    hours = statistics.fmean(cost.wall_seconds for cost in costs) / 3600
    num_devices = series_config.devices or costs[0].num_devices
    price = series_config.dollars_per_device_hour
    glue = estimate_glue(checkpoints, selection)
    scores = tuple(
        {task: task_scores(checkpoint, selection, task) for task in selection.variants}
        for checkpoint in (checkpoints if glue is not None else ())
    )
    return Point(
        series=series,
        checkpoints=tuple(checkpoints),
        hours=hours,
        tokens=statistics.fmean(cost.tokens for cost in costs),
        num_devices=num_devices,
        dollars=None if price is None else hours * num_devices * price,
        scores=scores,
        loss=estimate_loss(checkpoints),
        blimp=estimate_blimp(checkpoints, selection),
        glue=glue,
    )


def _cost_of(checkpoint: ScoredCheckpoint) -> Pretraining:
    assert checkpoint.pretraining is not None
    return checkpoint.pretraining


def describe_unequal_seeds(points: Sequence[Point]) -> list[str]:
    """Describe the tasks whose fine-tuning seeds differ between checkpoints, in at most one sentence."""
    all_scores = [scores for point in points for scores in point.scores]
    titles = [
        TASKS[task].title
        for task in (all_scores[0] if all_scores else ())
        if len({frozenset(scores[task]) for scores in all_scores}) > 1
    ]
    return [f"Points have different seeds of {', '.join(titles)}. Score the missing seeds."] if titles else []


def find_frontier(costs: Sequence[float], averages: Sequence[float]) -> list[bool]:
    """Find the points on the frontier.

    A point is on the frontier if no other point has a higher score at the same or lower cost, or the same score at
    lower cost. Equal points are on the frontier together.

    Args:
        costs: Cost of each point.
        averages: Average score of each point.

    Returns:
        True for each point on the frontier.
    """
    points = list(zip(costs, averages, strict=True))
    return [
        not any(
            other_cost <= cost and other_average >= average and (other_cost, other_average) != (cost, average)
            for other_cost, other_average in points
        )
        for cost, average in points
    ]


def find_frontiers(points: Sequence[Point]) -> dict[str, list[bool | None]]:
    """Find the points on the frontiers of the GLUE score against hours and against dollars.

    Returns:
        For "h" (hours) and "$" (dollars): True for each point on the frontier, None for a point without a GLUE score or
        a price.
    """
    return {
        "h": _frontier_of([point.hours for point in points], [point.glue for point in points]),
        "$": _frontier_of([point.dollars for point in points], [point.glue for point in points]),
    }


def _frontier_of(costs: Sequence[float | None], estimates: Sequence[PointEstimate | None]) -> list[bool | None]:
    pairs = {
        index: (cost, estimate.value)
        for index, (cost, estimate) in enumerate(zip(costs, estimates, strict=True))
        if cost is not None and estimate is not None
    }
    on_frontier = find_frontier([cost for cost, _ in pairs.values()], [value for _, value in pairs.values()])
    members = dict(zip(pairs, on_frontier, strict=True))
    return [members.get(index) for index in range(len(costs))]


def point_record(point: Point, selection: Selection, on_frontier: Mapping[str, bool | None]) -> dict[str, Any]:
    """Create the record of a point in pareto.jsonl.

    Args:
        point: Point of the figure.
        selection: Averaged scores.
        on_frontier: Membership of the frontiers, by "h" and "$".
    """
    costs = [_cost_of(checkpoint) for checkpoint in point.checkpoints]
    return {
        "series": point.series,
        "runs": [checkpoint.folder for checkpoint in point.checkpoints],
        "device": point.pretraining.device,
        "devices": point.num_devices,
        "hours": point.hours,
        "dollars": point.dollars,
        "pretraining": [asdict(cost) for cost in costs],
        "loss": _estimate_record(point.loss),
        "blimp": _estimate_record(point.blimp),
        "glue": _estimate_record(point.glue),
        "tasks": {
            task: _task_record(selection.metrics_of(task), point.values_of(task)) | asdict(variant)
            for task, variant in (selection.variants if point.scores else {}).items()
        },
        "on_frontier_hours": on_frontier["h"],
        "on_frontier_dollars": on_frontier["$"],
    }


def _estimate_record(estimate: PointEstimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    low, high = estimate.interval or (None, None)
    return {
        "value": estimate.value,
        "by_pretraining_seed": list(estimate.values),
        "ci_low": low,
        "ci_high": high,
        "seed_variance": sum(term.variance for term in estimate.seed_terms) if estimate.seed_terms else None,
        "example_variance": sum(term.variance for term in estimate.example_terms) if estimate.example_terms else None,
    }


def _task_record(metrics: Sequence[str], seeds: list[float]) -> dict[str, Any]:
    return {
        "metrics": list(metrics),
        "mean": mean_over_tasks([seeds]),
        "std": sample_deviation(seeds),
        "num_scores": len(seeds),
    }
