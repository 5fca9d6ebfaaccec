"""Table of GLUE scores for the console."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.scores.predictions import Predictions
from mosaicbert.scores.records import Score
from mosaicbert.scores.resampling import bootstrap_examples
from mosaicbert.scores.statistics import VarianceTerm, mean_over_tasks, sample_deviation, seed_terms, t_interval

_NO_VALUE = "-"


def scores_table(
    title: str, scores: Sequence[Score], num_seeds: Mapping[str, int], predictions: Sequence[Predictions]
) -> Table:
    """Build the table of a checkpoint's scores: mean, standard deviation over the seeds, and 95% interval of each task.

    The intervals contain the variance of the seeds and that of the validation examples.

    Args:
        title: Title of the table.
        scores: Scores of the checkpoint, with one protocol per task.
        num_seeds: Number of seeds of the complete scoring, by task.
        predictions: Predictions of the scores.
    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Task and metrics", overflow="fold")  # folded in a narrow terminal, unlike the numbers
    for name in ("Seeds", "Mean", "Std", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    example_terms: list[VarianceTerm] = []
    by_task = {task: [score.value for score in scores if score.task == task] for task in num_seeds}
    for task, values in by_task.items():
        is_partial = any(score.is_partial for score in scores if score.task == task)
        is_from_mnli = any(score.initialized_from == MNLI for score in scores if score.task == task)
        name = f"{TASKS[task].label}{', from MNLI' if is_from_mnli else ''}{', on partial data' if is_partial else ''}"
        count = f"{len(values)}" if len(values) == num_seeds[task] else f"{len(values)} of {num_seeds[task]}"
        mean = f"{mean_over_tasks([values]):.2f}" if values else _NO_VALUE
        deviation = sample_deviation(values) if values else None
        std = _NO_VALUE if deviation is None else f"{deviation:.2f}"
        terms = _example_terms([score for score in scores if score.task == task], predictions)
        example_terms += terms
        table.add_row(name, count, mean, std, _format_interval([values], terms) if values else _NO_VALUE)
    scored_tasks = [values for values in by_task.values() if values]
    if scored_tasks:
        table.add_section()
        is_complete = len(scored_tasks) == len(TASKS)
        name = "GLUE" if is_complete else f"mean of {len(scored_tasks)} of the {len(TASKS)} GLUE tasks"
        name += ", on partial data" if any(score.is_partial for score in scores) else ""
        name += ", seeds missing" if any(len(by_task[task]) < num_seeds[task] for task in num_seeds) else ""
        table.add_row(
            name, "", f"{mean_over_tasks(scored_tasks):.2f}", "", _format_interval(scored_tasks, example_terms)
        )
    return table


def _example_terms(scores: Sequence[Score], predictions: Sequence[Predictions]) -> list[VarianceTerm]:
    records = [record for score in scores for record in predictions if record.is_of(score)]
    if not scores or len(records) < len(scores):
        return []
    return [bootstrap_examples(TASKS[scores[0].task].metrics, records)]


def _format_interval(tasks: Sequence[Sequence[float]], example_terms: Sequence[VarianceTerm]) -> str:
    terms = [VarianceTerm(term.variance / len(tasks) ** 2, term.degrees_of_freedom) for term in example_terms]
    interval = t_interval(mean_over_tasks(tasks), seed_terms(tasks) + terms)
    return _NO_VALUE if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
