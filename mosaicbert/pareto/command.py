"""The command `pareto`: runs' scores against their time and money, and whether one is better than another."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe, SeriesConfig
from mosaicbert.pareto.paper_points import REFERENCES
from mosaicbert.pareto.plots import as_png, draw_pareto
from mosaicbert.pareto.points import (
    Checkpoint,
    Point,
    Selection,
    find_frontier,
    find_outdated,
    find_uneven_seeds,
    leave_out_unknown_costs,
    make_point,
    read_checkpoints,
    select_tasks,
)
from mosaicbert.pareto.tables import Grid, cost_grid, describe_interval, explain, explain_chain, name_grid, task_grid
from mosaicbert.scores.statistics import SIGNIFICANCE, PairedTest, deviation_of, interval_of, mean_of, paired_test

_FILES = ("pareto.png", "pareto.jsonl", "pareto.md")
_TABLE_REMARKS = (
    "Frontier, h of hours and $ of dollars: no other point is better without costing more, or cheaper without scoring "
    "less.",
    "Tasks: mean ± standard deviation (number of seeds).",
    "Hours hold on the devices that were used, tokens and FLOPs on any.",
)


def pareto(recipe: ParetoRecipe, console: Console) -> Path:
    """Prints the frontier and writes pareto.png, pareto.jsonl and pareto.md into the recipe's folder.

    Returns:
        The path of the figure. Older files are replaced.

    Raises:
        ConfigError: a run has no scores or unknown costs, no task can be averaged, or the folder cannot be written.
    """
    config = recipe.pareto
    found, notices = _read(config)
    untrained = _read_untrained(config)
    checkpoints = [checkpoint for _, checkpoint in (*found, *untrained)]
    selection = select_tasks(checkpoints, config.tasks, config.chain)
    points, floors = (
        [make_point(name, config.series[name], checkpoint, selection) for name, checkpoint in which]
        for which in (found, untrained)
    )
    notices += find_outdated(checkpoints) + find_uneven_seeds(points + floors)
    frontiers = {sign: [*marks, *(None for _ in floors)] for sign, marks in _frontiers(points).items()}
    shown = points + [replace(floor, series=f"{floor.series}, untrained") for floor in floors]
    grids = [name_grid(shown), cost_grid(shown, frontiers, selection), task_grid(shown, selection)]
    caption = _caption(points, floors, selection, config)
    remarks = [*notices, *selection.notices, *caption, *_TABLE_REMARKS]
    figure = draw_pareto(
        points,
        REFERENCES if config.reference else (),
        floors={floor.series: floor.average for floor in floors},
        labels={name: _label(name, one, points) for name, one in config.series.items()},
        measure=selection.measure,
        caption=" ".join([*caption, "Beside the points, where there is room: what tells a series' points apart."]),
        is_comparable=selection.is_the_papers,
    )
    lines = [
        _line(point, selection, {name: marks[index] for name, marks in frontiers.items()})
        | {"is_untrained": point in floors}
        for index, point in enumerate(points + floors)
    ]
    markdown = _markdown(recipe.run_name, selection, grids, remarks)
    contents = (as_png(figure), "".join(json.dumps(line) + "\n" for line in lines).encode(), markdown.encode())
    _print(console, grids, remarks)
    return _write(recipe.run_folder, contents, console)


def compare(recipe: ParetoRecipe, first: str, second: str, console: Console) -> PairedTest:
    """Says whether one checkpoint is better than another, by a paired test over tasks and seeds.

    Args:
        recipe: its tasks are compared; all that both have, if it names none.
        first: a folder with scores, or folder@STEP; without a step its newest.
        second: likewise.
        console: where the answer goes.

    Raises:
        ConfigError: a checkpoint has no scores, both are the same, or no task and seed is common to both.
    """
    pair = [_find(name) for name in (first, second)]
    if pair[0].step == pair[1].step and Path(pair[0].folder).resolve() == Path(pair[1].folder).resolve():
        raise ConfigError(f"--compare {first} {second}: both are {pair[0].name}; name two checkpoints.")
    selection = select_tasks(pair, recipe.pareto.tasks, recipe.pareto.chain)
    notices = [*find_outdated(pair), *selection.notices]
    paired: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    for task, variant in selection.variants.items():
        of_first, of_second = (one.scores[task][variant] for one in pair)
        seeds = [seed for seed in of_first if seed in of_second]
        if alone := len(of_first) + len(of_second) - 2 * len(seeds):
            notices.append(f"{TASKS[task].title}: {alone} score(s) without a partner of the same seed are not used.")
        if seeds:
            paired[task] = {seed: of_first[seed] for seed in seeds}, {seed: of_second[seed] for seed in seeds}
    if not paired:
        raise ConfigError(f"--compare {first} {second}: no seed of a task is common to both; score both with the same.")
    selection = Selection(variants={task: selection.variants[task] for task in paired}, notices=notices)
    test = paired_test([_differences(*scores) for scores in paired.values()])
    tested = [list(paired)[index] for index in test.tested]
    console.print(f"A: {pair[0].name}\nB: {pair[1].name}", markup=False, highlight=False, soft_wrap=True)
    remarks = _test_remarks(test, tested, selection)
    _print(console, [_comparison_grid(paired, test, tested, selection)], notices + remarks)
    answer = _judge(test, paired, selection.measure)
    console.print(answer, markup=False, highlight=False, soft_wrap=True)
    return test


def _read(config: ParetoConfig) -> tuple[list[tuple[str, Checkpoint]], list[str]]:
    found: list[tuple[str, Checkpoint]] = []
    notices: list[str] = []
    for name, series in config.series.items():
        for run in series.runs:
            known, left_out = leave_out_unknown_costs(name, read_checkpoints(run))
            found += [(name, checkpoint) for checkpoint in known]
            notices += left_out
    if not found:
        raise ConfigError(
            f"pareto.series: no point is left. {' '.join(notices)} Score a checkpoint that is still there."
        )
    return found, notices


def _read_untrained(config: ParetoConfig) -> list[tuple[str, Checkpoint]]:
    named = [(name, series.untrained) for name, series in config.series.items()]
    found = [(name, checkpoint) for name, run in named if run is not None for checkpoint in read_checkpoints(run)]
    for name, checkpoint in found:
        if checkpoint.step != 1 or checkpoint.pretraining is None:
            raise ConfigError(
                f"pareto.series.{name}.untrained: {checkpoint.name} is not of a run of one step whose cost is known; "
                "make one with train.duration=1steps, whose weights are almost as they were drawn, and score it."
            )
    return found


def _frontiers(points: Sequence[Point]) -> dict[str, list[bool | None]]:
    averages = [point.average for point in points]
    by_hours: list[bool | None] = [*find_frontier([point.hours for point in points], averages)]
    priced = [index for index, point in enumerate(points) if point.dollars is not None]
    dollars = [point.dollars for point in points if point.dollars is not None]
    marks = dict(zip(priced, find_frontier(dollars, [averages[index] for index in priced]), strict=True))
    return {"h": by_hours, "$": [marks.get(index) for index in range(len(points))]}


def _caption(points: Sequence[Point], floors: Sequence[Point], selection: Selection, config: ParetoConfig) -> list[str]:
    count = len(selection.variants)
    found = [f"Score: {'mean of ' if count > 1 else ''}{', '.join(TASKS[task].label for task in selection.variants)}."]
    found += explain([point.scores for point in (*points, *floors)], selection)
    if floors:
        found.append("Untrained: the same model from random weights, after one step; it has no part in the frontier.")
    has_prices = any(point.dollars is not None for point in points)
    unpriced = [name for name, series in config.series.items() if series.dollars_per_device_hour is None]
    if has_prices and unpriced:
        found.append(f"Without a price: {', '.join(unpriced)}.")
    devices = list(dict.fromkeys(point.pretraining.device for point in points))
    if len(devices) > 1:
        named = "; ".join(devices)
        found.append(f"Hours are of different devices ({named}) and do not compare; see dollars and FLOPs.")
    if config.reference:
        price = f", at ${REFERENCES[0].dollars_per_device_hour:.2f} per device-hour" if has_prices else ""
        differ = "" if selection.is_the_papers else ", some begun with MNLI: their heights do not compare with ours"
        found.append(
            f"The paper's points are read off its figure{price}; they have no part in the frontier. They average "
            f"{len(TASKS)} tasks{differ}."
        )
    return found


def _label(name: str, series: SeriesConfig, points: Sequence[Point]) -> str:
    """The series, and what its hours and dollars are of."""
    own = [point for point in points if point.series == name]
    used = dict.fromkeys(f"{point.devices} x {point.pretraining.device}" for point in own)
    price = series.dollars_per_device_hour
    priced = "" if price is None else f", ${price:.2f}/h{' each' if any(point.devices > 1 for point in own) else ''}"
    return f"{name}: {' or '.join(used)}{priced}"


def _line(point: Point, selection: Selection, marks: Mapping[str, bool | None]) -> dict[str, Any]:
    return {
        "series": point.series,
        "run": point.folder,
        "step": point.step,
        "device": point.pretraining.device,
        "devices": point.devices,
        "hours": point.hours,
        "dollars": point.dollars,
        "steps": point.pretraining.steps,
        "tokens": point.pretraining.tokens,
        "flops": point.pretraining.flops,
        "average": point.average,
        "ci_low": point.interval[0] if point.interval else None,
        "ci_high": point.interval[1] if point.interval else None,
        "num_tasks": len(selection.variants),
        "tasks": {
            task: _task_line(task, list(point.scores[task].values())) | asdict(variant)
            for task, variant in selection.variants.items()
        },
        "on_frontier_hours": marks["h"],
        "on_frontier_dollars": marks["$"],
    }


def _task_line(task: str, seeds: list[float]) -> dict[str, Any]:
    interval = interval_of([seeds])
    return {
        "metrics": list(TASKS[task].metrics),
        "mean": mean_of([seeds]),
        "std": deviation_of(seeds),
        "ci_low": interval[0] if interval else None,
        "ci_high": interval[1] if interval else None,
        "num_seeds": len(seeds),
    }


def _markdown(title: str, selection: Selection, grids: Sequence[Grid], remarks: Sequence[str]) -> str:
    tables = "\n".join(grid.as_markdown() for grid in grids)
    return f"# {title}: {selection.measure}\n\n{tables}\n" + "".join(f"- {remark}\n" for remark in remarks)


def _print(console: Console, grids: Sequence[Grid], remarks: Sequence[str]) -> None:
    for grid in grids:
        console.print(grid.as_rich())
    for remark in remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def _write(folder: Path, contents: Sequence[bytes], console: Console) -> Path:
    paths = [folder / name for name in _FILES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            partial = path.with_name(path.name + ".partial")
            partial.write_bytes(content)
            partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error}); choose another runs_folder or run_name.") from error
    for path in paths:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return paths[0]


def _find(name: str) -> Checkpoint:
    folder, at, step = name.rpartition("@")
    if not (at and step.isdecimal()) or Path(name).is_dir():
        return read_checkpoints(name)[-1]
    checkpoints = read_checkpoints(folder)
    found = [checkpoint for checkpoint in checkpoints if checkpoint.step == int(step)]
    if not found:
        scored = ", ".join("none" if checkpoint.step is None else str(checkpoint.step) for checkpoint in checkpoints)
        raise ConfigError(f"{name}: step {step} has not been scored; of {folder} there are {scored}.")
    return found[0]


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    return [first[seed] - second[seed] for seed in first]


def _comparison_grid(
    paired: Mapping[str, tuple[dict[int, float], dict[int, float]]],
    test: PairedTest,
    tested: Sequence[str],
    selection: Selection,
) -> Grid:
    rows: list[list[str]] = []
    for task, (first, second) in paired.items():
        alone = paired_test([_differences(first, second)])
        name = TASKS[task].label + (" (partial)" if selection.variants[task].is_partial else "")
        rows.append(_comparison_row(name, [(first, second)], alone.interval))
    is_all = len(tested) == len(paired)
    rows.append(_comparison_row(selection.measure, list(paired.values()), test.interval if is_all else None))
    if tested and not is_all:
        name = f"of them the {len(tested)} with several pairs"
        rows.append(_comparison_row(name, [paired[task] for task in tested], test.interval))
    return Grid(header=["task", "A", "B", "A - B [95%]", "pairs"], rows=rows, num_names=1)


def _comparison_row(
    name: str, tasks: Sequence[tuple[dict[int, float], dict[int, float]]], interval: tuple[float, float] | None
) -> list[str]:
    first, second = (mean_of([list(scores[side].values()) for scores in tasks]) for side in (0, 1))
    num_pairs = sum(len(scores) for scores, _ in tasks)
    return [name, f"{first:.2f}", f"{second:.2f}", describe_interval(first - second, interval, "+"), str(num_pairs)]


def _judge(test: PairedTest, paired: Mapping[str, tuple[dict[int, float], dict[int, float]]], measure: str) -> str:
    """The answer to whether A is better than B, and of which tasks it is."""
    if test.p_value is None and test.is_without_scatter:
        return "Nothing to test: the seeds of each task all differ by the same, so chance has no measure."
    if test.p_value is None:
        return (
            "Too few seeds to tell: how far scores scatter by chance is not known from "
            f"{test.num_pairs or 'no'} pair(s) in tasks that have two or more; score with more seeds."
        )
    p = f"p {_describe_p(test.p_value)}"
    is_all = len(test.tested) == len(paired)
    where = "" if is_all else f" on the {len(test.tested)} tested of {len(paired)} tasks"
    if test.p_value >= SIGNIFICANCE:
        return f"No difference shown{where}: {test.difference:+.2f} could be chance ({p})."
    better, worse = ("A", "B") if test.difference > 0 else ("B", "A")
    answer = f"{better} is better than {worse}{where}: by {abs(test.difference):.2f} ({p})."
    whole = mean_of([_differences(*scores) for scores in paired.values()])
    if whole * test.difference >= 0:
        return answer
    return f"{answer} But the {measure}, untested ones included, is {abs(whole):.2f} in favour of {worse}."


def _test_remarks(test: PairedTest, tested: Sequence[str], selection: Selection) -> list[str]:
    found: list[str] = []
    if test.p_value is not None:
        found.append(
            f"Test: {test.num_pairs} pairs of the same task and seed, {len(tested)} task(s), paired t-test stratified "
            f"by task, two-sided: p {_describe_p(test.p_value)}. It takes the scatter for normally distributed."
        )
    single = [TASKS[task].title for task in selection.variants if task not in tested]
    if single:
        found.append(f"Not tested, having a single pair: {', '.join(single)}.")
    found += explain_chain(selection)
    found.append(
        "This is about these two checkpoints under other fine-tuning seeds, not about their recipes under other "
        "pretraining seeds."
    )
    return found


def _describe_p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"
