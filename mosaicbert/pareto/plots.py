"""Figure pareto.png: validation loss, BLiMP and GLUE against training time, tokens and cost, with the frontiers."""

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
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.path import Path as Curve
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox

from mosaicbert.pareto.measures import PointEstimate
from mosaicbert.pareto.paper_points import PublishedCurve
from mosaicbert.pareto.points import Baseline, Point, find_frontier
from mosaicbert.pareto.tables import format_number
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
_MAX_COLUMNS = 2
_FIGURE_WIDTHS = {1: 4.7, 2: 7.6}  # inches, by number of columns
_PANEL_HEIGHT = 3.0  # inches
_SECOND_AXIS_HEIGHT = 0.12  # inches, of each second axis of a panel
_MAX_TOKEN_ROWS = 3  # series with token labels
_MIN_TOKEN_LABEL_DISTANCE = 0.14  # between two token labels of a series, fraction of the axis
_TOKEN_LABEL_PAD = 5  # typographic points between the axes and the token labels
_TOKEN_LABEL_HEIGHT = 8  # typographic points, of the token labels of a series
_DOLLAR_AXIS_POSITION = -0.22  # of the height of a panel
_ROW_PAD = 0.08  # inches above and below each row of panels
_LEGEND_ROW_HEIGHT = 0.17  # inches
_CAPTION_ROW_HEIGHT = 0.13  # inches
_MAX_LEGEND_WIDTH = 0.98  # fraction of the figure width
_CHARACTERS_PER_INCH = 20  # for wrapping the caption
_ENTRY_CHARACTERS_PER_INCH = 12  # maximum length of a legend entry
_MAX_LABEL_LENGTH = 24  # characters of a point label
_COST_MARGIN = 1.5  # factor between the limits of the cost axis and the points
_MIN_DECADES = 0.7  # decades of the cost axis
_TICKS = (  # maximum number of decades, multiples of powers of ten
    (1.2, (1.0, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 2.0, 5.0)),
    (math.inf, (1.0,)),
)
_SCORE_MARGIN = 0.09  # fraction of the score range, above and below the points, for their labels
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

_BASELINE_LABEL_POSITIONS = tuple(  # fraction of the width, offset, and alignment, along and across the line
    (x, offset, horizontal, y, vertical)
    for x, offset, horizontal in ((1.0, -2, "right"), (0.0, 2, "left"), (0.5, 0, "center"))
    for y, vertical in ((2, "bottom"), (-2, "top"))
)


@dataclass(frozen=True, kw_only=True)
class _Measure:
    title: str
    estimate: Callable[[Point], PointEstimate | None]
    baseline: Callable[[Baseline], float | None]
    is_lower_better: bool = False
    min_range: float = 2.0  # of the vertical axis


