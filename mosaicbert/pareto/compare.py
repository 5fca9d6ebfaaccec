"""Command `mosaicbert pareto --compare`: paired test of two checkpoints over tasks and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import ParetoRecipe
from mosaicbert.console import print_line
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, describe_outdated_scores, find_checkpoint
from mosaicbert.pareto.remarks import explain_initialization
from mosaicbert.pareto.selection import Selection, select_tasks
from mosaicbert.pareto.tables import Grid, format_interval, print_tables
from mosaicbert.scores.statistics import SIGNIFICANCE_LEVEL, PairedTest, mean_over_tasks, paired_test

_PairedScores = Mapping[str, tuple[dict[int, float], dict[int, float]]]  # scores of A and B by seed, grouped by task


def compare(recipe: ParetoRecipe, first: str, second: str, console: Console) -> PairedTest:
    """Test whether one checkpoint is better than another, and print the result.

    Args:
        recipe: Recipe with the tasks to compare; without tasks, all common tasks are compared.
        first: Folder with a scores.jsonl, or FOLDER@STEP. Without a step, the newest checkpoint is selected.
        second: Second checkpoint, in the same format.
        console: Console for the table and the result.

    Returns:
        Result of the paired test.

    Raises:
        ConfigError: If a checkpoint has no scores, both checkpoints are the same, or no task has a common seed.
    """
    checkpoints = [find_checkpoint(name) for name in (first, second)]
    folders = [Path(checkpoint.folder).resolve() for checkpoint in checkpoints]
    if checkpoints[0].step == checkpoints[1].step and folders[0] == folders[1]:
        raise ConfigError(
            f"`--compare` must be two different checkpoints, got {checkpoints[0].name} twice. Change one of them."
        )
    selection = select_tasks(checkpoints, recipe.pareto.tasks, recipe.pareto.init_from_mnli)
    paired, unpaired_notices = _pair_scores(checkpoints[0], checkpoints[1], selection)
    notices = [*describe_outdated_scores(checkpoints), *selection.notices, *unpaired_notices]
    if not paired:
        raise ConfigError(
            f"The checkpoints of `--compare` must have a common seed of a task, got {first} and {second}. "
            "Score both with the same seeds."
        )
    selection = Selection(variants={task: selection.variants[task] for task in paired}, notices=notices)
    test = paired_test([_differences(*scores) for scores in paired.values()])
    tested = [list(paired)[index] for index in test.tested_tasks]
    print_line(console, f"A: {checkpoints[0].name}\nB: {checkpoints[1].name}")
    remarks = _test_remarks(test, tested, selection)
    print_tables(console, [_comparison_grid(paired, test, tested, selection)], notices + remarks)
    print_line(console, _describe_result(test, paired, selection.average_name))
    return test


def _pair_scores(
    first: ScoredCheckpoint, second: ScoredCheckpoint, selection: Selection
) -> tuple[_PairedScores, list[str]]:
    paired: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    notices: list[str] = []
    for task, variant in selection.variants.items():
        first_scores, second_scores = (checkpoint.scores[task][variant] for checkpoint in (first, second))
        seeds = [seed for seed in first_scores if seed in second_scores]
        if num_unpaired := len(first_scores) + len(second_scores) - 2 * len(seeds):
            notices.append(
                f"{TASKS[task].title}: {num_unpaired} score(s) are not used, because the other checkpoint has no score "
                "of their seed."
            )
        if seeds:
            paired[task] = {seed: first_scores[seed] for seed in seeds}, {seed: second_scores[seed] for seed in seeds}
    return paired, notices


def _comparison_grid(
    paired: _PairedScores,
    test: PairedTest,
    tested: Sequence[str],
    selection: Selection,
) -> Grid:
    rows: list[list[str]] = []
    for task, (first, second) in paired.items():
        task_test = paired_test([_differences(first, second)])
        name = TASKS[task].label + (" (partial)" if selection.variants[task].is_partial else "")
        rows.append(_comparison_row(name, [(first, second)], task_test.interval))
    are_all_tested = len(tested) == len(paired)
    name = f"Score: {selection.average_name}"
    rows.append(_comparison_row(name, list(paired.values()), test.interval if are_all_tested else None))
    if tested and not are_all_tested:
        name = f"Mean of the {len(tested)} tested task(s)"
        rows.append(_comparison_row(name, [paired[task] for task in tested], test.interval))
    return Grid(header=["Task", "A", "B", "A - B [95% CI]", "Pairs"], rows=rows, num_name_columns=1)


def _comparison_row(
    name: str, tasks: Sequence[tuple[dict[int, float], dict[int, float]]], interval: tuple[float, float] | None
) -> list[str]:
    first, second = (mean_over_tasks([list(scores[side].values()) for scores in tasks]) for side in (0, 1))
    num_pairs = sum(len(scores) for scores, _ in tasks)
    return [name, f"{first:.2f}", f"{second:.2f}", format_interval(first - second, interval, "+"), str(num_pairs)]


def _describe_result(test: PairedTest, paired: _PairedScores, average_name: str) -> str:
    if test.p_value is None and test.has_zero_variance:
        return "No test is possible: the differences of each task are equal, so their variance is zero."
    if test.p_value is None:
        return (
            f"Too few seeds for a test: {test.num_pairs} pair(s) in tasks with at least two pairs. Score more seeds of "
            "both checkpoints."
        )
    p_value = f"p {_format_p_value(test.p_value)}"
    num_tested = len(test.tested_tasks)
    scope = "" if num_tested == len(paired) else f" on {num_tested} of {len(paired)} tasks"
    if test.p_value >= SIGNIFICANCE_LEVEL:
        return f"No significant difference{scope}: {test.difference:+.2f} points ({p_value})."
    better, worse = ("A", "B") if test.difference > 0 else ("B", "A")
    result = f"{better} is better than {worse}{scope} by {abs(test.difference):.2f} points ({p_value})."
    total_difference = mean_over_tasks([_differences(*scores) for scores in paired.values()])
    if total_difference * test.difference >= 0:
        return result
    return (
        f"{result} Including untested tasks, {worse} is better by {abs(total_difference):.2f} points ({average_name})."
    )


def _test_remarks(test: PairedTest, tested: Sequence[str], selection: Selection) -> list[str]:
    remarks: list[str] = []
    if test.p_value is not None:
        remarks.append(
            f"Test: two-sided paired t-test, stratified by task, of {test.num_pairs} pairs in {len(tested)} task(s): "
            f"p {_format_p_value(test.p_value)}. It assumes normally distributed differences."
        )
    untested = [TASKS[task].title for task in selection.variants if task not in tested]
    if untested:
        remarks.append(f"Tasks with a single pair, which are not tested: {', '.join(untested)}.")
    remarks += explain_initialization(selection)
    remarks.append(
        "The result applies to these two checkpoints with other fine-tuning seeds. It does not apply to their recipes "
        "with other pretraining seeds."
    )
    return remarks


def _format_p_value(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    return [first[seed] - second[seed] for seed in first]
