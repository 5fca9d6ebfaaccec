"""Remarks below the tables and the figure: averaged tasks, intervals, baselines and devices."""

from collections.abc import Mapping, Sequence

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.config.pareto import ParetoConfig
from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.points import Point
from mosaicbert.pareto.selection import Selection

TABLE_REMARKS = (
    "Frontier (h: hours, $: dollars): no other point has a higher score at the same or lower cost, or the same score "
    "at lower cost.",
    "Task columns: mean ± standard deviation (number of seeds).",
    "Hours depend on the device. Tokens and FLOPs do not.",
)


def explain_figure(
    points: Sequence[Point], baselines: Sequence[Point], selection: Selection, config: ParetoConfig
) -> list[str]:
    """Explain the score, intervals, untrained baselines, prices, devices and published points of the figure.

    Args:
        points: Points of the figure.
        baselines: Untrained baselines.
        selection: Averaged tasks.
        config: Series of the figure.
    """
    mean = "mean of " if len(selection.variants) > 1 else ""
    remarks = [f"Score (0 to 100): {mean}{', '.join(TASKS[task].label for task in selection.variants)}."]
    remarks += explain_intervals([point.scores for point in (*points, *baselines)], selection)
    if baselines:
        remarks.append(
            "Untrained baseline: the same model after one training step from random weights, not part of the frontier."
        )
    has_prices = any(point.dollars is not None for point in points)
    unpriced = [name for name, series in config.series.items() if series.dollars_per_device_hour is None]
    if has_prices and unpriced:
        remarks.append(f"Series without a price: {', '.join(unpriced)}.")
    devices = list(dict.fromkeys(point.pretraining.device for point in points))
    if len(devices) > 1:
        remarks.append(
            f"Hours of different devices ({'; '.join(devices)}) are not comparable. Compare dollars or FLOPs."
        )
    if config.reference:
        price = (
            f" Their price is ${PUBLISHED_CURVES[0].dollars_per_device_hour:.2f} per device-hour." if has_prices else ""
        )
        remarks.append(
            f"Published points: averages over {len(TASKS)} tasks, digitized from the paper's figure, not part of the "
            f"frontier.{price}"
        )
        if not selection.is_paper_average:
            remarks.append("Published and other points are not comparable, because tasks or initial weights differ.")
    return remarks


def explain_intervals(scores: Sequence[Mapping[str, Mapping[int, float]]], selection: Selection) -> list[str]:
    """Explain which variance the confidence intervals contain.

    Args:
        scores: Scores of each checkpoint, by task and seed.
        selection: Averaged tasks.
    """
    if all(len(seeds) == 1 for tasks in scores for seeds in tasks.values()):
        return ["Intervals: none, because each task has a single seed.", *explain_initialization(selection)]
    remarks = [
        "Intervals: 95% bootstrap confidence intervals over the fine-tuning seeds of each task. They do not contain "
        "the variance of pretraining seeds. With three to five seeds their coverage is several percent too low, see "
        "docs/glue.md."
    ]
    single = [TASKS[task].title for task in selection.variants if any(len(tasks[task]) == 1 for tasks in scores)]
    if single:
        remarks.append(f"Tasks with a single seed, which the intervals treat as constants: {', '.join(single)}.")
    return remarks + explain_initialization(selection)


def explain_initialization(selection: Selection) -> list[str]:
    """Describe the tasks that share one initialization from MNLI, in at most one sentence."""
    titles = [TASKS[task].title for task, variant in selection.variants.items() if variant.initialized_from == MNLI]
    if not titles:
        return []
    return [
        "Tasks initialized from one model fine-tuned on MNLI, whose variance is not in the intervals and p-values: "
        f"{', '.join(titles)}."
    ]
