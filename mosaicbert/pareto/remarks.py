"""Remarks below the tables and the figure: measures, intervals, baselines and devices."""

from collections.abc import Sequence

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.config.pareto import ParetoConfig
from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.points import Baseline, Point
from mosaicbert.pareto.selection import Selection

_GLUE_REMARKS = (
    "Frontier (h: hours, $: dollars): no other point has a higher GLUE score at the same or lower cost, or the same "
    "score at lower cost.",
    "Task columns: mean ± standard deviation (number of seeds).",
)
_COST_REMARK = "Hours depend on the device. Tokens and FLOPs do not."


def explain_figure(
    points: Sequence[Point], untrained: Sequence[Point], selection: Selection, config: ParetoConfig
) -> list[str]:
    """Explain the measures, intervals, untrained baselines, prices, devices and published points of the figure.

    Args:
        points: Points of the figure.
        untrained: Untrained baselines.
        selection: Averaged scores.
        config: Series of the figure.
    """
    remarks: list[str] = []
    if selection.blimp is not None:
        partial = " (partial data)" if selection.is_blimp_partial else ""
        remarks.append(f"BLiMP{partial}: accuracy on minimal pairs without fine-tuning; chance is 50.")
    if selection.variants:
        mean = "mean of " if len(selection.variants) > 1 else ""
        names = ", ".join(map(selection.label_of, selection.variants))
        remarks.append(f"GLUE (0 to 100): {mean}{names}.")
    all_points = (*points, *untrained)
    remarks += explain_intervals(all_points) + explain_single_seeds(all_points) + explain_initialization(selection)
    if untrained:
        remarks.append("Random weights: the same model after one training step, not part of the frontier.")
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
            remarks.append(
                "Published and other points are not comparable, because tasks, metrics or initial weights differ."
            )
    return remarks


def explain_tables(selection: Selection) -> list[str]:
    """Explain the columns of the tables."""
    return [*(_GLUE_REMARKS if selection.variants else ()), _COST_REMARK]


def explain_intervals(points: Sequence[Point]) -> list[str]:
    """Explain which variance the confidence intervals contain."""
    estimates = [
        (point, estimate)
        for point in points
        for estimate in (point.loss, point.blimp, point.glue)
        if estimate is not None and estimate.interval is not None
    ]
    if not estimates:
        return ["Intervals: none, because each task has a single seed and no predictions."]
    parts: list[str] = []
    if any(point.glue is not None and point.glue.seed_terms for point in points):
        parts.append("fine-tuning seeds")
    if any(estimate.example_terms for _, estimate in estimates):
        parts.append("validation examples")
    repeated = sorted({len(point.checkpoints) for point, _ in estimates if len(point.checkpoints) > 1})
    if repeated:
        parts.append(f"pretraining seeds where a point averages {' or '.join(map(str, repeated))} runs")
    remark = f"Intervals: 95% t-intervals; variance of {', and of '.join(parts)}."
    return [remark] if repeated else [f"{remark} They do not contain the variance of pretraining seeds."]


def explain_single_seeds(points: Sequence[Point]) -> list[str]:
    """Describe the tasks whose variance over fine-tuning seeds is unknown, in at most one sentence."""
    scores = [scores for point in points if len(point.checkpoints) == 1 for scores in point.scores]
    titles = [
        TASKS[task].title for task in (scores[0] if scores else ()) if any(len(item[task]) == 1 for item in scores)
    ]
    if not titles:
        return []
    return [f"Tasks with a single seed, whose variance over seeds is not in the intervals: {', '.join(titles)}."]


def describe_baselines(baselines: Sequence[Baseline], selection: Selection) -> list[str]:
    """Describe the values of the horizontal lines, one sentence per line with a label."""
    return [
        f"{baseline.label}: {baseline.glue:.2f} ({selection.average_name})."
        for baseline in baselines
        if baseline.series is None and baseline.glue is not None
    ]


def explain_initialization(selection: Selection) -> list[str]:
    """Describe the tasks that share one initialization from MNLI, in at most one sentence."""
    titles = [TASKS[task].title for task, variant in selection.variants.items() if variant.initialized_from == MNLI]
    if not titles:
        return []
    return [
        "Tasks initialized from one model fine-tuned on MNLI, whose variance is not in the intervals and p-values: "
        f"{', '.join(titles)}."
    ]
