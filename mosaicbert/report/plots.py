"""Plots of training curves: the loss of one run against time, and a grid of all metrics of several runs."""

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from mosaicbert.report.curves import Numbers, column, data_wait_fraction, downsample, smooth
from mosaicbert.report.runs import Run

# Okabe and Ito 2008, Color Universal Design, without yellow: distinguishable with color vision deficiency.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES: tuple[Literal["-", "-.", ":"], ...] = ("-", "-.", ":")  # one per seven runs
_GREY = "#4d4d4d"
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c8c8c",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.usetex": False,
}
_DPI = 150
_NUM_COLUMNS = 5  # number of columns of small panels
_MAX_MARKERS = 25  # per curve
_MAX_LABEL_LENGTH = 60  # characters of a run label
_CHARACTERS_PER_INCH = 13  # for the width of legend entries
_HANDLE_CHARACTERS = 10  # width of a legend handle with its margins
_NUM_MARKER_ROWS = 8  # heights of fault markers, so that those of several runs do not overlap
_LOG_SCALE_RATIO = 2.5  # ratio of the largest to the smallest loss above which the axis is logarithmic
_TOKEN_UNITS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
_SHORT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_FAULT_MARKERS = {"skipped": ("|", "Skipped step"), "rollback": ("v", "Rollback")}  # by kind in faults.jsonl


@dataclass(frozen=True, kw_only=True)
class _MetricPanel:
    """Panel of one metric against tokens.

    Attributes:
        title: Name of the metric with its unit.
        training: Function from the training lines to the values of the curve.
        dashed: Function from the training lines to the values of a second, dashed curve; None for no second curve.
        validation: Key of the values in the evaluation lines; None for no validation curve.
        is_noisy: True to draw the running mean over faint values.
        is_logarithmic: True for a logarithmic axis, False for an axis that starts at zero.
        format_tick: Function from an axis value to its label.
    """

    title: str
    training: Callable[[list[dict[str, Any]]], Numbers]
    dashed: Callable[[list[dict[str, Any]]], Numbers] | None = None
    validation: str | None = None
    is_noisy: bool = True
    is_logarithmic: bool = False
    format_tick: Callable[[float], str] = "{:,g}".format


def _metric(name: str) -> Callable[[list[dict[str, Any]]], Numbers]:
    return partial(column, name=name)


def _with_unit(value: float) -> str:
    unit, name = next(((unit, name) for unit, name in _SHORT_UNITS if abs(value) >= unit), (1.0, ""))
    return f"{value / unit:g}{name}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g}%"


_PANELS = (
    _MetricPanel(
        title="Masked-token accuracy",
        training=_metric("accuracy"),
        validation="eval_accuracy",
        format_tick=_percent,
    ),
    _MetricPanel(title="Gradient norm", training=_metric("grad_norm"), is_logarithmic=True),
    _MetricPanel(title="Throughput (tokens/s)", training=_metric("tokens_per_second"), format_tick=_with_unit),
    _MetricPanel(title="Model FLOPs utilization", training=_metric("mfu"), format_tick=_percent),
    _MetricPanel(title="Data wait (fraction of time)", training=data_wait_fraction, format_tick=_percent),
    _MetricPanel(title="Learning rate", training=_metric("lr"), is_noisy=False),
    _MetricPanel(title="Mask rate", training=_metric("mask_rate"), is_noisy=False, format_tick=_percent),
    _MetricPanel(title="Global batch size (samples)", training=_metric("batch_samples"), is_noisy=False),
    _MetricPanel(
        title="Fill rate; dashed: padding",
        training=_metric("fill_rate"),
        dashed=_metric("padding_rate"),
        format_tick=_percent,
    ),
    _MetricPanel(title="Memory (GiB)", training=_metric("memory_gib"), is_noisy=False),
)


def run_color(index: int) -> str:
    """Return the color of a run in the report, as #rrggbb."""
    return _COLORS[index % len(_COLORS)]


def draw_loss(metrics: list[dict[str, Any]], *, unigram_entropy: float, title: str, path: Path) -> None:
    """Plot training and validation loss against training time, with the unigram entropy as a baseline.

    Args:
        metrics: Lines of metrics.jsonl.
        unigram_entropy: Unigram entropy of the validation split in nats per token.
        title: Title of the figure.
        path: Path of the PNG file.
    """
    training = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "eval_loss" in line]
    unit, unit_seconds = _time_unit(column(training, "seconds"))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        times = column(training, "seconds") / unit_seconds
        _draw_noisy(axes, times, column(training, "loss"), _COLORS[0], label="Training")
        if evaluations:
            times = column(evaluations, "seconds") / unit_seconds
            _draw_validation(axes, times, column(evaluations, "eval_loss"), _COLORS[1], label="Validation")
        axes.axhline(unigram_entropy, color=_GREY, linestyle="--", linewidth=1, label="Unigram entropy (validation)")
        axes.set_title(title, parse_math=False)
        axes.set_xlabel(f"Training time ({unit})")
        axes.set_ylabel("Masked-token loss (nats)")
        _scale_losses(axes)
        axes.set_xlim(left=0)
        axes.legend()
        figure.savefig(path, format="png", dpi=_DPI)


