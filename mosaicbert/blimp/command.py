"""Command `mosaicbert blimp`: accuracy of checkpoints on the minimal pairs of BLiMP."""

import math
import statistics
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mosaicbert.blimp.job import run_blimp_job
from mosaicbert.blimp.pairs import PairData, Paradigm, read_pairs
from mosaicbert.blimp.plan import BlimpPlan
from mosaicbert.config.blimp import BlimpConfig
from mosaicbert.console import print_line
from mosaicbert.scores.records import BLIMP_PREFIX, Score
from mosaicbert.scores.statistics import accuracy_term
from mosaicbert.scoring.checkpoints import CheckpointSource
from mosaicbert.scoring.runner import INTERRUPTED, lock_scores, run_plan

_NO_VALUE = "-"


def blimp(config: BlimpConfig, console: Console) -> int:
    """Score checkpoints on BLiMP and print the scores. Recorded scores are not computed again.

    Args:
        config: Settings of the evaluation.
        console: Console for the scores.

    Returns:
        Exit code: 1 if a job has failed in all attempts, 130 if the user has interrupted the command, else 0.

    Raises:
        ConfigError: If the model or the data do not exist, or another process scores the same model.
    """
    source = CheckpointSource(
        config.model, config.checkpoints, external_folder=config.external_folder, benchmark="blimp"
    )
    data = read_pairs(config)
    with lock_scores(source):
        plan = BlimpPlan(config, source, data)
        plan.check_model()
        exit_code = run_plan(plan, run_blimp_job, config.num_processes, console)
    if exit_code != INTERRUPTED:
        for checkpoint in sorted(plan.checkpoints, key=lambda checkpoint: checkpoint.step or 0):
            console.print(blimp_table(checkpoint.label, plan.scores_of(checkpoint), data))
        print_line(console, f"Scores: {source.scores_path}")
    return exit_code


def blimp_table(title: str, scores: Sequence[Score], data: PairData) -> Table:
    """Build the table of a checkpoint's accuracies: one row per phenomenon, and the mean over all paradigms.

    Args:
        title: Title of the table.
        scores: Scores of the checkpoint, one per phenomenon.
        data: Minimal pairs.
    """
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Phenomenon", no_wrap=True)
    for name in ("Paradigms", "Pairs", "Accuracy", "Standard error"):
        table.add_column(name, justify="right", no_wrap=True)
    by_phenomenon = {score.task.removeprefix(BLIMP_PREFIX): score for score in scores}
    for phenomenon, paradigms in data.paradigms.items():
        score = by_phenomenon.get(phenomenon)
        table.add_row(phenomenon, *_cells(paradigms, None if score is None else score.metrics))
    table.add_section()
    is_complete = len(by_phenomenon) == len(data.paradigms)
    accuracies = {name: accuracy for score in scores for name, accuracy in score.metrics.items()}
    all_paradigms = [paradigm for paradigms in data.paradigms.values() for paradigm in paradigms]
    name = "BLiMP (partial data)" if data.is_partial else "BLiMP"
    table.add_row(name, *_cells(all_paradigms, accuracies if is_complete else None))
    return table


def _cells(paradigms: Sequence[Paradigm], accuracies: Mapping[str, float] | None) -> tuple[str, ...]:
    sizes = [len(paradigm.good) for paradigm in paradigms]
    counts = str(len(sizes)), f"{sum(sizes):,}"
    if accuracies is None:
        return *counts, _NO_VALUE, _NO_VALUE
    values = [accuracies[paradigm.name] for paradigm in paradigms]
    error = math.sqrt(accuracy_term(values, sizes).variance)
    return *counts, f"{100 * statistics.fmean(values):.2f}", f"{100 * error:.2f}"
