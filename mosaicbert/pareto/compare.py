"""`mosaicbert pareto --compare`: a paired test of two checkpoints over tasks and seeds."""

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

_PairedScores = Mapping[str, tuple[dict[int, float], dict[int, float]]]  # by task: those of A and of B, by seed


def compare(recipe: ParetoRecipe, first: str, second: str, console: Console) -> PairedTest:
    """Test whether one checkpoint is better than another, over paired tasks and seeds, and print the answer.

    Args:
        recipe: Recipe whose tasks are compared; all common tasks if it names none.
        first: Folder with scores, or folder@STEP; without a step its newest checkpoint.
        second: Another one, likewise.
        console: Console for the table and the answer.

    Raises:
        ConfigError: If a checkpoint has no scores, both are the same, or they have no task and seed in common.
    """
    pair = [find_checkpoint(name) for name in (first, second)]
    if pair[0].step == pair[1].step and Path(pair[0].folder).resolve() == Path(pair[1].folder).resolve():
        raise ConfigError(f"--compare {first} {second}: both are {pair[0].name}; name two checkpoints.")
    selection = select_tasks(pair, recipe.pareto.tasks, recipe.pareto.init_from_mnli)
    notices = [*describe_outdated_scores(pair), *selection.notices]
    paired, unpaired_notices = _pair_scores(pair[0], pair[1], selection)
    notices += unpaired_notices
    if not paired:
        raise ConfigError(f"--compare {first} {second}: no seed of a task is common to both; score both with the same.")
    selection = Selection(variants={task: selection.variants[task] for task in paired}, notices=notices)
    test = paired_test([_differences(*scores) for scores in paired.values()])
    tested = [list(paired)[index] for index in test.tested_tasks]
    print_line(console, f"A: {pair[0].name}\nB: {pair[1].name}")
    remarks = _test_remarks(test, tested, selection)
    print_tables(console, [_comparison_grid(paired, test, tested, selection)], notices + remarks)
    print_line(console, _conclude(test, paired, selection.average_name))
    return test


def _pair_scores(
    first: ScoredCheckpoint, second: ScoredCheckpoint, selection: Selection
) -> tuple[_PairedScores, list[str]]:
    paired: dict[str, tuple[dict[int, float], dict[int, float]]] = {}
    notices: list[str] = []
    for task, variant in selection.variants.items():
        of_first, of_second = (checkpoint.scores[task][variant] for checkpoint in (first, second))
        seeds = [seed for seed in of_first if seed in of_second]
        if num_unpaired := len(of_first) + len(of_second) - 2 * len(seeds):
            notices.append(
                f"{TASKS[task].title}: {num_unpaired} score(s) without a partner of the same seed are not used."
            )
        if seeds:
            paired[task] = {seed: of_first[seed] for seed in seeds}, {seed: of_second[seed] for seed in seeds}
    return paired, notices


def _comparison_grid(
    paired: _PairedScores,
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
    rows.append(_comparison_row(selection.average_name, list(paired.values()), test.interval if is_all else None))
    if tested and not is_all:
        name = f"of them the {len(tested)} with several pairs"
        rows.append(_comparison_row(name, [paired[task] for task in tested], test.interval))
    return Grid(header=["task", "A", "B", "A - B [95%]", "pairs"], rows=rows, num_name_columns=1)


def _comparison_row(
    name: str, tasks: Sequence[tuple[dict[int, float], dict[int, float]]], interval: tuple[float, float] | None
) -> list[str]:
    first, second = (mean_over_tasks([list(scores[side].values()) for scores in tasks]) for side in (0, 1))
    num_pairs = sum(len(scores) for scores, _ in tasks)
    return [name, f"{first:.2f}", f"{second:.2f}", format_interval(first - second, interval, "+"), str(num_pairs)]


def _conclude(test: PairedTest, paired: _PairedScores, average_name: str) -> str:
    if test.p_value is None and test.has_zero_variance:
        return "Nothing to test: the seeds of each task all differ by the same, so chance has no measure."
    if test.p_value is None:
        return (
            "Too few seeds to tell: how far scores scatter by chance is not known from "
            f"{test.num_pairs or 'no'} pair(s) in tasks that have two or more; score with more seeds."
        )
    p = f"p {_describe_p(test.p_value)}"
    is_all = len(test.tested_tasks) == len(paired)
    where = "" if is_all else f" on the {len(test.tested_tasks)} tested of {len(paired)} tasks"
    if test.p_value >= SIGNIFICANCE_LEVEL:
        return f"No difference shown{where}: {test.difference:+.2f} could be chance ({p})."
    better, worse = ("A", "B") if test.difference > 0 else ("B", "A")
    answer = f"{better} is better than {worse}{where}: by {abs(test.difference):.2f} ({p})."
    whole = mean_over_tasks([_differences(*scores) for scores in paired.values()])
    if whole * test.difference >= 0:
        return answer
    return f"{answer} But the {average_name}, untested ones included, is {abs(whole):.2f} in favour of {worse}."


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
    found += explain_initialization(selection)
    found.append(
        "This is about these two checkpoints under other fine-tuning seeds, not about their recipes under other "
        "pretraining seeds."
    )
    return found


def _describe_p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"


def _differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    return [first[seed] - second[seed] for seed in first]
