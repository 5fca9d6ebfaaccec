"""Sentences that explain the tables and the figure: what is averaged, and what the intervals contain."""

from collections.abc import Mapping, Sequence

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.config.pareto import ParetoConfig
from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.points import Point
from mosaicbert.pareto.selection import Selection

TABLE_REMARKS = (
    "Frontier, h of hours and $ of dollars: no other point is better without costing more, or cheaper without scoring "
    "less.",
    "Tasks: mean ± standard deviation (number of seeds).",
    "Hours hold on the devices that were used, tokens and FLOPs on any.",
)


def explain_figure(
    points: Sequence[Point], baselines: Sequence[Point], selection: Selection, config: ParetoConfig
) -> list[str]:
    """Explain the figure: its score, intervals, untrained baselines, prices, devices and published points.

    Args:
        points: Points of the figure.
        baselines: Untrained baselines.
        selection: Averaged tasks.
        config: Series of the figure.
    """
    count = len(selection.variants)
    found = [f"Score: {'mean of ' if count > 1 else ''}{', '.join(TASKS[task].label for task in selection.variants)}."]
    found += explain_intervals([point.scores for point in (*points, *baselines)], selection)
    if baselines:
        found.append("Untrained: the same model from random weights, after one step; it has no part in the frontier.")
    has_prices = any(point.dollars is not None for point in points)
    unpriced = [name for name, series in config.series.items() if series.dollars_per_device_hour is None]
    if has_prices and unpriced:
        found.append(f"Without a price: {', '.join(unpriced)}.")
    devices = list(dict.fromkeys(point.pretraining.device for point in points))
    if len(devices) > 1:
        named = "; ".join(devices)
        found.append(f"Hours are of different devices ({named}) and do not compare; see dollars and FLOPs.")
    if config.reference:
        price = f", at ${PUBLISHED_CURVES[0].dollars_per_device_hour:.2f} per device-hour" if has_prices else ""
        differ = "" if selection.is_paper_average else ", some begun with MNLI: their heights do not compare with ours"
        found.append(
            f"The paper's points are read off its figure{price}; they have no part in the frontier. They average "
            f"{len(TASKS)} tasks{differ}."
        )
    return found


def explain_intervals(scores: Sequence[Mapping[str, Mapping[int, float]]], selection: Selection) -> list[str]:
    """Sentences on what the intervals hold, and what they do not.

    Args:
        scores: of each checkpoint, by task and seed.
        selection: what is averaged.
    """
    if all(len(seeds) == 1 for one in scores for seeds in one.values()):
        return ["No task has several seeds, so there are no intervals.", *explain_initialization(selection)]
    found = [
        "Intervals: 95%, by a bootstrap over the fine-tuning seeds of each task. They hold nothing of other "
        "pretraining seeds, and with three to five seeds too little by some percent: see docs/glue.md."
    ]
    single = [TASKS[task].title for task in selection.variants if any(len(one[task]) == 1 for one in scores)]
    if single:
        found.append(f"With a single seed, and so without a part in the intervals: {', '.join(single)}.")
    return found + explain_initialization(selection)


def explain_initialization(selection: Selection) -> list[str]:
    """A sentence on the tasks whose seeds all begin with one model."""
    chained = [TASKS[task].title for task, variant in selection.variants.items() if variant.initialized_from == MNLI]
    if not chained:
        return []
    return [f"Begun with one model fine-tuned on MNLI, whose chance is in no interval and no p: {', '.join(chained)}."]
