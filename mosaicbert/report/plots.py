"""Runs as pictures: the loss of one against time, and every curve of several in one grid."""

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

from mosaicbert.report.curves import Numbers, column, smooth, thin, wait_share
from mosaicbert.report.runs import Run

# Okabe and Ito 2008, Color Universal Design, without the yellow: distinct for all kinds of colour blindness.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES: tuple[Literal["-", "-.", ":"], ...] = (
    "-",
    "-.",
    ":",
)  # of the first seven runs, the next seven, and so on
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
_COLUMNS = 5  # of small panels
_FEW_POINTS = 25  # so many are drawn as dots, too
_LONGEST_LABEL = 60
_CHARACTERS_PER_INCH = 13  # of the legend
_HANDLE_CHARACTERS = 10  # room for a line and its spaces
_MARK_ROWS = 8  # runs whose marks stand above each other
_LOG_RATIO = 2.5  # losses that span more stand on a logarithmic axis
_TOKEN_UNITS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
_SHORT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_MARKS = {"skipped": ("|", "skipped step"), "rollback": ("v", "rollback")}  # of faults.jsonl's kinds


@dataclass(frozen=True, kw_only=True)
class _MetricPanel:
    """One small graph against tokens.

    Attributes:
        title: what it shows, with its unit.
        training: the values out of the training lines.
        dashed: a second curve, from the same lines.
        held_out: key of the evaluation lines that is drawn with markers.
        noisy: draw the running mean, and the values themselves faintly.
        logarithmic: the values' axis; else it begins at zero.
        tick: writes a value of the axis.
    """

    title: str
    training: Callable[[list[dict[str, Any]]], Numbers]
    dashed: Callable[[list[dict[str, Any]]], Numbers] | None = None
    held_out: str | None = None
    noisy: bool = True
    logarithmic: bool = False
    tick: Callable[[float], str] = "{:,g}".format


def _metric(name: str) -> Callable[[list[dict[str, Any]]], Numbers]:
    return partial(column, name=name)


def _with_unit(value: float) -> str:
    unit, name = next(((unit, name) for unit, name in _SHORT_UNITS if abs(value) >= unit), (1.0, ""))
    return f"{value / unit:g}{name}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


_PANELS = (
    _MetricPanel(title="masked-token accuracy", training=_metric("accuracy"), held_out="eval_accuracy", tick=_percent),
    _MetricPanel(title="gradient norm", training=_metric("grad_norm"), logarithmic=True),
    _MetricPanel(title="real tokens per second", training=_metric("tokens_per_second"), tick=_with_unit),
    _MetricPanel(title="model FLOPs utilisation", training=_metric("mfu"), tick=_percent),
    _MetricPanel(title="loader wait, share of time", training=wait_share, tick=_percent),
    _MetricPanel(title="learning rate", training=_metric("lr"), noisy=False),
    _MetricPanel(title="mask rate", training=_metric("mask_rate"), noisy=False, tick=_percent),
    _MetricPanel(title="global batch (samples)", training=_metric("batch_samples"), noisy=False),
    _MetricPanel(
        title="fill rate; dashed: padding", training=_metric("fill_rate"), dashed=_metric("padding_rate"), tick=_percent
    ),
    _MetricPanel(title="memory (GiB)", training=_metric("memory_gib"), noisy=False),
)


def run_colour(index: int) -> str:
    """The colour of the report's run number `index`, as #rrggbb."""
    return _COLOURS[index % len(_COLOURS)]


def draw_loss(metrics: list[dict[str, Any]], *, unigram_entropy: float, title: str, path: Path) -> None:
    """Draws training and held-out loss against training time, with the unigram entropy as the line to beat.

    Args:
        metrics: the lines of metrics.jsonl.
        unigram_entropy: of the held-out text, nats per token.
        title: of the figure.
        path: of the PNG.
    """
    training = [line for line in metrics if "loss" in line]
    held_out = [line for line in metrics if "eval_loss" in line]
    unit, seconds = _time_unit(column(training, "seconds"))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        times = column(training, "seconds") / seconds
        _draw_noisy(axes, times, column(training, "loss"), _COLOURS[0], label="training")
        if held_out:
            times = column(held_out, "seconds") / seconds
            _draw_held_out(axes, times, column(held_out, "eval_loss"), _COLOURS[1], label="held-out")
        axes.axhline(unigram_entropy, color=_GREY, linestyle="--", linewidth=1, label="unigram entropy, held-out text")
        axes.set_title(title, parse_math=False)
        axes.set_xlabel(f"training time ({unit})")
        axes.set_ylabel("masked-token loss (nats)")
        _scale_losses(axes)
        axes.set_xlim(left=0)
        axes.legend()
        figure.savefig(path, format="png", dpi=_DPI)


