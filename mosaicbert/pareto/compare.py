"""Command `mosaicbert pareto --compare`: tests of the differences between two models, by task and on average."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mosaicbert.config import ConfigError
from mosaicbert.config.glue import TASKS
from mosaicbert.config.pareto import ParetoRecipe
from mosaicbert.console import print_line
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, describe_outdated_scores, find_checkpoint
from mosaicbert.pareto.measures import blimp_example_term, blimp_scores, task_predictions, task_scores
from mosaicbert.pareto.remarks import explain_initialization
from mosaicbert.pareto.selection import Selection, select_scores
from mosaicbert.pareto.tables import Grid, format_interval, print_tables
from mosaicbert.scores.resampling import bootstrap_examples
from mosaicbert.scores.statistics import (
    SIGNIFICANCE_LEVEL,
    DifferenceTest,
    VarianceTerm,
    difference_test,
    mean_over_tasks,
    seed_terms,
)

_MEAN = "mean"  # of the compared tasks


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Difference of one measure between two models.

    Attributes:
        name: Name of the measure.
        first: Value of the first model: nats for the validation loss, otherwise percent.
        second: Value of the second model.
        test: Test of the difference, first minus second.
    """

    name: str
    first: float
    second: float
    test: DifferenceTest


def compare(recipe: ParetoRecipe, first: str, second: str, console: Console) -> dict[str, Comparison]:
    """Test whether one model is better than another, and print the results.

    Args:
        recipe: Recipe with the tasks and metrics to compare; without tasks, all common tasks are compared.
        first: Folder with a scores.jsonl, or FOLDER@STEP; several of them, separated by commas, for runs that differ in
            the pretraining seed. Without a step, the newest checkpoint is selected.
        second: Second model, in the same format.
        console: Console for the table and the result.

    Returns:
        Comparisons of the tasks by name, and of "loss", "blimp" and "mean", as far as they are measured.

    Raises:
        ConfigError: If a checkpoint has no scores, is named twice, or the models have no common score.
    """
    config = recipe.pareto
    models = [[find_checkpoint(name, config.metrics) for name in names.split(",")] for names in (first, second)]
    checkpoints = [checkpoint for model in models for checkpoint in model]
    _check_distinct(checkpoints)
    selection = select_scores(checkpoints, config.tasks, config.init_from_mnli, config.metrics)
    comparisons = _compare_all(models[0], models[1], selection)
    if not comparisons:
        raise ConfigError(
            f"The models of `--compare` must have a common score, got {first} and {second}. Score both with "
            "`mosaicbert glue` or `mosaicbert blimp`."
        )
    for letter, model in zip("AB", models, strict=True):
        print_line(console, f"{letter}: {', '.join(checkpoint.name for checkpoint in model)}")
    notices = [*describe_outdated_scores(checkpoints), *selection.notices]
    num_seeds = min(map(len, models))
    remarks = _remarks(selection, num_seeds) + (
        _explain_single_seeds(models, selection) if _MEAN in comparisons else []
    )
    print_tables(console, [_grid(comparisons, selection)], notices + remarks)
    for name in ("loss", "blimp", _MEAN):
        if name in comparisons:
            print_line(console, describe_comparison(comparisons[name], is_lower_better=name == "loss"))
    return comparisons


def _check_distinct(checkpoints: Sequence[ScoredCheckpoint]) -> None:
    seen: set[tuple[Path, int | None]] = set()
    for checkpoint in checkpoints:
        key = Path(checkpoint.folder).resolve(), checkpoint.step
        if key in seen:
            raise ConfigError(
                f"The checkpoints of `--compare` must be different, got {checkpoint.name} twice. Change one of them."
            )
        seen.add(key)


def _compare_all(
    first: Sequence[ScoredCheckpoint], second: Sequence[ScoredCheckpoint], selection: Selection
) -> dict[str, Comparison]:
    comparisons: dict[str, Comparison] = {}
    losses = [
        [checkpoint.pretraining.eval_loss for checkpoint in model if checkpoint.pretraining is not None]
        for model in (first, second)
    ]
    known = [[loss for loss in model if loss is not None] for model in losses]
    if list(map(len, known)) == [len(first), len(second)]:
        comparisons["loss"] = _compare("Validation loss (nats)", known[0], known[1], [])
    blimp = [blimp_scores(model, selection) for model in (first, second)]
    if all(blimp):
        values = [[100.0 * statistics.fmean(scores.accuracies.values()) for scores in model] for model in blimp]
        term = blimp_example_term(blimp[0], blimp[1])
        comparisons["blimp"] = _compare("BLiMP", values[0], values[1], [] if term is None else [term])
    if not selection.variants or not all(checkpoint.scores for checkpoint in (*first, *second)):
        return comparisons
    by_task = {
        task: [[list(task_scores(item, selection, task).values()) for item in model] for model in (first, second)]
        for task in selection.variants
    }
    example_terms: dict[str, VarianceTerm] = {}
    for task in selection.variants:
        predictions = [task_predictions(model, selection, task) for model in (first, second)]
        if predictions[0] is not None and predictions[1] is not None:
            example_terms[task] = bootstrap_examples(selection.metrics_of(task), predictions[0], predictions[1])
        terms = [example_terms[task]] if task in example_terms else []
        comparisons[task] = _compare_nested(_task_label(task, selection), by_task[task][0], by_task[task][1], terms)
    runs = [
        [[model[index] for model in (by_task[task][side] for task in by_task)] for index in range(len(checkpoints))]
        for side, checkpoints in enumerate((first, second))
    ]
    num_tasks = len(by_task)
    terms = [VarianceTerm(term.variance / num_tasks**2, term.degrees_of_freedom) for term in example_terms.values()]
    comparisons[_MEAN] = _compare_runs(
        f"Score: {selection.average_name}", runs[0], runs[1], terms if len(terms) == num_tasks else []
    )
    return comparisons


