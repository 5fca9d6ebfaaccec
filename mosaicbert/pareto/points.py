"""Points of the figure: a checkpoint's average score and its cost, and the frontier of several."""

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
    """A checkpoint in the figure.

    Attributes:
        series: its name.
        name: run folder and step, as `--compare` takes them.
        folder: of the run.
        step: of the run.
        pretraining: what it had cost.
        hours: wall-clock, with evaluations and checkpoints.
        devices: that trained it.
        dollars: hours x devices x price; None without a price.
        scores: by task and seed, 0 to 100.
        average: mean over tasks of the mean over seeds.
        interval: of the average over fine-tuning seeds, 95%; None if no task has two.
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
    """The checkpoints that can stand against time, and a sentence on each of the others.

    Raises:
        ConfigError: the scores are of no run of ours, or a cost cannot be.
    """
    known: list[ScoredCheckpoint] = []
    notices: list[str] = []
    for checkpoint in checkpoints:
        if checkpoint.step is None:
            raise ConfigError(
                f"pareto.series.{series}: {checkpoint.name} holds scores of a model that is no run of ours, and its "
                "training time is not known; name run folders only."
            )
        if checkpoint.pretraining is None:
            notices.append(f"Left out: {checkpoint.name} (removed before it was scored, so its cost is not known).")
            continue
        if not 0 < checkpoint.pretraining.wall_seconds < math.inf:
            raise ConfigError(
                f"pareto.series.{series}: {checkpoint.name} took {checkpoint.pretraining.wall_seconds} s, which has no "
                f"place on a logarithmic axis; take its lines out of {SCORES_FILE}."
            )
        known.append(checkpoint)
    return known, notices


def make_point(series: str, config: SeriesConfig, checkpoint: ScoredCheckpoint, selection: Selection) -> Point:
    """Puts a checkpoint's average beside what it had cost, which must be known."""
    spent = checkpoint.pretraining
    assert spent is not None and checkpoint.step is not None
    hours = spent.wall_seconds / 3600
    num_devices = config.devices or spent.num_devices
    price = config.dollars_per_device_hour
    scores = {task: checkpoint.scores[task][variant] for task, variant in selection.variants.items()}
    values = [list(seeds.values()) for seeds in scores.values()]
    return Point(
        series=series,
        name=checkpoint.name,
        folder=checkpoint.folder,
        step=checkpoint.step,
        pretraining=spent,
        hours=hours,
        num_devices=num_devices,
        dollars=None if price is None else hours * num_devices * price,
        scores=scores,
        average=mean_over_tasks(values),
        interval=bootstrap_interval(values),
    )


def describe_unequal_seeds(points: Sequence[Point]) -> list[str]:
    """A sentence on the tasks that points have other seeds of, whose averages are then not quite alike."""
    uneven = [
        TASKS[task].title for task in points[0].scores if len({frozenset(point.scores[task]) for point in points}) > 1
    ]
    return [f"Not all points have the same seeds of {', '.join(uneven)}; score what is missing."] if uneven else []


def find_frontier(costs: Sequence[float], averages: Sequence[float]) -> list[bool]:
    """Whether each point is on the frontier: none is better without costing more, or cheaper without scoring less."""
    points = list(zip(costs, averages, strict=True))
    return [
        not any(c <= cost and a >= average and (c, a) != (cost, average) for c, a in points) for cost, average in points
    ]


def find_frontiers(points: Sequence[Point]) -> dict[str, list[bool | None]]:
    """Mark the points on the frontier against hours ("h") and dollars ("$"); None for a point without a price."""
    averages = [point.average for point in points]
    by_hours: list[bool | None] = [*find_frontier([point.hours for point in points], averages)]
    priced = [index for index, point in enumerate(points) if point.dollars is not None]
    dollars = [point.dollars for point in points if point.dollars is not None]
    marks = dict(zip(priced, find_frontier(dollars, [averages[index] for index in priced]), strict=True))
    return {"h": by_hours, "$": [marks.get(index) for index in range(len(points))]}


def point_record(point: Point, selection: Selection, marks: Mapping[str, bool | None]) -> dict[str, Any]:
    """Build the line of pareto.jsonl of a point, which is on the frontiers that `marks` says."""
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
        "on_frontier_hours": marks["h"],
        "on_frontier_dollars": marks["$"],
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