@dataclass(frozen=True, kw_only=True)
class _Cost:
    title: str
    cost: Callable[[Point], float | None]
    published_costs: Callable[[PublishedCurve], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    measure: _Measure
    cost: _Cost

    def pairs(self, points: Sequence[Point]) -> list[tuple[float, float, Point]]:
        """Return cost, value and point of the points that have both."""
        return [
            (cost, estimate.value, point)
            for point in points
            if (cost := self.cost.cost(point)) is not None and (estimate := self.measure.estimate(point)) is not None
        ]

    def frontier(self, points: Sequence[Point]) -> list[bool]:
        """Return for each pair whether it is on the frontier."""
        sign = -1.0 if self.measure.is_lower_better else 1.0
        pairs = self.pairs(points)
        return find_frontier([cost for cost, _, _ in pairs], [sign * value for _, value, _ in pairs])


@dataclass(frozen=True, kw_only=True)
class _Obstacles:
    frame: Bbox  # of the axes; all sizes are in pixels
    curves: list[Curve]  # lines and error bars
    boxes: list[Bbox]  # of markers and labels

    def is_free(self, box: Bbox) -> bool:
        """Return whether a box is inside of the frame and overlaps no obstacle."""
        frame = self.frame
        is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if not is_inside or any(box.overlaps(other) for other in self.boxes):
            return False
        return not any(curve.intersects_bbox(box, filled=False) for curve in self.curves)


_LOSS = _Measure(
    title="Validation loss\n(nats per masked token)",
    estimate=lambda point: point.loss,
    baseline=lambda baseline: baseline.loss,
    is_lower_better=True,
    min_range=0.5,
)
_BLIMP = _Measure(title="BLiMP (%)", estimate=lambda point: point.blimp, baseline=lambda baseline: baseline.blimp)
_HOURS = _Cost(
    title="Wall-clock pretraining time (hours)",
    cost=lambda point: point.hours,
    published_costs=lambda curve: curve.hours,
)
_DOLLARS = _Cost(
    title="Pretraining cost (US dollars)",
    cost=lambda point: point.dollars,
    published_costs=lambda curve: curve.dollars,
)


def draw_pareto(
    points: Sequence[Point],
    published_curves: Sequence[PublishedCurve],
    *,
    baselines: Sequence[Baseline],
    labels: Mapping[str, str],
    average_name: str,
    caption: str,
    is_comparable: bool,
) -> Figure:
    """Plot validation loss, BLiMP and the mean GLUE score against hours, as far as they are measured.

    Tokens are labels above the panels, one row for each of at most three series. Dollars are a second axis at the
    bottom if all points have the same price per hour, and otherwise additional panels.

    Args:
        points: At least one point.
        published_curves: Published GLUE scores, plotted in gray and excluded from the frontier.
        baselines: Horizontal lines.
        labels: Legend labels by series.
        average_name: Name of the mean GLUE score, for the vertical axis.
        caption: Text below the panels, wrapped to the width of the figure.
        is_comparable: True if the published scores are the same average as those of the points. Otherwise they are
            plotted in a separate panel.
    """
    glue = _Measure(
        title=average_name[:1].upper() + average_name[1:],
        estimate=lambda point: point.glue,
        baseline=lambda baseline: baseline.glue,
    )
    measures = [item for item in (_LOSS, _BLIMP, glue) if any(item.estimate(point) is not None for point in points)]
    prices = {None if point.dollars is None else round(point.dollars / point.hours, 6) for point in points}
    price = prices.pop() if len(prices) == 1 else None
    has_dollar_panels = bool(prices - {None})
    panels = [
        panel
        for measure in measures
        for cost in ((_HOURS, _DOLLARS) if has_dollar_panels else (_HOURS,))
        if (panel := _Panel(measure=measure, cost=cost)).pairs(points)
    ]
    names = list(dict.fromkeys(point.series for point in points))
    overlaid_curves, separate_curves = (published_curves, ()) if is_comparable else ((), published_curves)
    num_panels = len(panels) + bool(separate_curves)
    num_columns = min(num_panels, _MAX_COLUMNS)
    num_rows = math.ceil(num_panels / num_columns)
    with matplotlib.rc_context(_STYLE):
        entries = _legend_entries(
            names,
            labels,
            published_curves,
            has_baselines=any(baseline.series in names for baseline in baselines),
            has_intervals=any(
                (estimate := measure.estimate(point)) is not None and estimate.interval is not None
                for measure in measures
                for point in points
            ),
        )
        width = _FIGURE_WIDTHS[num_columns]
        lines = textwrap.wrap(caption, int(_CHARACTERS_PER_INCH * width))
        figure = Figure(figsize=(width, _PANEL_HEIGHT), layout=ConstrainedLayoutEngine(h_pad=_ROW_PAD), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        num_legend_rows = _add_series_legend(figure, entries)
        second_axes_height = _SECOND_AXIS_HEIGHT * (min(len(names), _MAX_TOKEN_ROWS) + (price is not None))
        figure.set_figheight(
            num_rows * (_PANEL_HEIGHT + second_axes_height)
            + _LEGEND_ROW_HEIGHT * num_legend_rows
            + _CAPTION_ROW_HEIGHT * len(lines)
        )
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6.5, color=_GREY, parse_math=False)
        grid: list[Axes] = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for unused in grid[num_panels:]:
            unused.set_axis_off()
        for panel, axes in zip(panels, grid, strict=False):
            curves = overlaid_curves if panel.measure is glue else ()
            _draw_cost_panel(axes, panel, points, names, curves, baselines)
            if panel.cost is _HOURS:
                _label_tokens(axes, panel, points, names)
            if panel.cost is _HOURS and price is not None:
                _add_dollar_axis(axes, price)
        if separate_curves:
            has_prices = price is not None or has_dollar_panels
            _draw_published_panel(grid[num_panels - 1], separate_curves, has_prices=has_prices)
        figure.draw_without_rendering()  # computes the layout, which the placement of the labels requires
        figure.set_layout_engine("none")
        for panel, axes in zip(panels, grid, strict=False):
            obstacles = _find_obstacles(axes)
            _label_baselines(axes, canvas, panel, baselines, obstacles)
            _label_points(axes, canvas, panel, points, obstacles)
    return figure


def as_png(figure: Figure) -> bytes:
    """Encode a figure as PNG. Equal figures give equal bytes with the same version of matplotlib."""
    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_cost_panel(
    axes: Axes,
    panel: _Panel,
    points: Sequence[Point],
    names: list[str],
    published_curves: Sequence[PublishedCurve],
    baselines: Sequence[Baseline],
) -> None:
    for index, curve in enumerate(published_curves):
        axes.plot(panel.cost.published_costs(curve), curve.averages, **_published_style(index))
    for index, name in enumerate(names):
        for connected_points in _connected_points([point for point in points if point.series == name]):
            pairs = sorted(panel.pairs(connected_points), key=lambda pair: pair[0])
            if pairs:
                _draw_points(axes, panel, pairs, index)
    costs = [cost for cost, _, _ in panel.pairs(points)]
    _scale_cost_axis(
        axes, [*costs, *(cost for curve in published_curves for cost in panel.cost.published_costs(curve))]
    )
    for baseline in baselines:
        value = panel.measure.baseline(baseline)
        if value is not None:
            _draw_baseline(axes, value, baseline, names)
    _scale_score_axis(axes, panel.measure.min_range)
    frontier_pairs = sorted(
        (cost, value)
        for (cost, value, _), is_member in zip(panel.pairs(points), panel.frontier(points), strict=True)
        if is_member
    )
    # Between two points of the frontier, the best affordable score is that of the cheaper point: a step line, which
    # extends to the end of the axis.
    frontier_costs, values = [cost for cost, _ in frontier_pairs], [value for _, value in frontier_pairs]
    steps = axes.step([*frontier_costs, axes.get_xlim()[1]], [*values, values[-1]], where="post", **_frontier_style())
    steps[0].set_gid("frontier")
    axes.set_xlabel(panel.cost.title)
    axes.set_ylabel(panel.measure.title)


def _draw_baseline(axes: Axes, value: float, baseline: Baseline, names: list[str]) -> None:
    if baseline.series is not None:
        color = run_color(names.index(baseline.series))
        axes.axhline(value, **_baseline_style(color), gid=f"untrained {baseline.series}")
        return
    axes.axhline(value, **_baseline_style(_GREY), gid=f"baseline {baseline.label}")


def _label_tokens(axes: Axes, panel: _Panel, points: Sequence[Point], names: list[str]) -> None:
    # A label above each point: the series differ in tokens per hour.
    low, high = axes.get_xlim()
    min_factor = (high / low) ** _MIN_TOKEN_LABEL_DISTANCE
    style: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "fontsize": 6, "gid": "tokens"}
    axes.annotate("tokens", (0, 1), (-3, _TOKEN_LABEL_PAD), xycoords="axes fraction", ha="right", color=_GREY, **style)
    panel_points = [point for _, _, point in panel.pairs(points)]
    for index, name in enumerate(names[:_MAX_TOKEN_ROWS]):
        max_hours = math.inf  # of the next label
        for point in sorted(panel_points, key=lambda point: -point.hours):
            if point.series == name and point.hours <= max_hours:
                axes.annotate(
                    format_number(point.tokens),
                    (point.hours, 1),
                    (0, _TOKEN_LABEL_PAD + _TOKEN_LABEL_HEIGHT * index),
                    xycoords=axes.get_xaxis_transform(),
                    ha="center",
                    color=run_color(index),
                    **style,
                )
                max_hours = point.hours / min_factor