def draw_runs(runs: list[Run]) -> bytes:
    """Plot all metrics of several runs in one grid with a common legend. Metrics without values are omitted.

    Returns:
        Content of the PNG file.
    """
    panels = [panel for panel in _PANELS if any(np.isfinite(panel.training(run.training)).any() for run in runs)]
    small_rows = math.ceil(len(panels) / _NUM_COLUMNS)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * _NUM_COLUMNS, 4.2 + 2.3 * small_rows), layout="constrained")
        grid = figure.add_gridspec(1 + small_rows, 2 * _NUM_COLUMNS, height_ratios=[1.6] + [1.0] * small_rows)
        _draw_losses(figure.add_subplot(grid[0, :_NUM_COLUMNS]), figure.add_subplot(grid[0, _NUM_COLUMNS:]), runs)
        for index, panel in enumerate(panels):
            row, position = divmod(index, _NUM_COLUMNS)
            axes = figure.add_subplot(grid[1 + row, 2 * position : 2 * position + 2])
            _draw_metric(axes, panel, runs)
            if index + _NUM_COLUMNS < len(panels):  # not in the last row of its column
                axes.set_xlabel("")
        _add_run_legend(figure, runs)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _draw_losses(by_tokens: Axes, by_time: Axes, runs: list[Run]) -> None:
    token_label, unit_tokens = _token_unit(runs)
    time_unit, unit_seconds = _time_unit(np.concatenate([column(run.training, "seconds") for run in runs]))
    by_tokens.set_xlabel(token_label)
    by_time.set_xlabel(f"Training time ({time_unit})")
    by_tokens.set_title("Masked-token loss (nats) against tokens")
    by_time.set_title("Masked-token loss (nats) against training time, excluding evaluations")
    entropies = {run.unigram_entropy for run in runs}
    for axes, key, divisor in ((by_tokens, "tokens", unit_tokens), (by_time, "seconds", unit_seconds)):
        for index, run in enumerate(runs):
            color = run_color(index)
            x = column(run.training, key) / divisor
            _draw_noisy(axes, x, column(run.training, "loss"), color, _line_style(index))
            losses = column(run.evaluations, "eval_loss")
            _draw_validation(axes, column(run.evaluations, key) / divisor, losses, color)
            if run.unigram_entropy is not None:
                line_color = _GREY if len(entropies) == 1 else color
                axes.axhline(run.unigram_entropy, color=line_color, linestyle="--", linewidth=1)
            _mark_faults(axes, run, x, color, height=0.02 + 0.035 * (index % _NUM_MARKER_ROWS))
        _scale_losses(axes)
        axes.set_xlim(left=0)


def _mark_faults(axes: Axes, run: Run, x: Numbers, color: str, height: float) -> None:
    steps = column(run.training, "step")
    for kind, (marker, _) in _FAULT_MARKERS.items():
        fault_steps = [fault["step"] for fault in run.faults if fault.get("kind") == kind]
        if fault_steps:
            fault_x = np.interp(np.array(fault_steps, dtype=np.float64), steps, x)
            axes.plot(
                fault_x,
                np.full(len(fault_x), height),
                linestyle="none",
                marker=marker,
                markersize=6,
                color=color,
                transform=axes.get_xaxis_transform(),
            )


def _draw_metric(axes: Axes, panel: _MetricPanel, runs: list[Run]) -> None:
    token_label, unit_tokens = _token_unit(runs)
    for index, run in enumerate(runs):
        color, style = run_color(index), _line_style(index)
        x = column(run.training, "tokens") / unit_tokens
        values = panel.training(run.training)
        if panel.is_logarithmic:
            values = np.where(values > 0, values, math.nan)
        draw = _draw_noisy if panel.is_noisy else _draw_plain
        draw(axes, x, values, color, style)
        if panel.dashed is not None:
            _draw_plain(axes, x, smooth(panel.dashed(run.training)), color, "--")
        if panel.validation is not None:
            validation_values = column(run.evaluations, panel.validation)
            _draw_validation(axes, column(run.evaluations, "tokens") / unit_tokens, validation_values, color)
    axes.set_title(panel.title)
    axes.set_xlabel(token_label)
    axes.set_xlim(left=0)
    if panel.is_logarithmic:
        _scale_logarithmically(axes, (1.0, 2.0, 5.0))
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(lambda value, _: panel.format_tick(value))


