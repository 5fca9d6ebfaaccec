"""Tables of names, costs and tasks, for the console and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import TASKS
from mosaicbert.console import print_line
from mosaicbert.pareto.points import Point
from mosaicbert.pareto.selection import Selection
from mosaicbert.scores.statistics import mean_over_tasks, sample_deviation

_UNITS = ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k"))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table before it is printed: cells may hold line breaks; the first `num_names` columns are names."""

    header: list[str]
    rows: list[list[str]]
    num_name_columns: int

    def as_rich(self) -> Table:
        """For a console. Brackets in names are no markup."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
        for index, name in enumerate(self.header):
            is_name = index < self.num_name_columns
            table.add_column(Text(name), justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def as_markdown(self) -> str:
        rule = ["---" if index < self.num_name_columns else "---:" for index in range(len(self.header))]
        return "".join(f"| {' | '.join(map(_flat, row))} |\n" for row in (self.header, rule, *self.rows))


def _flat(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|")


def format_number(value: float) -> str:
    """Three digits and a unit: 36.7 B."""
    unit, name = next(((unit, name) for unit, name in _UNITS if value >= unit), (1.0, ""))
    return f"{value / unit:.3g}{name}"


def format_interval(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    """A value with its ends, if there are any."""
    ends = "" if interval is None else f" [{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"
    return f"{value:{sign}.2f}{ends}"


def name_grid(points: Sequence[Point]) -> Grid:
    """One row per point; the tables below have its number alone, to be no wider than a terminal."""
    rows = [[str(number), point.series, point.name] for number, point in enumerate(points, start=1)]
    return Grid(header=["#", "series", "run@step"], rows=rows, num_name_columns=3)


def cost_grid(points: Sequence[Point], frontiers: Mapping[str, Sequence[bool | None]], selection: Selection) -> Grid:
    """One row per point.

    Args:
        points: in the order of the rows.
        frontiers: whether each point is on one, by the sign of what is paid: h, $.
        selection: what is averaged.
    """
    rows = [
        [
            str(number),
            _digits(point.hours),
            "-" if point.dollars is None else _digits(point.dollars),
            format_number(point.pretraining.tokens),
            f"{point.pretraining.flops:.3g}",
            format_interval(point.average, point.interval),
            " ".join(sign for sign, marks in frontiers.items() if marks[number - 1]) or "-",
        ]
        for number, point in enumerate(points, start=1)
    ]
    count = len(selection.variants)
    average = f"mean of {count} task{'s' if count > 1 else ''}\n[95%]{', partial data' if selection.is_partial else ''}"
    header = ["#", "hours", "dollars", "tokens", "FLOPs", average, "frontier"]
    return Grid(header=header, rows=rows, num_name_columns=1)


def task_grid(points: Sequence[Point], selection: Selection) -> Grid:
    """One row per point, one column per task: mean, standard deviation and number of seeds."""
    header = ["#"]
    for task, variant in selection.variants.items():
        title, _, metrics = TASKS[task].label.partition(" ")
        header.append(f"{title}\n{metrics}" + ("\n(partial)" if variant.is_partial else ""))
    rows = [
        [str(number), *(_describe_seeds(list(point.scores[task].values())) for task in selection.variants)]
        for number, point in enumerate(points, start=1)
    ]
    return Grid(header=header, rows=rows, num_name_columns=1)


def print_tables(console: Console, grids: Sequence[Grid], remarks: Sequence[str]) -> None:
    """Print tables, and remarks below them."""
    for grid in grids:
        console.print(grid.as_rich())
    for remark in remarks:
        print_line(console, remark)


def as_markdown(title: str, grids: Sequence[Grid], remarks: Sequence[str]) -> str:
    """Write tables and remarks as a Markdown page."""
    tables = "\n".join(grid.as_markdown() for grid in grids)
    return f"# {title}\n\n{tables}\n" + "".join(f"- {remark}\n" for remark in remarks)


def _describe_seeds(seeds: list[float]) -> str:
    deviation = sample_deviation(seeds)
    spread = "" if deviation is None else f"±{deviation:.2f} "
    return f"{mean_over_tasks([seeds]):.2f}\n{spread}({len(seeds)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