def _add_dollar_axis(axes: Axes, dollars_per_hour: float) -> None:
    def to_dollars(hours: Any) -> Any:
        return hours * dollars_per_hour

    def to_hours(dollars: Any) -> Any:
        return dollars / dollars_per_hour

    axis = axes.secondary_xaxis(_DOLLAR_AXIS_POSITION, functions=(to_dollars, to_hours))
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set_xlabel(_DOLLARS.title, fontsize=7)
    _set_ticks(axis, *(math.log10(limit * dollars_per_hour) for limit in axes.get_xlim()))


def _draw_published_panel(axes: Axes, curves: Sequence[PublishedCurve], *, has_prices: bool) -> None:
    for index, curve in enumerate(curves):
        axes.plot(curve.hours, curve.averages, **_published_style(index))
    _scale_cost_axis(axes, [hours for curve in curves for hours in curve.hours])
    _scale_score_axis(axes, 2.0)
    first = curves[0]
    axes.set_title("Published results (separate axes)", fontsize=8, color=_GREY)
    axes.set_xlabel(f"Pretraining time (hours on {first.num_devices} {first.device})")
    axes.set_ylabel(f"Mean of {first.num_tasks} GLUE tasks", color=_GREY)
    if has_prices:
        _add_dollar_axis(axes, first.num_devices * first.dollars_per_device_hour)