def draw_runs(runs: list[Run]) -> bytes:
    """Draws every curve of all runs into one grid, with one legend, and returns the PNG.

    A panel that no run has values for is left out.
    """
    panels = [panel for panel in _PANELS if any(np.isfinite(panel.training(run.training)).any() for run in runs)]
    small_rows = math.ceil(len(panels) / _COLUMNS)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * _COLUMNS, 4.2 + 2.3 * small_rows), layout="constrained")
        grid = figure.add_gridspec(1 + small_rows, 2 * _COLUMNS, height_ratios=[1.6] + [1.0] * small_rows)
        _draw_losses(figure.add_subplot(grid[0, :_COLUMNS]), figure.add_subplot(grid[0, _COLUMNS:]), runs)
        for index, panel in enumerate(panels):
            row, place = divmod(index, _COLUMNS)
            axes = figure.add_subplot(grid[1 + row, 2 * place : 2 * place + 2])
            _draw_metric(axes, panel, runs)
            if index + _COLUMNS < len(panels):  # another one below
                axes.set_xlabel("")
        _add_run_legend(figure, runs)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _draw_losses(by_tokens: Axes, by_time: Axes, runs: list[Run]) -> None:
    token_unit, tokens = _token_unit(runs)
    time_unit, seconds = _time_unit(np.concatenate([column(run.training, "seconds") for run in runs]))
    by_tokens.set_xlabel(token_unit)
    by_time.set_xlabel(f"training time ({time_unit})")
    by_tokens.set_title("masked-token loss (nats) against tokens")
    by_time.set_title("masked-token loss (nats) against training time, without evaluations")
    entropies = {run.unigram_entropy for run in runs}
    for axes, key, divisor in ((by_tokens, "tokens", tokens), (by_time, "seconds", seconds)):
        for index, run in enumerate(runs):
            colour = run_colour(index)
            along = column(run.training, key) / divisor
            _draw_noisy(axes, along, column(run.training, "loss"), colour, _line_style(index))
            held_out = column(run.evaluations, "eval_loss")
            _draw_held_out(axes, column(run.evaluations, key) / divisor, held_out, colour)
            if run.unigram_entropy is not None:
                shade = _GREY if len(entropies) == 1 else colour
                axes.axhline(run.unigram_entropy, color=shade, linestyle="--", linewidth=1)
            _mark_faults(axes, run, along, colour, height=0.02 + 0.035 * (index % _MARK_ROWS))
        _scale_losses(axes)
        axes.set_xlim(left=0)


def _mark_faults(axes: Axes, run: Run, along: Numbers, colour: str, height: float) -> None:
    steps = column(run.training, "step")
    for kind, (marker, _) in _MARKS.items():
        at = [fault["step"] for fault in run.faults if fault.get("kind") == kind]
        if at:
            places = np.interp(np.array(at, dtype=np.float64), steps, along)
            axes.plot(
                places,
                np.full(len(places), height),
                linestyle="none",
                marker=marker,
                markersize=6,
                color=colour,
                transform=axes.get_xaxis_transform(),
            )


def _draw_metric(axes: Axes, panel: _MetricPanel, runs: list[Run]) -> None:
    token_unit, tokens = _token_unit(runs)
    for index, run in enumerate(runs):
        colour, style = run_colour(index), _line_style(index)
        along = column(run.training, "tokens") / tokens
        values = panel.training(run.training)
        if panel.logarithmic:
            values = np.where(values > 0, values, math.nan)
        draw = _draw_noisy if panel.noisy else _draw_plain
        draw(axes, along, values, colour, style)
        if panel.dashed is not None:
            _draw_plain(axes, along, smooth(panel.dashed(run.training)), colour, "--")
        if panel.held_out is not None:
            held_out = column(run.evaluations, panel.held_out)
            _draw_held_out(axes, column(run.evaluations, "tokens") / tokens, held_out, colour)
    axes.set_title(panel.title)
    axes.set_xlabel(token_unit)
    axes.set_xlim(left=0)
    if panel.logarithmic:
        _scale_logarithmically(axes, (1.0, 2.0, 5.0))
    else:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(lambda value, _: panel.tick(value))


