"""pareto.png: scores against hours and against dollars, with the frontier and the paper's points."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path as Curve
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from mosaicbert.pareto.paper_points import PublishedCurve
from mosaicbert.pareto.points import Point, find_frontier
from mosaicbert.report.plots import run_color

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # of the series, so that a print without colours can be read
_REFERENCE_MARKERS = ("o", "s")
_REFERENCE_COLOURS = ("#7a7a7a", "#b0b0b0")
_GREY = "#4d4d4d"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c8c8c",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.usetex": False,
}
_NOTHING = ("None", "none", " ", "", None)  # matplotlib's names for no line and no marker
_DPI = 300
_FIGURE_WIDTHS = {1: 4.7, 2: 7.2, 3: 9.6}  # inches, by its panels; two make a page of a journal
_PANEL_HEIGHT = 3.0
_LEGEND_ROW = 0.17
_WIDEST_LEGEND = 0.98  # of the figure
_CAPTION_ROW = 0.13
_CHARACTERS_PER_INCH = 20  # of the caption
_LONGEST_ENTRY = 90  # of the legend
_LONGEST_LABEL = 24  # of a point
_ROOM = 1.5  # factor that the cost axis goes on beyond the points
_FEWEST_DECADES = 0.7  # that it spans
_TICKS = (
    (1.2, (1.0, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 2.0, 5.0)),
    (math.inf, (1.0,)),
)  # multiples, up to so many decades
_MARGIN = 0.09  # of the scores' span, above and below: room for labels
_FEWEST_POINTS = 2.0  # of the score that the other axis spans
_PLACES = (  # of a label: offset in typographic points, and which of its corners is there
    (5, -4, "left", "top"),
    (-5, 4, "right", "bottom"),
    (5, 4, "left", "bottom"),
    (-5, -4, "right", "top"),
    (0, -6, "center", "top"),
    (0, 6, "center", "bottom"),
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (-10, -6, "left", "top"),
    (-10, 6, "left", "bottom"),
)


@dataclass(frozen=True, kw_only=True)
class _CostPanel:
    """One of the two: what is paid, by ours and by the paper."""

    title: str
    cost: Callable[[Point], float | None]
    reference_cost: Callable[[PublishedCurve], tuple[float, ...]]


_HOURS = _CostPanel(
    title="wall-clock hours of pretraining",
    cost=lambda point: point.hours,
    reference_cost=lambda reference: reference.hours,
)
_DOLLARS = _CostPanel(
    title="dollars of pretraining",
    cost=lambda point: point.dollars,
    reference_cost=lambda reference: reference.dollars,
)


def draw_pareto(
    points: Sequence[Point],
    references: Sequence[PublishedCurve],
    *,
    baselines: Mapping[str, float],
    labels: Mapping[str, str],
    average_name: str,
    caption: str,
    is_comparable: bool,
) -> Figure:
    """Draws the averages against hours, and against dollars if any point has a price.

    Args:
        points: one at least.
        references: drawn in grey, without a part in the frontier.
        baselines: what the models of a series score from random weights, by its name; a level line.
        labels: of the series, by their names, for the legend.
        measure: what the average is, for the axis.
        caption: what stands below, wrapped to the figure's width.
        is_comparable: whether the references average the same; else they get a panel of their own.
    """
    has_prices = any(point.dollars is not None for point in points)
    panels = [_HOURS, _DOLLARS] if has_prices else [_HOURS]
    names = list(dict.fromkeys(point.series for point in points))
    beside, apart = (references, ()) if is_comparable else ((), references)
    columns = len(panels) + bool(apart)
    with matplotlib.rc_context(_STYLE):
        has_intervals = any(point.interval for point in points)
        has_baselines = any(name in baselines for name in names)
        entries = _legend_entries(names, labels, references, has_baselines=has_baselines, has_intervals=has_intervals)
        width = _FIGURE_WIDTHS[columns]
        lines = textwrap.wrap(caption, int(_CHARACTERS_PER_INCH * width))
        figure = Figure(figsize=(width, _PANEL_HEIGHT), layout="constrained", dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        rows = _add_series_legend(figure, entries)
        figure.set_figheight(_PANEL_HEIGHT + _LEGEND_ROW * rows + _CAPTION_ROW * len(lines))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=_GREY, parse_math=False)
        row: list[Axes] = list(figure.subplots(1, columns, squeeze=False)[0])
        if apart:
            _draw_references(row.pop(), apart, has_prices=has_prices)
        row[0].set_ylabel(f"score: {average_name}")
        for axes in row[1:]:
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
        for panel, axes in zip(panels, row, strict=True):
            _draw_cost_panel(axes, panel, points, names, beside, baselines)
        canvas.draw()  # lays out, so that it is known where things are
        figure.set_layout_engine("none")
        for panel, axes in zip(panels, row, strict=True):
            _label_points(axes, canvas, panel, points)
    return figure


def as_png(figure: Figure) -> bytes:
    """The same bytes for the same figure, with one version of matplotlib."""
    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_cost_panel(
    axes: Axes,
    panel: _CostPanel,
    points: Sequence[Point],
    names: list[str],
    references: Sequence[PublishedCurve],
    baselines: Mapping[str, float],
) -> None:
    for index, reference in enumerate(references):
        axes.plot(panel.reference_cost(reference), reference.averages, **_reference_style(index))
    for index, name in enumerate(names):
        for curve in _curves([point for point in points if point.series == name]):
            placed = [(cost, point) for point in curve if (cost := panel.cost(point)) is not None]
            placed.sort(key=lambda pair: pair[0])
            if placed:
                _draw_curve(axes, [cost for cost, _ in placed], [point for _, point in placed], index)
        if name in baselines and any(panel.cost(point) is not None for point in points if point.series == name):
            axes.axhline(baselines[name], **_baseline_style(run_color(index)), gid=f"untrained {name}")
    ours = [cost for point in points if (cost := panel.cost(point)) is not None]
    _scale(axes, [*ours, *(cost for reference in references for cost in panel.reference_cost(reference))])
    costs, averages = _frontier(panel, points)
    # A budget buys the best point that costs no more: level up to the next, and beyond the last.
    steps = axes.step([*costs, axes.get_xlim()[1]], [*averages, averages[-1]], where="post", **_frontier_style())
    steps[0].set_gid("frontier")
    axes.set_xlabel(panel.title)


def _draw_references(axes: Axes, references: Sequence[PublishedCurve], *, has_prices: bool) -> None:
    """What averages something else: beside ours, so that nobody reads its heights against ours."""
    for index, reference in enumerate(references):
        axes.plot(reference.hours, reference.averages, **_reference_style(index))
    _scale(axes, [hours for reference in references for hours in reference.hours])
    first = references[0]
    axes.set_title("the paper's, on an axis of its own", fontsize=8, color=_GREY)
    axes.set_xlabel(f"wall-clock hours of {first.num_devices} {first.device}")
    axes.set_ylabel(f"score: mean of {first.num_tasks} GLUE tasks", color=_GREY)
    if has_prices:
        price = first.num_devices * first.dollars_per_device_hour

        def to_dollars(hours: Any) -> Any:
            return hours * price

        def to_hours(dollars: Any) -> Any:
            return dollars / price

        above = axes.secondary_xaxis("top", functions=(to_dollars, to_hours))
        above.set_xlabel("dollars")
        _mark(above, *(math.log10(end * price) for end in axes.get_xlim()))


def _curves(points: list[Point]) -> Iterable[list[Point]]:
    """The checkpoints of a run are a curve; runs of one checkpoint each are one together."""
    by_run = [list(run) for _, run in itertools.groupby(points, key=lambda point: point.folder)]
    return by_run if any(len(run) > 1 for run in by_run) else [points]


def _draw_curve(axes: Axes, costs: list[float], points: list[Point], index: int) -> None:
    averages = [point.average for point in points]
    ends = [point.interval or (point.average, point.average) for point in points]
    axes.plot(costs, averages, **_series_style(index))
    axes.errorbar(
        costs,
        averages,
        yerr=[  # rounding may put a mean outside of an interval without width
            [max(0.0, average - low) for average, (low, _) in zip(averages, ends, strict=True)],
            [max(0.0, high - average) for average, (_, high) in zip(averages, ends, strict=True)],
        ],
        fmt="none",
        ecolor=run_color(index),
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        zorder=3,
    )


def _frontier(panel: _CostPanel, points: Sequence[Point]) -> tuple[list[float], list[float]]:
    placed = [(cost, point.average) for point in points if (cost := panel.cost(point)) is not None]
    best = find_frontier([cost for cost, _ in placed], [average for _, average in placed])
    along = sorted(pair for pair, is_best in zip(placed, best, strict=True) if is_best)
    return [cost for cost, _ in along], [average for _, average in along]


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    low, high = math.log10(min(costs) / _ROOM), math.log10(max(costs) * _ROOM)
    missing = max(0.0, _FEWEST_DECADES - (high - low)) / 2
    low, high = low - missing, high + missing
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    _mark(axes, low, high)
    axes.margins(y=_MARGIN)
    bottom, top = axes.get_ylim()
    missing = max(0.0, _FEWEST_POINTS - (top - bottom)) / 2
    axes.set_ylim(bottom - missing, top + missing)


def _mark(axes: Any, low: float, high: float) -> None:
    multiples = next(multiples for decades, multiples in _TICKS if high - low <= decades)
    axes.xaxis.set_major_locator(LogLocator(subs=multiples, numticks=99))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")


def _series_style(index: int) -> dict[str, Any]:
    return {
        "color": run_color(index),
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
        "linewidth": 0.9,
        "alpha": 1.0,
        "zorder": 4,
    }


def _reference_style(index: int) -> dict[str, Any]:
    color = _REFERENCE_COLOURS[index % len(_REFERENCE_COLOURS)]
    marker = _REFERENCE_MARKERS[index % len(_REFERENCE_MARKERS)]
    return {
        "color": color,
        "marker": marker,
        "markersize": 3.2,
        "markerfacecolor": "white",
        "linewidth": 0.8,
        "linestyle": "--",
        "zorder": 2,
    }


def _baseline_style(color: str) -> dict[str, Any]:
    return {"color": color, "linewidth": 0.8, "linestyle": (0, (6, 2)), "zorder": 2.2}


def _frontier_style() -> dict[str, Any]:
    return {"color": "black", "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 2.5}


def _legend_entries(
    names: list[str],
    labels: Mapping[str, str],
    references: Sequence[PublishedCurve],
    *,
    has_baselines: bool,
    has_intervals: bool,
) -> list[tuple[Any, str]]:
    entries = [(Line2D([], [], **_series_style(index)), labels[name]) for index, name in enumerate(names)]
    meaning = "frontier; bars: 95% intervals" if has_intervals else "frontier"
    entries.append((Line2D([], [], **_frontier_style()), meaning))
    if has_baselines:
        entries.append((Line2D([], [], **_baseline_style(_GREY)), "level: the same model from random weights"))
    entries += [
        (Line2D([], [], **_reference_style(index)), reference.label) for index, reference in enumerate(references)
    ]
    return entries


def _add_series_legend(figure: Figure, entries: list[tuple[Any, str]]) -> int:
    """Puts it above the panels, in as many columns as fit, and returns its rows."""
    columns = len(entries)
    while True:
        legend = figure.legend(
            [handle for handle, _ in entries],
            [str(index) for index in range(len(entries))],
            loc="outside upper left",
            ncols=columns,
            fontsize=7.5,
            handlelength=2.5,
        )
        # Set afterwards: as labels, a leading underscore would hide a series and a dollar sign would begin a formula.
        for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
            text.set_parse_math(False)
            text.set_text(_truncate_label(name, _LONGEST_ENTRY))
        if columns == 1 or legend.get_window_extent().width <= _WIDEST_LEGEND * figure.bbox.width:
            return math.ceil(len(entries) / columns)
        legend.remove()
        columns -= 1


def _label_points(axes: Axes, canvas: FigureCanvasAgg, panel: _CostPanel, points: Sequence[Point]) -> None:
    """Writes steps or runs beside the points, frontier first; leaves out what finds no free place."""
    placed = [(cost, point) for point in points if (cost := panel.cost(point)) is not None]
    best = find_frontier([cost for cost, _ in placed], [point.average for _, point in placed])
    order = sorted(range(len(placed)), key=lambda index: (not best[index], placed[index][0]))
    curves, taken = _obstacles(axes)
    inside = axes.get_window_extent()
    names = list(dict.fromkeys(point.series for point in points))
    for index in order:
        cost, point = placed[index]
        for x, y, horizontal, vertical in _PLACES:
            label = axes.annotate(
                _truncate_label(_point_label(point, points), _LONGEST_LABEL),
                (cost, point.average),
                (x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=6,
                color=run_color(names.index(point.series)),
                parse_math=False,
                annotation_clip=True,
                zorder=5,
            )
            box = _extent(label, canvas)
            if _is_free(box, inside, curves, taken):
                taken.append(box)
                break
            label.remove()


def _obstacles(axes: Axes) -> tuple[list[Curve], list[Bbox]]:
    """The lines of a panel, and boxes around its markers, in pixels."""
    curves: list[Curve] = []
    boxes: list[Bbox] = []
    for line in axes.lines:
        pixels = line.get_transform().transform_path(line.get_path())
        if line.get_linestyle() not in _NOTHING:
            curves.append(pixels)
        if line.get_marker() not in _NOTHING:
            reach = (line.get_markersize() / 2 + 0.5) * axes.figure.dpi / 72
            for x, y in np.asarray(pixels.vertices):
                boxes.append(Bbox.from_extents(x - reach, y - reach, x + reach, y + reach))
    for collection in axes.collections:  # error bars
        curves += [collection.get_transform().transform_path(path) for path in collection.get_paths()]
    return curves, boxes


def _extent(label: Annotation, canvas: FigureCanvasAgg) -> Bbox:
    box = label.get_window_extent(canvas.get_renderer())
    return Bbox.from_extents(box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1)


def _is_free(box: Bbox, inside: Bbox, curves: list[Curve], taken: list[Bbox]) -> bool:
    fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
    if not fits or any(box.overlaps(other) for other in taken):
        return False
    return not any(curve.intersects_bbox(box, filled=False) for curve in curves)


def _point_label(point: Point, points: Sequence[Point]) -> str:
    """Steps tell the checkpoints of a run apart, the runs of a series what their folders do not share."""
    runs = sorted({other.folder for other in points if other.series == point.series})
    steps = f"{point.step / 1000:g}k" if point.step >= 1000 else str(point.step)
    if len(runs) == 1:
        return steps
    name = _short_run_names(runs)[point.folder]
    return name if sum(other.folder == point.folder for other in points) == 1 else f"{name}@{steps}"


def _short_run_names(folders: Sequence[str]) -> dict[str, str]:
    """The words of each folder's name that not all begin or end with: 5min and 10min of runs/a-5min, runs/a-10min."""
    words = {folder: re.split(r"[-/]", folder.strip("/")) for folder in folders}
    shortest = min(map(len, words.values())) - 1  # something is left of each
    first = next((n for n in range(shortest) if len({one[n] for one in words.values()}) > 1), shortest)
    rest = range(shortest - first)
    last = next((n for n in rest if len({one[-1 - n] for one in words.values()}) > 1), len(rest))
    return {folder: "-".join(one[first : len(one) - last]) for folder, one in words.items()}


def _truncate_label(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
