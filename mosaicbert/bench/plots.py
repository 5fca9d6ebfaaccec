"""Bar chart of a benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mosaicbert.bench.versions import BERT, MODERNBERT, MOSAICBERT
from mosaicbert.report.plots import run_color

_FAMILIES = (MOSAICBERT, BERT, MODERNBERT)
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "text.usetex": False,
}
_ROW_HEIGHT = 0.34  # inches
_DPI = 150


def draw_comparison(records: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Plot the real tokens per second of each version, with the interquartile range.

    Args:
        records: Records of the versions. Those without times are omitted.
        title: Title of the figure.
        path: Path of the PNG file.
    """
    measured = [record for record in records if "error" not in record]
    measured.sort(key=lambda record: record["tokens_per_second"])
    families = [next(family for family in _FAMILIES if record["by"].startswith(f"{family},")) for record in measured]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 1.6 + _ROW_HEIGHT * len(measured)), layout="constrained")
        axes = figure.subplots()
        rates = [record["tokens_per_second"] for record in measured]
        errors = [record["tokens_per_second_iqr"] / 2 for record in measured]
        colors = [run_color(_FAMILIES.index(family)) for family in families]
        axes.barh(range(len(measured)), rates, xerr=errors, color=colors, height=0.7, error_kw={"linewidth": 0.8})
        axes.set_yticks(range(len(measured)), [record["by"] for record in measured])
        for row, (record, error) in enumerate(zip(measured, errors, strict=True)):
            text = f"{record['tokens_per_second']:,}  (time x {record['ratio']:.2f})"
            axes.annotate(
                text, (record["tokens_per_second"] + error, row), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_xlim(0, 1.3 * max(rate + error for rate, error in zip(rates, errors, strict=True)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Real tokens per second (median and interquartile range)")
        axes.set_title(title, parse_math=False)
        handles = [Patch(color=run_color(_FAMILIES.index(family)), label=family) for family in _FAMILIES]
        axes.legend(handles=[handle for handle in handles if handle.get_label() in families], loc="lower right")
        figure.savefig(path, format="png", dpi=_DPI)
