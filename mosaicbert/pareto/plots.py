"""Figure pareto.png: scores against training time and cost, with the frontier and the published points."""

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

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one per series, to distinguish series without color
_PUBLISHED_MARKERS = ("o", "s")
_PUBLISHED_COLORS = ("#7a7a7a", "#b0b0b0")
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
_INVISIBLE = ("None", "none", " ", "", None)  # values of matplotlib for no line and no marker
_DPI = 300
_FIGURE_WIDTHS = {1: 4.7, 2: 7.2, 3: 9.6}  # inches, by number of panels
_PANEL_HEIGHT = 3.0  # inches
_LEGEND_ROW_HEIGHT = 0.17  # inches
_CAPTION_ROW_HEIGHT = 0.13  # inches
_MAX_LEGEND_WIDTH = 0.98  # fraction of the figure width
_CHARACTERS_PER_INCH = 20  # for wrapping the caption
_MAX_ENTRY_LENGTH = 90  # characters of a legend entry
_MAX_LABEL_LENGTH = 24  # characters of a point label
_COST_MARGIN = 1.5  # factor between the limits of the cost axis and the points
_MIN_DECADES = 0.7  # decades of the cost axis
_TICKS = (  # maximum number of decades, multiples of powers of ten
    (1.2, (1.0, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 2.0, 5.0)),
    (math.inf, (1.0,)),
)
_SCORE_MARGIN = 0.09  # fraction of the score range, above and below the points, for their labels
_MIN_SCORE_RANGE = 2.0
_LABEL_POSITIONS = (  # offset from the point in typographic points, horizontal and vertical alignment
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
    title: str
    cost: Callable[[Point], float | None]
    published_costs: Callable[[PublishedCurve], tuple[float, ...]]


_HOURS = _CostPanel(
    title="Wall-clock pretraining time (hours)",
    cost=lambda point: point.hours,
    published_costs=lambda curve: curve.hours,
)
_DOLLARS = _CostPanel(
    title="Pretraining cost (US dollars)",
    cost=lambda point: point.dollars,
    published_costs=lambda curve: curve.dollars,
)


def draw_pareto(
    points: Sequence[Point],
    published_curves: Sequence[PublishedCurve],
    *,
    baselines: Mapping[str, float],
    labels: Mapping[str, str],
    average_name: str,
    caption: str,
    is_comparable: bool,
) -> Figure:
    """Plot average scores against hours, and against dollars if any point has a price.

    Args:
        points: At least one point.
        published_curves: Published scores, plotted in gray and excluded from the frontier.
        baselines: Scores of the untrained baselines by series, plotted as horizontal lines.
        labels: Legend labels by series.
        average_name: Name of the average score, for the vertical axis.
        caption: Text below the panels, wrapped to the width of the figure.
        is_comparable: True if the published scores are the same average as those of the points. Otherwise they are
            plotted in a separate panel.
    """
    has_prices = any(point.dollars is not None for point in points)
    panels = [_HOURS, _DOLLARS] if has_prices else [_HOURS]
    names = list(dict.fromkeys(point.series for point in points))
    overlaid_curves, separate_curves = (published_curves, ()) if is_comparable else ((), published_curves)
    num_columns = len(panels) + bool(separate_curves)
    with matplotlib.rc_context(_STYLE):
        entries = _legend_entries(
            names,
            labels,
            published_curves,
            has_baselines=any(name in baselines for name in names),
            has_intervals=any(point.interval for point in points),
        )
        width = _FIGURE_WIDTHS[num_columns]
        lines = textwrap.wrap(caption, int(_CHARACTERS_PER_INCH * width))
        figure = Figure(figsize=(width, _PANEL_HEIGHT), layout="constrained", dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        num_rows = _add_series_legend(figure, entries)
        figure.set_figheight(_PANEL_HEIGHT + _LEGEND_ROW_HEIGHT * num_rows + _CAPTION_ROW_HEIGHT * len(lines))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=_GREY, parse_math=False)
        row: list[Axes] = list(figure.subplots(1, num_columns, squeeze=False)[0])
        if separate_curves:
            _draw_published_panel(row.pop(), separate_curves, has_prices=has_prices)
        row[0].set_ylabel(_score_title(average_name))
        for axes in row[1:]:
            axes.sharey(row[0])
            axes.tick_params(labelleft=False)
        for panel, axes in zip(panels, row, strict=True):
            _draw_cost_panel(axes, panel, points, names, overlaid_curves, baselines)
        canvas.draw()  # computes the layout, which the placement of the labels requires
        figure.set_layout_engine("none")
        for panel, axes in zip(panels, row, strict=True):
            _label_points(axes, canvas, panel, points)
    return figure


def as_png(figure: Figure) -> bytes:
    """Encode a figure as PNG. Equal figures give equal bytes with the same version of matplotlib."""
    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _score_title(average_name: str) -> str:
    return f"Score: {average_name}"


def _draw_cost_panel(
    axes: Axes,
    panel: _CostPanel,
    points: Sequence[Point],
    names: list[str],
    published_curves: Sequence[PublishedCurve],
    baselines: Mapping[str, float],
) -> None:
    for index, curve in enumerate(published_curves):
        axes.plot(panel.published_costs(curve), curve.averages, **_published_style(index))
    for index, name in enumerate(names):
        for connected_points in _connected_points([point for point in points if point.series == name]):
            pairs = [(cost, point) for point in connected_points if (cost := panel.cost(point)) is not None]
            pairs.sort(key=lambda pair: pair[0])
            if pairs:
                _draw_points(axes, [cost for cost, _ in pairs], [point for _, point in pairs], index)
        if name in baselines and any(panel.cost(point) is not None for point in points if point.series == name):
            axes.axhline(baselines[name], **_baseline_style(run_color(index)), gid=f"untrained {name}")
    costs = [cost for point in points if (cost := panel.cost(point)) is not None]
    _scale_axes(axes, [*costs, *(cost for curve in published_curves for cost in panel.published_costs(curve))])
    frontier_costs, averages = _frontier(panel, points)
    # Between two points of the frontier, the best affordable score is that of the cheaper point: a step line, which
    # extends to the end of the axis.
    steps = axes.step(
        [*frontier_costs, axes.get_xlim()[1]], [*averages, averages[-1]], where="post", **_frontier_style()
    )
    steps[0].set_gid("frontier")
    axes.set_xlabel(panel.title)


def _draw_published_panel(axes: Axes, curves: Sequence[PublishedCurve], *, has_prices: bool) -> None:
    for index, curve in enumerate(curves):
        axes.plot(curve.hours, curve.averages, **_published_style(index))
    _scale_axes(axes, [hours for curve in curves for hours in curve.hours])
    first = curves[0]
    axes.set_title("Published results (separate score axis)", fontsize=8, color=_GREY)
    axes.set_xlabel(f"Pretraining time (hours on {first.num_devices} {first.device})")
    axes.set_ylabel(_score_title(f"mean of {first.num_tasks} GLUE tasks"), color=_GREY)
    if has_prices:
        price = first.num_devices * first.dollars_per_device_hour

        def to_dollars(hours: Any) -> Any:
            return hours * price

        def to_hours(dollars: Any) -> Any:
            return dollars / price

        dollar_axis = axes.secondary_xaxis("top", functions=(to_dollars, to_hours))
        dollar_axis.set_xlabel(_DOLLARS.title)
        _set_ticks(dollar_axis, *(math.log10(limit * price) for limit in axes.get_xlim()))


def _connected_points(points: list[Point]) -> Iterable[list[Point]]:
    # A line connects the checkpoints of one run. Runs of one checkpoint each are connected to one line per series.
    by_run = [list(run) for _, run in itertools.groupby(points, key=lambda point: point.folder)]
    return by_run if any(len(run) > 1 for run in by_run) else [points]


def _draw_points(axes: Axes, costs: list[float], points: list[Point], index: int) -> None:
    averages = [point.average for point in points]
    intervals = [point.interval or (point.average, point.average) for point in points]
    axes.plot(costs, averages, **_series_style(index))
    axes.errorbar(
        costs,
        averages,
        yerr=[  # not negative: by rounding, a mean may be outside of an interval of zero width
            [max(0.0, average - low) for average, (low, _) in zip(averages, intervals, strict=True)],
            [max(0.0, high - average) for average, (_, high) in zip(averages, intervals, strict=True)],
        ],
        fmt="none",
        ecolor=run_color(index),
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        zorder=3,
    )


def _frontier(panel: _CostPanel, points: Sequence[Point]) -> tuple[list[float], list[float]]:
    pairs = [(cost, point.average) for point in points if (cost := panel.cost(point)) is not None]
    on_frontier = find_frontier([cost for cost, _ in pairs], [average for _, average in pairs])
    frontier_pairs = sorted(pair for pair, is_member in zip(pairs, on_frontier, strict=True) if is_member)
    return [cost for cost, _ in frontier_pairs], [average for _, average in frontier_pairs]


def _scale_axes(axes: Axes, costs: Sequence[float]) -> None:
    low, high = math.log10(min(costs) / _COST_MARGIN), math.log10(max(costs) * _COST_MARGIN)
    padding = max(0.0, _MIN_DECADES - (high - low)) / 2
    low, high = low - padding, high + padding
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    _set_ticks(axes, low, high)
    axes.margins(y=_SCORE_MARGIN)
    bottom, top = axes.get_ylim()
    padding = max(0.0, _MIN_SCORE_RANGE - (top - bottom)) / 2
    axes.set_ylim(bottom - padding, top + padding)


def _set_ticks(axes: Any, low: float, high: float) -> None:
    multiples = next(multiples for max_decades, multiples in _TICKS if high - low <= max_decades)
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


def _published_style(index: int) -> dict[str, Any]:
    return {
        "color": _PUBLISHED_COLORS[index % len(_PUBLISHED_COLORS)],
        "marker": _PUBLISHED_MARKERS[index % len(_PUBLISHED_MARKERS)],
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
    published_curves: Sequence[PublishedCurve],
    *,
    has_baselines: bool,
    has_intervals: bool,
) -> list[tuple[Any, str]]:
    entries = [(Line2D([], [], **_series_style(index)), labels[name]) for index, name in enumerate(names)]
    frontier_label = "Frontier; bars: 95% intervals" if has_intervals else "Frontier"
    entries.append((Line2D([], [], **_frontier_style()), frontier_label))
    if has_baselines:
        entries.append((Line2D([], [], **_baseline_style(_GREY)), "Untrained baseline"))
    entries += [
        (Line2D([], [], **_published_style(index)), curve.label) for index, curve in enumerate(published_curves)
    ]
    return entries


def _add_series_legend(figure: Figure, entries: list[tuple[Any, str]]) -> int:
    # Returns the number of rows. The legend has as many columns as fit in the width of the figure.
    num_columns = len(entries)
    while True:
        legend = figure.legend(
            [handle for handle, _ in entries],
            [str(index) for index in range(len(entries))],
            loc="outside upper left",
            ncols=num_columns,
            fontsize=7.5,
            handlelength=2.5,
        )
        # The texts are set afterwards, because matplotlib hides labels with a leading underscore and interprets dollar
        # signs as formulas.
        for text, (_, name) in zip(legend.get_texts(), entries, strict=True):
            text.set_parse_math(False)
            text.set_text(_truncate_label(name, _MAX_ENTRY_LENGTH))
        if num_columns == 1 or legend.get_window_extent().width <= _MAX_LEGEND_WIDTH * figure.bbox.width:
            return math.ceil(len(entries) / num_columns)
        legend.remove()
        num_columns -= 1


def _label_points(axes: Axes, canvas: FigureCanvasAgg, panel: _CostPanel, points: Sequence[Point]) -> None:
    pairs = [(cost, point) for point in points if (cost := panel.cost(point)) is not None]
    on_frontier = find_frontier([cost for cost, _ in pairs], [point.average for _, point in pairs])
    # Points on the frontier come first, because a label without a free position is omitted.
    order = sorted(range(len(pairs)), key=lambda index: (not on_frontier[index], pairs[index][0]))
    curves, occupied = _obstacles(axes)
    frame = axes.get_window_extent()
    names = list(dict.fromkeys(point.series for point in points))
    for index in order:
        cost, point = pairs[index]
        for x, y, horizontal, vertical in _LABEL_POSITIONS:
            label = axes.annotate(
                _truncate_label(_point_label(point, points), _MAX_LABEL_LENGTH),
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
            if _is_free(box, frame, curves, occupied):
                occupied.append(box)
                break
            label.remove()


def _obstacles(axes: Axes) -> tuple[list[Curve], list[Bbox]]:
    # Returns the lines of the axes, and the bounding boxes of its markers, in pixels.
    curves: list[Curve] = []
    boxes: list[Bbox] = []
    for line in axes.lines:
        pixels = line.get_transform().transform_path(line.get_path())
        if line.get_linestyle() not in _INVISIBLE:
            curves.append(pixels)
        if line.get_marker() not in _INVISIBLE:
            radius = (line.get_markersize() / 2 + 0.5) * axes.figure.dpi / 72
            for x, y in np.asarray(pixels.vertices):
                boxes.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    for collection in axes.collections:  # error bars
        curves += [collection.get_transform().transform_path(path) for path in collection.get_paths()]
    return curves, boxes


def _extent(label: Annotation, canvas: FigureCanvasAgg) -> Bbox:
    box = label.get_window_extent(canvas.get_renderer())
    return Bbox.from_extents(box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1)


def _is_free(box: Bbox, frame: Bbox, curves: list[Curve], occupied: list[Bbox]) -> bool:
    is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    if not is_inside or any(box.overlaps(other) for other in occupied):
        return False
    return not any(curve.intersects_bbox(box, filled=False) for curve in curves)


def _point_label(point: Point, points: Sequence[Point]) -> str:
    runs = sorted({other.folder for other in points if other.series == point.series})
    steps = f"{point.step / 1000:g}k" if point.step >= 1000 else str(point.step)
    if len(runs) == 1:
        return steps
    name = _short_run_names(runs)[point.folder]
    return name if sum(other.folder == point.folder for other in points) == 1 else f"{name}@{steps}"


def _short_run_names(folders: Sequence[str]) -> dict[str, str]:
    # Removes common first and last words of the names: runs/a-5min and runs/a-10min become 5min and 10min.
    words = {folder: re.split(r"[-/]", folder.strip("/")) for folder in folders}
    max_common = min(map(len, words.values())) - 1  # at least one word of each name remains
    num_first = next((n for n in range(max_common) if len({name[n] for name in words.values()}) > 1), max_common)
    remaining = range(max_common - num_first)
    num_last = next((n for n in remaining if len({name[-1 - n] for name in words.values()}) > 1), len(remaining))
    return {folder: "-".join(name[num_first : len(name) - num_last]) for folder, name in words.items()}


def _truncate_label(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."