def _connected_points(points: list[Point]) -> Iterable[list[Point]]:
    # A line connects the checkpoints of one run. Runs of one checkpoint each are connected to one line per series.
    by_run = [list(run) for _, run in itertools.groupby(points, key=lambda point: point.folder)]
    return by_run if any(len(run) > 1 for run in by_run) else [points]


def _draw_points(axes: Axes, panel: _Panel, pairs: Sequence[tuple[float, float, Point]], index: int) -> None:
    costs, values = [cost for cost, _, _ in pairs], [value for _, value, _ in pairs]
    intervals: list[tuple[float, float]] = []
    for _, value, point in pairs:
        estimate = panel.measure.estimate(point)
        intervals.append((value, value) if estimate is None or estimate.interval is None else estimate.interval)
    axes.plot(costs, values, **_series_style(index))
    axes.errorbar(
        costs,
        values,
        yerr=[  # not negative: by rounding, a mean may be outside of an interval of zero width
            [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)],
        ],
        fmt="none",
        ecolor=run_color(index),
        elinewidth=0.9,
        capsize=2,
        capthick=0.9,
        zorder=3,
    )


def _scale_cost_axis(axes: Axes, costs: Sequence[float]) -> None:
    low, high = math.log10(min(costs) / _COST_MARGIN), math.log10(max(costs) * _COST_MARGIN)
    padding = max(0.0, _MIN_DECADES - (high - low)) / 2
    low, high = low - padding, high + padding
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    _set_ticks(axes, low, high)


def _scale_score_axis(axes: Axes, min_range: float) -> None:
    axes.margins(y=_SCORE_MARGIN)
    bottom, top = axes.get_ylim()
    padding = max(0.0, min_range - (top - bottom)) / 2
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
        entries.append((Line2D([], [], **_baseline_style(_GREY)), "Random weights of the series"))
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
            text.set_text(_truncate_label(name, int(_ENTRY_CHARACTERS_PER_INCH * figure.get_figwidth())))
        if num_columns == 1 or legend.get_window_extent().width <= _MAX_LEGEND_WIDTH * figure.bbox.width:
            return math.ceil(len(entries) / num_columns)
        legend.remove()
        num_columns -= 1


def _label_baselines(
    axes: Axes, canvas: FigureCanvasAgg, panel: _Panel, baselines: Sequence[Baseline], obstacles: _Obstacles
) -> None:
    for baseline in baselines:
        value = panel.measure.baseline(baseline)
        if value is None or not baseline.label:
            continue
        labels = [
            axes.annotate(
                baseline.label,
                (x, value),
                (offset, y),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=6,
                color=_GREY,
                parse_math=False,
                zorder=5,
            )
            for x, offset, horizontal, y, vertical in _BASELINE_LABEL_POSITIONS
        ]
        boxes = [_extent(label, canvas) for label in labels]
        # A baseline has no other label, so that it is labeled even without a free position.
        selected = next((index for index, box in enumerate(boxes) if obstacles.is_free(box)), 0)
        obstacles.boxes.append(boxes[selected])
        for index, label in enumerate(labels):
            if index != selected:
                label.remove()


def _label_points(
    axes: Axes, canvas: FigureCanvasAgg, panel: _Panel, points: Sequence[Point], obstacles: _Obstacles
) -> None:
    pairs, on_frontier = panel.pairs(points), panel.frontier(points)
    # Points on the frontier come first, because a label without a free position is omitted.
    order = sorted(range(len(pairs)), key=lambda index: (not on_frontier[index], pairs[index][0]))
    names = list(dict.fromkeys(point.series for point in points))
    for index in order:
        cost, value, point = pairs[index]
        if sum(other.series == point.series for other in points) == 1:
            continue  # the legend identifies the point
        for x, y, horizontal, vertical in _LABEL_POSITIONS:
            label = axes.annotate(
                _truncate_label(_point_label(point, points), _MAX_LABEL_LENGTH),
                (cost, value),
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
            if obstacles.is_free(box):
                obstacles.boxes.append(box)
                break
            label.remove()


def _find_obstacles(axes: Axes) -> _Obstacles:
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
    return _Obstacles(frame=axes.get_window_extent(), curves=curves, boxes=boxes)


def _extent(label: Annotation, canvas: FigureCanvasAgg) -> Bbox:
    box = label.get_window_extent(canvas.get_renderer())
    return Bbox.from_extents(box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1)


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
