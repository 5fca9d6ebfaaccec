"""Command `mosaicbert glue`: fine-tuning of checkpoints on GLUE tasks in parallel processes."""

import signal
from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from mosaicbert.config.glue import TASKS, GlueRecipe
from mosaicbert.console import print_line
from mosaicbert.filesystem import lock_folder
from mosaicbert.finetune.glue.checkpoints import CheckpointSource
from mosaicbert.finetune.glue.dataset import DataSummary, find_tasks
from mosaicbert.finetune.glue.runner import run_jobs
from mosaicbert.finetune.glue.score_table import scores_table
from mosaicbert.finetune.glue.scoring_plan import ScoringPlan

_INTERRUPTED = 130  # exit code of shells after SIGINT


def glue(recipe: GlueRecipe, console: Console) -> int:
    """Score the checkpoints of a recipe and print the scores. Recorded scores are not computed again.

    Args:
        recipe: Recipe of the scoring.
        console: Console for the scores.

    Returns:
        Exit code: 1 if a job has failed in all attempts, 130 if the user has interrupted the command, else 0.

    Raises:
        ConfigError: If the model or the data do not exist, or another process scores the same model.
    """
    source = CheckpointSource(recipe)
    summaries, skip_reasons = find_tasks(recipe.glue)
    for task, reason in skip_reasons.items():
        print_line(console, f"{TASKS[task].title} is skipped: {reason}.")
    source.work_folder.mkdir(parents=True, exist_ok=True)
    message = f"{source.scores_path} is in use by another process. Wait for it to finish, or stop it."
    with lock_folder(source.work_folder, message):
        plan = ScoringPlan(recipe.glue, source, summaries)
        plan.check_model()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Composer's handler exits immediately
        try:
            has_failed = run_jobs(plan, console)
        except KeyboardInterrupt:
            print_line(console, "Interrupted. Run the same command again to continue.")
            return _INTERRUPTED
    _print_scores(plan, summaries, console)
    print_line(console, f"Scores: {source.scores_path}")
    return 1 if has_failed else 0


def _print_scores(plan: ScoringPlan, summaries: Mapping[str, DataSummary], console: Console) -> None:
    config, num_seeds = plan.config, {task: len(plan.seeds_of(task)) for task in plan.tasks}
    other_config = replace(config, init_from_mnli=not config.init_from_mnli)
    other_plan = ScoringPlan(other_config, plan.source, summaries)
    for checkpoint in sorted(plan.checkpoints, key=lambda checkpoint: checkpoint.step or 0):
        console.print(scores_table(checkpoint.label, plan.scores_of(checkpoint), num_seeds))
        scores = other_plan.scores_of(checkpoint)
        # Scores with different initial weights are not averaged, so that they have a separate table.
        if any(TASKS[score.task].from_mnli for score in scores):
            title = f"{checkpoint.label}, glue.init_from_mnli={str(other_config.init_from_mnli).lower()}"
            console.print(scores_table(title, scores, num_seeds))