def _task_label(task: str, selection: Selection) -> str:
    return selection.label_of(task) + (" (partial)" if selection.variants[task].is_partial else "")


def _compare_nested(
    name: str, first: list[list[float]], second: list[list[float]], terms: Sequence[VarianceTerm]
) -> Comparison:
    return _compare_runs(name, [[seeds] for seeds in first], [[seeds] for seeds in second], terms)


# The variance of a model is that of its pretraining seeds if there are several, otherwise of its fine-tuning seeds.
def _compare_runs(
    name: str, first: list[list[list[float]]], second: list[list[list[float]]], terms: Sequence[VarianceTerm]
) -> Comparison:
    means = [[mean_over_tasks(tasks) for tasks in runs] for runs in (first, second)]
    all_terms = [*terms]
    for runs, values in zip((first, second), means, strict=True):
        all_terms += seed_terms([values]) if len(values) > 1 else seed_terms(runs[0])
    return _with_test(name, means[0], means[1], all_terms)


def _compare(name: str, first: list[float], second: list[float], terms: Sequence[VarianceTerm]) -> Comparison:
    return _with_test(name, first, second, [*terms, *seed_terms([first]), *seed_terms([second])])


def _with_test(name: str, first: list[float], second: list[float], terms: Sequence[VarianceTerm]) -> Comparison:
    means = statistics.fmean(first), statistics.fmean(second)
    return Comparison(name=name, first=means[0], second=means[1], test=difference_test(means[0] - means[1], terms))


def _grid(comparisons: Mapping[str, Comparison], selection: Selection) -> Grid:
    order = sorted(comparisons, key=lambda name: (name not in selection.variants, name == _MEAN))
    rows = [
        [
            item.name,
            f"{item.first:.2f}",
            f"{item.second:.2f}",
            format_interval(item.test.difference, item.test.interval, "+"),
            "-" if item.test.p_value is None else _format_p_value(item.test.p_value).removeprefix("= "),
        ]
        for item in (comparisons[name] for name in order)
    ]
    return Grid(header=["Measure", "A", "B", "A - B [95% CI]", "p"], rows=rows, num_name_columns=1)


def describe_comparison(comparison: Comparison, *, is_lower_better: bool = False) -> str:
    """Describe the result of a comparison in one sentence.

    Args:
        comparison: Comparison of models A and B.
        is_lower_better: True if the lower value is the better one.
    """
    test = comparison.test
    if test.p_value is None:
        return f"{comparison.name}: A - B = {test.difference:+.2f}. Too few seeds for a test."
    p_value = f"p {_format_p_value(test.p_value)}"
    if test.p_value >= SIGNIFICANCE_LEVEL:
        return f"{comparison.name}: no significant difference, A - B = {test.difference:+.2f} ({p_value})."
    better, worse = ("A", "B") if (test.difference > 0) != is_lower_better else ("B", "A")
    return f"{comparison.name}: {better} is better than {worse} by {abs(test.difference):.2f} ({p_value})."


def _remarks(selection: Selection, num_seeds: int) -> list[str]:
    scope = "The results apply to these checkpoints, not to their recipes with other pretraining seeds."
    if num_seeds > 1:
        test = "Welch's t-test of the pretraining seeds, each with its own fine-tuning seeds"
        scope = "The results apply to the two recipes."
    elif selection.variants:
        test = "Welch's t-test of the fine-tuning seeds of a model with one pretraining seed"
    else:
        test = "t-test without the variance of seeds, since a model has one pretraining seed"
    return [
        f"Test: {test}; the variance of the validation examples, on which both models are evaluated, is added. "
        f"The p-values are not corrected for the number of measures. {scope}",
        *explain_initialization(selection),
    ]


def _explain_single_seeds(models: Sequence[Sequence[ScoredCheckpoint]], selection: Selection) -> list[str]:
    titles = [
        TASKS[task].title
        for task in selection.variants
        if any(len(model) == 1 and len(task_scores(model[0], selection, task)) == 1 for model in models)
    ]
    if not titles:
        return []
    return [f"Tasks with a single seed of a model, whose variance is not in the test: {', '.join(titles)}."]


def _format_p_value(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"
