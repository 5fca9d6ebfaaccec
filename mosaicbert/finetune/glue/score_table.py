"""What `mosaicbert glue` prints at its end."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from mosaicbert.config.glue import MNLI, TASKS
from mosaicbert.scores.records import Score
from mosaicbert.scores.statistics import deviation_of, interval_of, mean_of

_NOTHING = "-"


def scores_table(title: str, scores: Sequence[Score], wanted: Mapping[str, int]) -> Table:
    """The scores of a checkpoint: mean, standard deviation and 95% interval over the seeds of each task.

    Args:
        title: of the checkpoint.
        scores: its own, all of one protocol per task.
        wanted: the tasks, and how many seeds each has when all are done.
    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task and metrics", "seeds", "mean", "std", "95%"):
        table.add_column(name, justify="left" if name.startswith("task") else "right", no_wrap=True)
    by_task = {task: [entry.value for entry in scores if entry.task == task] for task in wanted}
    for task, values in by_task.items():
        is_partial = any(entry.is_partial for entry in scores if entry.task == task)
        started = any(entry.initialized_from == MNLI for entry in scores if entry.task == task)
        name = f"{TASKS[task].label}{', from MNLI' if started else ''}{', on partial data' if is_partial else ''}"
        count = f"{len(values)}" if len(values) == wanted[task] else f"{len(values)} of {wanted[task]}"
        mean = f"{mean_of([values]):.2f}" if values else _NOTHING
        deviation = deviation_of(values) if values else None
        spread = _NOTHING if deviation is None else f"{deviation:.2f}"
        table.add_row(name, count, mean, spread, _interval([values] if values else []))
    found = [values for values in by_task.values() if values]
    if found:
        table.add_section()
        tasks = f"mean of {len(found)} of the {len(TASKS)} GLUE tasks" if len(found) < len(TASKS) else "GLUE"
        tasks += ", on partial data" if any(entry.is_partial for entry in scores) else ""
        tasks += ", seeds missing" if any(len(by_task[task]) < wanted[task] for task in wanted) else ""
        table.add_row(tasks, "", f"{mean_of(found):.2f}", "", _interval(found))
    return table


def _interval(tasks: Sequence[Sequence[float]]) -> str:
    ends = interval_of(tasks) if tasks else None
    return _NOTHING if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