def _draw_noisy(axes: Axes, x: Numbers, y: Numbers, colour: str, style: str = "-", label: str | None = None) -> None:
    axes.plot(*thin(x, y), color=colour, alpha=0.22, linewidth=0.6, zorder=1.5)
    _draw_plain(axes, x, smooth(y), colour, style, label)


def _draw_plain(axes: Axes, x: Numbers, y: Numbers, colour: str, style: str = "-", label: str | None = None) -> None:
    x, y = thin(x, y)
    marker = "." if len(x) <= _FEW_POINTS else None
    axes.plot(x, y, color=colour, linestyle=style, linewidth=1.3, marker=marker, markersize=4, label=label)


def _draw_held_out(axes: Axes, x: Numbers, y: Numbers, colour: str, label: str | None = None) -> None:
    x, y = thin(x, y)
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=0.8,
        marker="o",
        markersize=4,
        markerfacecolor="white",
        markevery=max(1, math.ceil(len(x) / _FEW_POINTS)),
        zorder=3,
        label=label,
    )


def _scale_losses(axes: Axes) -> None:
    low, high = map(float, axes.dataLim.intervaly)
    if low > 0 and high / low > _LOG_RATIO:
        _scale_logarithmically(axes, (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _scale_logarithmically(axes: Axes, multiples: tuple[float, ...]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=multiples))
    axes.yaxis.set_minor_locator(NullLocator())


def _add_run_legend(figure: Figure, runs: list[Run]) -> None:
    curves = [
        (Line2D([], [], color=run_colour(index), linestyle=_line_style(index), linewidth=2), _truncate_start(run.label))
        for index, run in enumerate(runs)
    ]
    meanings = [(Line2D([], [], color=_GREY, linewidth=1.3), "training, smoothed; faint: each step")]
    if any(run.evaluations for run in runs):
        held_out = Line2D([], [], color=_GREY, linewidth=0.8, marker="o", markersize=4, markerfacecolor="white")
        meanings.append((held_out, "held-out"))
    if any(run.unigram_entropy is not None for run in runs):
        meanings.append((Line2D([], [], color=_GREY, linestyle="--", linewidth=1), "unigram entropy, held-out text"))
    found = {fault.get("kind") for run in runs for fault in run.faults}
    for kind, (marker, name) in _MARKS.items():
        if kind in found:
            meanings.append((Line2D([], [], color=_GREY, linestyle="none", marker=marker, markersize=6), name))
    room = _CHARACTERS_PER_INCH * figure.get_figwidth()
    widths = [len(name) + _HANDLE_CHARACTERS for _, name in curves + meanings]
    columns = len(widths) if sum(widths) <= room else max(1, int(room / max(widths)))
    nothing = (Line2D([], [], linestyle="none"), "")
    if columns < len(widths):  # the runs in rows of their own
        curves += [nothing] * (-len(curves) % columns)
    cells = curves + meanings
    cells += [nothing] * (-len(cells) % columns)
    ordered = [cell for place in range(columns) for cell in cells[place::columns]]  # a legend is filled by column
    handles = [handle for handle, _ in ordered]
    numbers = [str(index) for index in range(len(ordered))]
    legend = figure.legend(handles, numbers, loc="outside upper left", ncols=columns, fontsize=9.5, handlelength=3)
    # Set afterwards: as labels, a leading underscore would hide a run and a dollar sign would begin a formula.
    for text, (_, name) in zip(legend.get_texts(), ordered, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _line_style(index: int) -> Literal["-", "-.", ":"]:
    return _LINE_STYLES[index // len(_COLOURS) % len(_LINE_STYLES)]


def _truncate_start(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"...{label[-_LONGEST_LABEL:]}"


def _token_unit(runs: list[Run]) -> tuple[str, float]:
    most = _largest(np.concatenate([column(run.training, "tokens") for run in runs]))
    return next(((f"tokens ({name})", unit) for unit, name in _TOKEN_UNITS if most >= unit), ("tokens", 1.0))


def _time_unit(seconds: Numbers) -> tuple[str, float]:
    longest = _largest(seconds)
    if longest > 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if longest > 2 * 60 else ("seconds", 1.0)


def _largest(values: Iterable[float]) -> float:
    return max((value for value in values if math.isfinite(value)), default=0.0)
