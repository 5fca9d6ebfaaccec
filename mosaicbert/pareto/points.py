"""Points of the Pareto figure: average score and cost of a checkpoint, and the frontier of several points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import SeriesConfig
from mosaicbert.pareto.checkpoints import ScoredCheckpoint
from mosaicbert.pareto.selection import Selection
from mosaicbert.scores.records import SCORES_FILE, Pretraining
from mosaicbert.scores.statistics import bootstrap_interval, mean_over_tasks, sample_deviation


@dataclass(frozen=True, kw_only=True)
class Point:
    """Average score and cost of a checkpoint.

    Attributes:
        series: Name of the series.
        name: Name of the checkpoint, as an argument of `--compare`.
        folder: Run folder.
        step: Step of the run.
        pretraining: Cost of the pretraining.
        hours: Wall-clock hours of training, including evaluations and checkpoints.
        num_devices: Number of devices of the training.
        dollars: Cost in US dollars: hours x devices x price; None without a price.
        scores: Scores from 0 to 100, by task and seed.
        average: Mean over tasks of the mean over seeds.
        interval: 95% confidence interval of the average over fine-tuning seeds; None if no task has two seeds.
    """

    series: str
    name: str
    folder: str
    step: int
    pretraining: Pretraining
    hours: float
    num_devices: int
    dollars: float | None
    scores: dict[str, dict[int, float]]
    average: float
    interval: tuple[float, float] | None


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


def make_point(series: str, config: SeriesConfig, checkpoint: ScoredCheckpoint, selection: Selection) -> Point:
    """Create the point of a checkpoint.

    Args:
        series: Name of the series.
        config: Configuration of the series, for its number of devices and price.
        checkpoint: Checkpoint of a run, with known cost.
        selection: Tasks to average.
    """
    pretraining = checkpoint.pretraining
    assert pretraining is not None and checkpoint.step is not None
    hours = pretraining.wall_seconds / 3600
    num_devices = config.devices or pretraining.num_devices
    price = config.dollars_per_device_hour
    scores = {task: checkpoint.scores[task][variant] for task, variant in selection.variants.items()}
    values = [list(seeds.values()) for seeds in scores.values()]
    return Point(
        series=series,
        name=checkpoint.name,
        folder=checkpoint.folder,
        step=checkpoint.step,
        pretraining=pretraining,
        hours=hours,
        num_devices=num_devices,
        dollars=None if price is None else hours * num_devices * price,
        scores=scores,
        average=mean_over_tasks(values),
        interval=bootstrap_interval(values),
    )


def describe_unequal_seeds(points: Sequence[Point]) -> list[str]:
    """Describe the tasks whose seeds differ between points, in at most one sentence."""
    titles = [
        TASKS[task].title for task in points[0].scores if len({frozenset(point.scores[task]) for point in points}) > 1
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
    """Find the points on the frontiers of hours and of dollars.

    Returns:
        For "h" (hours) and "$" (dollars): True for each point on the frontier, None for a point without a price.
    """
    averages = [point.average for point in points]
    by_hours: list[bool | None] = [*find_frontier([point.hours for point in points], averages)]
    priced = [index for index, point in enumerate(points) if point.dollars is not None]
    dollars = [point.dollars for point in points if point.dollars is not None]
    by_dollars = dict(zip(priced, find_frontier(dollars, [averages[index] for index in priced]), strict=True))
    return {"h": by_hours, "$": [by_dollars.get(index) for index in range(len(points))]}


def point_record(point: Point, selection: Selection, on_frontier: Mapping[str, bool | None]) -> dict[str, Any]:
    """Create the record of a point in pareto.jsonl.

    Args:
        point: Point of the figure.
        selection: Averaged tasks.
        on_frontier: Membership of the frontiers, by "h" and "$".
    """
    return {
        "series": point.series,
        "run": point.folder,
        "step": point.step,
        "device": point.pretraining.device,
        "devices": point.num_devices,
        "hours": point.hours,
        "dollars": point.dollars,
        "steps": point.pretraining.steps,
        "tokens": point.pretraining.tokens,
        "flops": point.pretraining.flops,
        "average": point.average,
        "ci_low": point.interval[0] if point.interval else None,
        "ci_high": point.interval[1] if point.interval else None,
        "num_tasks": len(selection.variants),
        "tasks": {
            task: _task_record(task, list(point.scores[task].values())) | asdict(variant)
            for task, variant in selection.variants.items()
        },
        "on_frontier_hours": on_frontier["h"],
        "on_frontier_dollars": on_frontier["$"],
    }


def _task_record(task: str, seeds: list[float]) -> dict[str, Any]:
    interval = bootstrap_interval([seeds])
    return {
        "metrics": list(TASKS[task].metrics),
        "mean": mean_over_tasks([seeds]),
        "std": sample_deviation(seeds),
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "num_seeds": len(seeds),
    }