def _draw_noisy(axes: Axes, x: Numbers, y: Numbers, color: str, style: str = "-", label: str | None = None) -> None:
    axes.plot(*downsample(x, y), color=color, alpha=0.22, linewidth=0.6, zorder=1.5)
    _draw_plain(axes, x, smooth(y), color, style, label)


def _draw_plain(axes: Axes, x: Numbers, y: Numbers, color: str, style: str = "-", label: str | None = None) -> None:
    x, y = downsample(x, y)
    marker = "." if len(x) <= _MAX_MARKERS else None
    axes.plot(x, y, color=color, linestyle=style, linewidth=1.3, marker=marker, markersize=4, label=label)


def _draw_validation(axes: Axes, x: Numbers, y: Numbers, color: str, label: str | None = None) -> None:
    x, y = downsample(x, y)
    axes.plot(
        x,
        y,
        color=color,
        linewidth=0.8,
        marker="o",
        markersize=4,
        markerfacecolor="white",
        markevery=max(1, math.ceil(len(x) / _MAX_MARKERS)),
        zorder=3,
        label=label,
    )


def _scale_losses(axes: Axes) -> None:
    low, high = map(float, axes.dataLim.intervaly)
    if low > 0 and high / low > _LOG_SCALE_RATIO:
        _scale_logarithmically(axes, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _scale_logarithmically(axes: Axes, multiples: tuple[float, ...]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=multiples))
    axes.yaxis.set_minor_locator(NullLocator())


def _add_run_legend(figure: Figure, runs: list[Run]) -> None:
    curves = [
        (Line2D([], [], color=run_color(index), linestyle=_line_style(index), linewidth=2), _truncate_start(run.label))
        for index, run in enumerate(runs)
    ]
    line_types = [(Line2D([], [], color=_GREY, linewidth=1.3), "Training, smoothed; faint: logged values")]
    if any(run.evaluations for run in runs):
        validation = Line2D([], [], color=_GREY, linewidth=0.8, marker="o", markersize=4, markerfacecolor="white")
        line_types.append((validation, "Validation"))
    if any(run.unigram_entropy is not None for run in runs):
        line_types.append((Line2D([], [], color=_GREY, linestyle="--", linewidth=1), "Unigram entropy (validation)"))
    fault_kinds = {fault.get("kind") for run in runs for fault in run.faults}
    for kind, (marker, name) in _FAULT_MARKERS.items():
        if kind in fault_kinds:
            line_types.append((Line2D([], [], color=_GREY, linestyle="none", marker=marker, markersize=6), name))
    max_width = _CHARACTERS_PER_INCH * figure.get_figwidth()
    widths = [len(name) + _HANDLE_CHARACTERS for _, name in curves + line_types]
    num_columns = len(widths) if sum(widths) <= max_width else max(1, int(max_width / max(widths)))
    empty_cell = (Line2D([], [], linestyle="none"), "")
    if num_columns < len(widths):  # fills the last row of runs, so that line types start a new row
        curves += [empty_cell] * (-len(curves) % num_columns)
    cells = curves + line_types
    cells += [empty_cell] * (-len(cells) % num_columns)
    # matplotlib fills a legend column by column.
    ordered = [cell for index in range(num_columns) for cell in cells[index::num_columns]]
    handles = [handle for handle, _ in ordered]
    placeholders = [str(index) for index in range(len(ordered))]
    legend = figure.legend(
        handles, placeholders, loc="outside upper left", ncols=num_columns, fontsize=9.5, handlelength=3
    )
    # The texts replace the placeholders, since matplotlib hides labels that start with an underscore and parses dollar
    # signs as formulas.
    for text, (_, name) in zip(legend.get_texts(), ordered, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _line_style(index: int) -> Literal["-", "-.", ":"]:
    return _LINE_STYLES[index // len(_COLORS) % len(_LINE_STYLES)]


def _truncate_start(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_LENGTH else f"...{label[-_MAX_LABEL_LENGTH:]}"


def _token_unit(runs: list[Run]) -> tuple[str, float]:
    max_tokens = _largest(np.concatenate([column(run.training, "tokens") for run in runs]))
    return next(((f"Tokens ({name})", unit) for unit, name in _TOKEN_UNITS if max_tokens >= unit), ("Tokens", 1.0))


def _time_unit(seconds: Numbers) -> tuple[str, float]:
    max_seconds = _largest(seconds)
    if max_seconds > 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if max_seconds > 2 * 60 else ("seconds", 1.0)


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)
