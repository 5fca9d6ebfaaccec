"""`mosaicbert pareto`: scores of runs against their time and money, as tables, records and a figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mosaicbert.config import ConfigError
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe, SeriesConfig
from mosaicbert.console import print_line
from mosaicbert.filesystem import write_file
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, describe_outdated_scores, read_checkpoints
from mosaicbert.pareto.paper_points import PUBLISHED_CURVES
from mosaicbert.pareto.plots import as_png, draw_pareto
from mosaicbert.pareto.points import (
    Point,
    describe_unequal_seeds,
    exclude_unknown_costs,
    find_frontiers,
    make_point,
    point_record,
)
from mosaicbert.pareto.remarks import TABLE_REMARKS, explain_figure
from mosaicbert.pareto.selection import select_tasks
from mosaicbert.pareto.tables import as_markdown, cost_grid, name_grid, print_tables, task_grid


def pareto(recipe: ParetoRecipe, console: Console) -> Path:
    """Print the frontier, and write pareto.png, pareto.jsonl and pareto.md to the folder of the recipe.

    Returns:
        Path of the figure. Older files are replaced.

    Raises:
        ConfigError: If a run has no scores or unknown costs, no task can be averaged, or the folder cannot be written.
    """
    config = recipe.pareto
    trained, notices = _read_trained(config)
    untrained = _read_untrained(config)

    checkpoints = [checkpoint for _, checkpoint in (*trained, *untrained)]
    selection = select_tasks(checkpoints, config.tasks, config.init_from_mnli)
    points, baselines = (
        [make_point(name, config.series[name], checkpoint, selection) for name, checkpoint in pairs]
        for pairs in (trained, untrained)
    )
    notices += describe_outdated_scores(checkpoints) + describe_unequal_seeds(points + baselines)
    frontiers = {sign: [*marks, *(None for _ in baselines)] for sign, marks in find_frontiers(points).items()}

    rows = points + [replace(baseline, series=f"{baseline.series}, untrained") for baseline in baselines]
    grids = [name_grid(rows), cost_grid(rows, frontiers, selection), task_grid(rows, selection)]
    caption = explain_figure(points, baselines, selection, config)
    remarks = [*notices, *selection.notices, *caption, *TABLE_REMARKS]
    figure = draw_pareto(
        points,
        PUBLISHED_CURVES if config.reference else (),
        baselines={baseline.series: baseline.average for baseline in baselines},
        labels={name: _label(name, series, points) for name, series in config.series.items()},
        average_name=selection.average_name,
        caption=" ".join([*caption, "Beside the points, where there is room: what tells a series' points apart."]),
        is_comparable=selection.is_paper_average,
    )
    records = [
        point_record(point, selection, {sign: marks[index] for sign, marks in frontiers.items()})
        | {"is_untrained": point in baselines}
        for index, point in enumerate(points + baselines)
    ]
    contents = {
        "pareto.png": as_png(figure),
        "pareto.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode(),
        "pareto.md": as_markdown(f"{recipe.run_name}: {selection.average_name}", grids, remarks).encode(),
    }

    print_tables(console, grids, remarks)
    paths = _write(recipe.run_folder, contents)
    for path in paths:
        print_line(console, str(path))
    return paths[0]


def _read_trained(config: ParetoConfig) -> tuple[list[tuple[str, ScoredCheckpoint]], list[str]]:
    found: list[tuple[str, ScoredCheckpoint]] = []
    notices: list[str] = []
    for name, series in config.series.items():
        for run in series.runs:
            known, left_out = exclude_unknown_costs(name, read_checkpoints(run))
            found += [(name, checkpoint) for checkpoint in known]
            notices += left_out
    if not found:
        raise ConfigError(
            f"pareto.series: no point is left. {' '.join(notices)} Score a checkpoint that is still there."
        )
    return found, notices


def _read_untrained(config: ParetoConfig) -> list[tuple[str, ScoredCheckpoint]]:
    named = [(name, series.untrained) for name, series in config.series.items()]
    found = [(name, checkpoint) for name, run in named if run is not None for checkpoint in read_checkpoints(run)]
    for name, checkpoint in found:
        if checkpoint.step != 1 or checkpoint.pretraining is None:
            raise ConfigError(
                f"pareto.series.{name}.untrained: {checkpoint.name} is not of a run of one step whose cost is known; "
                "make one with train.duration=1steps, whose weights are almost as they were drawn, and score it."
            )
    return found


def _label(name: str, series: SeriesConfig, points: Sequence[Point]) -> str:
    """The series, and what its hours and dollars are of."""
    own = [point for point in points if point.series == name]
    used = dict.fromkeys(f"{point.num_devices} x {point.pretraining.device}" for point in own)
    price = series.dollars_per_device_hour
    priced = (
        "" if price is None else f", ${price:.2f}/h{' each' if any(point.num_devices > 1 for point in own) else ''}"
    )
    return f"{name}: {' or '.join(used)}{priced}"


def _write(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); choose another runs_folder or run_name.") from error
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]
