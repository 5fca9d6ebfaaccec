"""Console output of a scoring: finished scores and progress of the jobs."""

from datetime import timedelta

from rich.table import Table
from rich.text import Text

from mosaicbert.scores.records import Score
from mosaicbert.scoring.job_queue import JobQueue
from mosaicbert.scoring.plan import ScoringPlan


def describe_score(score: Score) -> str:
    """Describe a score in one line: its metrics, or the mean over the paradigms of BLiMP, and its duration."""
    values = {"accuracy": score.value / 100} if score.is_blimp else score.metrics
    metrics = ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items())
    return f"{metrics} ({timedelta(seconds=round(score.seconds))})"


def progress_table(plan: ScoringPlan, queue: JobQueue) -> Table:
    """Build the live table of running jobs, their elapsed time, and the number of pending jobs.

    Args:
        plan: Scoring plan.
        queue: Queue that runs the jobs of the plan.
    """
    num_missing = sum(len(plan.missing_scores(checkpoint)) for checkpoint in plan.checkpoints)
    num_scores = len(plan.checkpoints) * sum(len(plan.seeds_of(task)) for task in plan.tasks)
    table = Table(title=f"{num_scores - num_missing} of {num_scores} scores", box=None)
    for column in ("Running", "Elapsed", "Pending"):
        table.add_column(column)
    num_pending = str(len(queue.pending))
    for index, (job, seconds) in enumerate(queue.running):
        table.add_row(Text(job.name), str(timedelta(seconds=round(seconds))), num_pending if index == 0 else "")
    return table
