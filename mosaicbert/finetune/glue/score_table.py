"""Table of GLUE scores for the console."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.scores.records import Score
from mosaicbert.scores.statistics import bootstrap_interval, mean_over_tasks, sample_deviation

_NO_VALUE = "-"


def scores_table(title: str, scores: Sequence[Score], num_seeds: Mapping[str, int]) -> Table:
    """Build the table of a checkpoint's scores: mean, standard deviation and 95% interval over the seeds of each task.

    Args:
        title: Title of the table.
        scores: Scores of the checkpoint, with one protocol per task.
        num_seeds: Number of seeds of the complete scoring, by task.
    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Task and metrics", no_wrap=True)
    for name in ("Seeds", "Mean", "Std", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    by_task = {task: [score.value for score in scores if score.task == task] for task in num_seeds}
    for task, values in by_task.items():
        is_partial = any(score.is_partial for score in scores if score.task == task)
        is_from_mnli = any(score.initialized_from == MNLI for score in scores if score.task == task)
        name = f"{TASKS[task].label}{', from MNLI' if is_from_mnli else ''}{', on partial data' if is_partial else ''}"
        count = f"{len(values)}" if len(values) == num_seeds[task] else f"{len(values)} of {num_seeds[task]}"
        mean = f"{mean_over_tasks([values]):.2f}" if values else _NO_VALUE
        deviation = sample_deviation(values) if values else None
        std = _NO_VALUE if deviation is None else f"{deviation:.2f}"
        table.add_row(name, count, mean, std, _format_interval([values] if values else []))
    scored_tasks = [values for values in by_task.values() if values]
    if scored_tasks:
        table.add_section()
        is_complete = len(scored_tasks) == len(TASKS)
        name = "GLUE" if is_complete else f"mean of {len(scored_tasks)} of the {len(TASKS)} GLUE tasks"
        name += ", on partial data" if any(score.is_partial for score in scores) else ""
        name += ", seeds missing" if any(len(by_task[task]) < num_seeds[task] for task in num_seeds) else ""
        table.add_row(name, "", f"{mean_over_tasks(scored_tasks):.2f}", "", _format_interval(scored_tasks))
    return table


def _format_interval(tasks: Sequence[Sequence[float]]) -> str:
    interval = bootstrap_interval(tasks) if tasks else None
    return _NO_VALUE if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
