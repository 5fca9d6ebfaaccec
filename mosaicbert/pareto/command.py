"""Command `mosaicbert pareto`: loss and scores of runs against training time, as tables, records and a figure."""

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
    Baseline,
    Point,
    describe_unequal_seeds,
    exclude_unknown_costs,
    find_frontiers,
    make_point,
    point_record,
)
from mosaicbert.pareto.remarks import describe_baselines, explain_figure, explain_tables
from mosaicbert.pareto.selection import Selection, select_scores
from mosaicbert.pareto.tables import as_markdown, cost_grid, name_grid, print_tables, task_grid
from mosaicbert.scores.statistics import mean_over_tasks


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

    checkpoints, untrained_checkpoints = (
        [checkpoint for _, group in groups for checkpoint in group] for groups in (trained, untrained)
    )
    selection = select_scores(
        checkpoints, config.tasks, config.init_from_mnli, config.metrics, untrained=untrained_checkpoints
    )
    untrained_selection = replace(selection, variants=selection.untrained_variants)
    points, untrained_points = (
        [make_point(name, config.series[name], group, group_selection) for name, group in groups]
        for groups, group_selection in ((trained, selection), (untrained, untrained_selection))
    )
    if not any(point.loss or point.blimp or point.glue for point in points):
        names = ", ".join(point.name for point in points)
        raise ConfigError(
            f"`pareto.series` must have a point with a validation loss, complete BLiMP scores or GLUE scores, got "
            f"{names}. Score a run with `mosaicbert glue` or `mosaicbert blimp`."
        )
    notices += describe_outdated_scores(checkpoints + untrained_checkpoints) + selection.notices
    notices += describe_unequal_seeds(points + untrained_points)
    baselines = [*map(_untrained_baseline, untrained_points), *_read_baselines(config, selection)]
    frontiers = {
        sign: [*on_frontier, *(None for _ in untrained_points)] for sign, on_frontier in find_frontiers(points).items()
    }

    rows = points + [replace(point, series=f"{point.series}, random weights") for point in untrained_points]
    grids = [name_grid(rows), cost_grid(rows, frontiers, selection)]
    if selection.variants:
        grids.append(task_grid(rows, selection))
    caption = explain_figure(points, untrained_points, selection, config)
    remarks = [*notices, *caption, *describe_baselines(baselines, selection), *explain_tables(selection)]
    figure = draw_pareto(
        points,
        PUBLISHED_CURVES if config.reference else (),
        baselines=baselines,
        labels={name: _legend_label(name, series, points) for name, series in config.series.items()},
        average_name=selection.average_name,
        caption=" ".join([*caption, "Labels: run or step of a point; labels without enough space are omitted."]),
        is_comparable=selection.is_paper_average,
    )
    selections = [*(selection for _ in points), *(untrained_selection for _ in untrained_points)]
    records = [
        point_record(point, selections[index], {sign: on_frontier[index] for sign, on_frontier in frontiers.items()})
        | {"is_untrained": index >= len(points)}
        for index, point in enumerate(points + untrained_points)
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


_Group = tuple[str, list[ScoredCheckpoint]]  # name of the series, and checkpoints that differ in the pretraining seed


def _read_trained(config: ParetoConfig) -> tuple[list[_Group], list[str]]:
    groups: list[_Group] = []
    notices: list[str] = []
    for name, series in config.series.items():
        for run in series.runs:
            checkpoints, skip_notices = exclude_unknown_costs(name, read_checkpoints(run, config.metrics))
            notices += skip_notices
            repeats = series.repeats.get(run, [])
            if not repeats:
                groups += [(name, [checkpoint]) for checkpoint in checkpoints]
                continue
            group = list(checkpoints)
            for repeat in repeats:
                checkpoints, skip_notices = exclude_unknown_costs(name, read_checkpoints(repeat, config.metrics))
                group += checkpoints
                notices += skip_notices
            if len(group) != 1 + len(repeats) or len({checkpoint.folder for checkpoint in group}) < len(group):
                names = ", ".join(checkpoint.name for checkpoint in group)
                raise ConfigError(
                    f"`pareto.series.{name}.repeats` must have runs with one scored checkpoint each, got {names}. "
                    "Score the newest checkpoint of each run."
                )
            groups.append((name, group))
    if not groups:
        raise ConfigError(
            "`pareto.series` must have a scored checkpoint of known cost, got none. "
            f"{' '.join(notices)} Score a checkpoint that still exists."
        )
    return groups, notices


def _read_untrained(config: ParetoConfig) -> list[_Group]:
    folders = {name: series.untrained for name, series in config.series.items() if series.untrained is not None}
    untrained = [
        (name, checkpoint)
        for name, folder in folders.items()
        for checkpoint in read_checkpoints(folder, config.metrics)
    ]
    for name, checkpoint in untrained:
        if checkpoint.step != 1 or checkpoint.pretraining is None:
            raise ConfigError(
                f"`pareto.series.{name}.untrained` must be a scored run of one step, got {checkpoint.name}. "
                "Train a run with train.duration=1steps and score it."
            )
    return [(name, [checkpoint]) for name, checkpoint in untrained]


def _untrained_baseline(point: Point) -> Baseline:
    loss, blimp, glue = (
        None if estimate is None else estimate.value for estimate in (point.loss, point.blimp, point.glue)
    )
    return Baseline(series=point.series, loss=loss, blimp=blimp, glue=glue)


def _read_baselines(config: ParetoConfig, selection: Selection) -> list[Baseline]:
    baselines: list[Baseline] = []
    for label, folder in config.baselines.items():
        checkpoint = read_checkpoints(folder, config.metrics)[-1]
        missing = [task for task in selection.variants if task not in checkpoint.scores]
        if missing:
            raise ConfigError(
                f"`pareto.baselines.{label}` must have a score of every averaged task, got none of "
                f"{', '.join(missing)}. Score these tasks."
            )
        tasks = [
            [value for seeds in checkpoint.scores[task].values() for value in seeds.values()]
            for task in selection.variants
        ]
        baselines.append(Baseline(series=None, label=label, glue=mean_over_tasks(tasks) if tasks else None))
    return baselines


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
