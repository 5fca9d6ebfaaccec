"""Command `mosaicbert pareto`: scores of runs against training time and cost, as tables, records and a figure."""

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
    """Print the tables, and write pareto.png, pareto.jsonl and pareto.md. Existing files are replaced.

    Args:
        recipe: Series and tasks of the figure, and the folder of the files.
        console: Console for the tables and the names of the files.

    Returns:
        Path of the figure.

    Raises:
        ConfigError: If a run has no scores, no cost is known, no task can be averaged, or the folder is not writable.
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
    frontiers = {
        sign: [*on_frontier, *(None for _ in baselines)] for sign, on_frontier in find_frontiers(points).items()
    }

    rows = points + [replace(baseline, series=f"{baseline.series}, untrained") for baseline in baselines]
    grids = [name_grid(rows), cost_grid(rows, frontiers, selection), task_grid(rows, selection)]
    caption = explain_figure(points, baselines, selection, config)
    remarks = [*notices, *selection.notices, *caption, *TABLE_REMARKS]
    figure = draw_pareto(
        points,
        PUBLISHED_CURVES if config.reference else (),
        baselines={baseline.series: baseline.average for baseline in baselines},
        labels={name: _legend_label(name, series, points) for name, series in config.series.items()},
        average_name=selection.average_name,
        caption=" ".join([*caption, "Labels: run or step of a point; labels without enough space are omitted."]),
        is_comparable=selection.is_paper_average,
    )
    records = [
        point_record(point, selection, {sign: on_frontier[index] for sign, on_frontier in frontiers.items()})
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
    trained: list[tuple[str, ScoredCheckpoint]] = []
    notices: list[str] = []
    for name, series in config.series.items():
        for run in series.runs:
            checkpoints, skip_notices = exclude_unknown_costs(name, read_checkpoints(run))
            trained += [(name, checkpoint) for checkpoint in checkpoints]
            notices += skip_notices
    if not trained:
        raise ConfigError(
            "`pareto.series` must have a scored checkpoint of known cost, got none. "
            f"{' '.join(notices)} Score a checkpoint that still exists."
        )
    return trained, notices


def _read_untrained(config: ParetoConfig) -> list[tuple[str, ScoredCheckpoint]]:
    folders = {name: series.untrained for name, series in config.series.items() if series.untrained is not None}
    untrained = [(name, checkpoint) for name, folder in folders.items() for checkpoint in read_checkpoints(folder)]
    for name, checkpoint in untrained:
        if checkpoint.step != 1 or checkpoint.pretraining is None:
            raise ConfigError(
                f"`pareto.series.{name}.untrained` must be a scored run of one step, got {checkpoint.name}. "
                "Train a run with train.duration=1steps and score it."
            )
    return untrained


def _legend_label(name: str, series: SeriesConfig, points: Sequence[Point]) -> str:
    series_points = [point for point in points if point.series == name]
    hardware = dict.fromkeys(f"{point.num_devices} x {point.pretraining.device}" for point in series_points)
    label = f"{name}: {' or '.join(hardware)}"
    if series.dollars_per_device_hour is None:
        return label
    suffix = " each" if any(point.num_devices > 1 for point in series_points) else ""
    return f"{label}, ${series.dollars_per_device_hour:.2f}/h{suffix}"


def _write(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error}). Set a different `runs_folder` or `run_name`."
        ) from error
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]
