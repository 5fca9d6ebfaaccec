"""Folders of runs that have been scored, made without training."""

import json
import random
from dataclasses import asdict
from pathlib import Path

from mosaicbert.config.glue import SEEDS, TASKS
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, read_checkpoints
from mosaicbert.scores.records import SCORES_FILE, Pretraining, Score

FIVE_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")


def pareto_recipe(folder: Path, series, **changes) -> ParetoRecipe:
    """A recipe of these series, whose files go to `folder`/figure."""
    return ParetoRecipe(run_name="figure", runs_folder=str(folder), pareto=ParetoConfig(series=series, **changes))


def make_score(task: str, value: float, **changes) -> Score:
    """A score of `value`, 0 to 100, at step 100 of a run that took an hour."""
    fields = {
        "model": "runs/x",
        "step": 100,
        "task": task,
        "seed": SEEDS[0],
        "metrics": {name: value / 100 for name in TASKS[task].metrics},
        "protocol": f"{task}-paper",
        "settings": {},
        "initialized_from": "mnli" if TASKS[task].from_mnli else "pretraining",
        "is_partial": False,
        "seconds": 9.0,
        "pretraining": make_pretraining(100, 3600.0),
        "environment": {},
        "finished": "2025-01-02T03:04:05+00:00",
    }
    return Score(**(fields | changes))


def make_pretraining(steps: int, wall_seconds: float) -> Pretraining:
    """What so many steps cost, at a thousand tokens a step."""
    return Pretraining(
        steps=steps,
        tokens=1000 * steps,
        seconds=0.9 * wall_seconds,
        wall_seconds=wall_seconds,
        flops=1e12 * steps,
        device="H200",
        num_devices=1,
    )


def write_scores(folder: Path, lines) -> str:
    """A folder with these lines, as a recipe names it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SCORES_FILE).open("a") as file:
        file.writelines(json.dumps(asdict(score)) + "\n" for score in lines)
    return str(folder)


def read_folders(tmp_path: Path, *folders) -> list[ScoredCheckpoint]:
    """The checkpoints of folders with these lines."""
    return [
        checkpoint
        for index, lines in enumerate(folders)
        for checkpoint in read_checkpoints(write_scores(tmp_path / f"run{index}", lines))
    ]


def make_scores(steps: int, wall_seconds: float, average: float, *, tasks=tuple(TASKS), spread=0.5) -> list[Score]:
    """The lines of a checkpoint, each task with as many seeds as in the paper."""
    noise = random.Random(f"{steps} {wall_seconds} {average}")
    return [
        make_score(
            task,
            average + noise.gauss(0.0, spread),
            step=steps,
            seed=seed,
            pretraining=make_pretraining(steps, wall_seconds),
        )
        for task in tasks
        for seed in SEEDS[: TASKS[task].protocol.num_seeds]
    ]
