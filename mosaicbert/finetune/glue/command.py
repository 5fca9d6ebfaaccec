"""Command `mosaicbert glue`: fine-tuning of checkpoints on GLUE tasks in parallel processes."""

from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from mosaicbert.config.glue import TASKS, GlueRecipe
from mosaicbert.console import print_line
from mosaicbert.finetune.glue.dataset import DataSummary, find_tasks
from mosaicbert.finetune.glue.job import run_job
from mosaicbert.finetune.glue.plan import GluePlan
from mosaicbert.finetune.glue.score_table import scores_table
from mosaicbert.scores.predictions import read_predictions
from mosaicbert.scoring.checkpoints import CheckpointSource
from mosaicbert.scoring.runner import INTERRUPTED, lock_scores, run_plan


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
    source = glue_source(recipe)
    summaries, skip_reasons = find_tasks(recipe.glue)
    for task, reason in skip_reasons.items():
        print_line(console, f"{TASKS[task].title} is skipped: {reason}.")
    with lock_scores(source):
        plan = GluePlan(recipe.glue, source, summaries)
        plan.check_model()
        exit_code = run_plan(plan, run_job, recipe.glue.num_processes, console)
    if exit_code != INTERRUPTED:
        _print_scores(plan, summaries, console)
        print_line(console, f"Scores: {source.scores_path}")
    return exit_code


def glue_source(recipe: GlueRecipe) -> CheckpointSource:
    """Return the source of the checkpoints of a recipe."""
    config = recipe.glue
    return CheckpointSource(config.model, config.checkpoints, external_folder=recipe.run_folder, benchmark="glue")


def _print_scores(plan: GluePlan, summaries: Mapping[str, DataSummary], console: Console) -> None:
    config, num_seeds = plan.config, {task: len(plan.seeds_of(task)) for task in plan.tasks}
    other_config = replace(config, init_from_mnli=not config.init_from_mnli)
    other_plan = GluePlan(other_config, plan.source, summaries)
    predictions = read_predictions(plan.source.predictions_path)
    for checkpoint in sorted(plan.checkpoints, key=lambda checkpoint: checkpoint.step or 0):
        console.print(scores_table(checkpoint.label, plan.scores_of(checkpoint), num_seeds, predictions))
        scores = other_plan.scores_of(checkpoint)
        # Scores with different initial weights are not averaged, so that they have a separate table.
        if any(TASKS[score.task].from_mnli for score in scores):
            title = f"{checkpoint.label}, glue.init_from_mnli={str(other_config.init_from_mnli).lower()}"
            console.print(scores_table(title, scores, num_seeds, predictions))
