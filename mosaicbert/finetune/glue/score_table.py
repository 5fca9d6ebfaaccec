"""What `mosaicbert glue` prints at its end."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.scores.records import Score
from mosaicbert.scores.statistics import bootstrap_interval, mean_over_tasks, sample_deviation

_NO_VALUE = "-"


def scores_table(title: str, scores: Sequence[Score], num_seeds: Mapping[str, int]) -> Table:
    """The scores of a checkpoint: mean, standard deviation and 95% interval over the seeds of each task.

    Args:
        title: of the checkpoint.
        scores: its own, all of one protocol per task.
        wanted: the tasks, and how many seeds each has when all are done.
    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task and metrics", "seeds", "mean", "std", "95%"):
        table.add_column(name, justify="left" if name.startswith("task") else "right", no_wrap=True)
    by_task = {task: [entry.value for entry in scores if entry.task == task] for task in num_seeds}
    for task, values in by_task.items():
        is_partial = any(entry.is_partial for entry in scores if entry.task == task)
        is_from_mnli = any(entry.initialized_from == MNLI for entry in scores if entry.task == task)
        name = f"{TASKS[task].label}{', from MNLI' if is_from_mnli else ''}{', on partial data' if is_partial else ''}"
        count = f"{len(values)}" if len(values) == num_seeds[task] else f"{len(values)} of {num_seeds[task]}"
        mean = f"{mean_over_tasks([values]):.2f}" if values else _NO_VALUE
        deviation = sample_deviation(values) if values else None
        std = _NO_VALUE if deviation is None else f"{deviation:.2f}"
        table.add_row(name, count, mean, std, _format_interval([values] if values else []))
    scored_tasks = [values for values in by_task.values() if values]
    if scored_tasks:
        table.add_section()
        tasks = (
            f"mean of {len(scored_tasks)} of the {len(TASKS)} GLUE tasks" if len(scored_tasks) < len(TASKS) else "GLUE"
        )
        tasks += ", on partial data" if any(entry.is_partial for entry in scores) else ""
        tasks += ", seeds missing" if any(len(by_task[task]) < num_seeds[task] for task in num_seeds) else ""
        table.add_row(tasks, "", f"{mean_over_tasks(scored_tasks):.2f}", "", _format_interval(scored_tasks))
    return table


def _format_interval(tasks: Sequence[Sequence[float]]) -> str:
    interval = bootstrap_interval(tasks) if tasks else None
    return _NO_VALUE if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
