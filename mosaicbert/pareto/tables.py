"""Tables of names, costs and task scores, for the console and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaicbert.console import print_line
from mosaicbert.pareto.measures import PointEstimate
from mosaicbert.pareto.points import Point
from mosaicbert.pareto.selection import Selection
from mosaicbert.scores.statistics import mean_over_tasks, sample_deviation

_NO_VALUE = "-"
_UNITS = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Table of texts, independent of the output format.

    Attributes:
        header: Column titles, which may contain line breaks.
        rows: Cells of each row, which may contain line breaks.
        num_name_columns: Number of left-aligned text columns, before the right-aligned number columns.
    """

    header: list[str]
    rows: list[list[str]]
    num_name_columns: int

    def as_rich(self) -> Table:
        """Convert to a rich table. Square brackets in cells are not interpreted as markup."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for index, name in enumerate(self.header):
            is_name = index < self.num_name_columns
            table.add_column(Text(name), justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def as_markdown(self) -> str:
        rule = ["---" if index < self.num_name_columns else "---:" for index in range(len(self.header))]
        return "".join(f"| {' | '.join(map(_markdown_cell, row))} |\n" for row in (self.header, rule, *self.rows))


def _markdown_cell(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|")


def format_number(value: float) -> str:
    """Format a number with three significant digits and a unit, e.g. "36.7 B"."""
    unit, name = next(((unit, name) for unit, name in _UNITS if value >= unit), (1.0, ""))
    return f"{value / unit:.3g}{name}"


def format_interval(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """Format a value and its confidence interval, e.g. "48.56 [47.85, 49.23]".

    Args:
        value: Value in the interval.
        interval: Lower and upper bound; None without an interval.
        sign: Sign option of the number format, e.g. "+".
    """
    bounds = "" if interval is None else f" [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"
    return f"{value:{sign}.2f}{bounds}"


def name_grid(points: Sequence[Point]) -> Grid:
    """Create the table of series and checkpoints, one row per point.

    The other tables contain only the row number, so that they fit in the width of a terminal.
    """
    rows = [[str(number), point.series, point.name] for number, point in enumerate(points, start=1)]
    return Grid(header=["#", "Series", "Run@step"], rows=rows, num_name_columns=3)


def cost_grid(points: Sequence[Point], frontiers: Mapping[str, Sequence[bool | None]], selection: Selection) -> Grid:
    """Create the table of costs and measures, one row per point.

    Args:
        points: Points in the order of the rows.
        frontiers: Membership of each point in the frontiers, by "h" (hours) and "$" (dollars).
        selection: Averaged scores.
    """
    columns: list[tuple[str, list[str]]] = [
        ("#", [str(number) for number in range(1, len(points) + 1)]),
        ("Hours", [_format_cost(point.hours) for point in points]),
        ("Dollars", [_NO_VALUE if point.dollars is None else _format_cost(point.dollars) for point in points]),
        ("Tokens", [format_number(point.tokens) for point in points]),
        ("FLOPs", [f"{point.pretraining.flops:.3g}" for point in points]),
    ]
    if any(point.loss is not None for point in points):
        columns.append(("Validation\nloss (nats)", [_format_estimate(point.loss) for point in points]))
    if selection.blimp is not None:
        title = "BLiMP\n[95% CI]" + ("\n(partial data)" if selection.is_blimp_partial else "")
        columns.append((title, [_format_estimate(point.blimp) for point in points]))
    if num_tasks := len(selection.variants):
        title = f"Mean of {num_tasks} task{'s' if num_tasks > 1 else ''}\n[95% CI]"
        title += "\n(partial data)" if selection.is_partial else ""
        columns.append((title, [_format_estimate(point.glue) for point in points]))
        signs = [
            " ".join(sign for sign, on_frontier in frontiers.items() if on_frontier[index]) or _NO_VALUE
            for index in range(len(points))
        ]
        columns.append(("Frontier", signs))
    rows = [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)]
    return Grid(header=[title for title, _ in columns], rows=rows, num_name_columns=1)


def _format_estimate(estimate: PointEstimate | None) -> str:
    return _NO_VALUE if estimate is None else format_interval(estimate.value, estimate.interval)


def task_grid(points: Sequence[Point], selection: Selection) -> Grid:
    """Create the table of task scores: mean, standard deviation and number of seeds.

    Args:
        points: Points in the order of the rows.
        selection: Averaged tasks, in the order of the columns.
    """
    header = ["#"]
    for task, variant in selection.variants.items():
        title, _, metrics = selection.label_of(task).partition(" ")
        header.append(f"{title}\n{metrics}" + ("\n(partial)" if variant.is_partial else ""))
    rows = [
        [
            str(number),
            *(_format_seeds(point.values_of(task)) if point.scores else _NO_VALUE for task in selection.variants),
        ]
        for number, point in enumerate(points, start=1)
    ]
    return Grid(header=header, rows=rows, num_name_columns=1)


def print_tables(console: Console, grids: Sequence[Grid], remarks: Sequence[str]) -> None:
    """Print tables, followed by remarks."""
    for grid in grids:
        console.print(grid.as_rich())
    for remark in remarks:
        print_line(console, remark)


def as_markdown(title: str, grids: Sequence[Grid], remarks: Sequence[str]) -> str:
    """Format a title, tables and remarks as a Markdown page."""
    tables = "\n".join(grid.as_markdown() for grid in grids)
    return f"# {title}\n\n{tables}\n" + "".join(f"- {remark}\n" for remark in remarks)


def _format_seeds(seeds: list[float]) -> str:
    deviation = sample_deviation(seeds)
    deviation_text = "" if deviation is None else f"±{deviation:.2f} "
    return f"{mean_over_tasks([seeds]):.2f}\n{deviation_text}({len(seeds)})"


def _format_cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
