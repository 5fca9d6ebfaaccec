"""Synthetic score records, without training."""

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
    """Create a recipe whose output folder is `folder`/figure."""
    return ParetoRecipe(run_name="figure", runs_folder=str(folder), pareto=ParetoConfig(series=series, **changes))


def make_score(task: str, value: float, **changes) -> Score:
    """Create a score of `value` (0 to 100), at step 100 of a run of one hour."""
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
    """Create the cost of a run with 1000 tokens per step."""
    return Pretraining(
        steps=steps,
        tokens=1000 * steps,
        seconds=0.9 * wall_seconds,
        wall_seconds=wall_seconds,
        flops=1e12 * steps,
        device="H200",
        num_devices=1,
    )


def write_scores(folder: Path, scores) -> str:
    """Append scores to the scores.jsonl of a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SCORES_FILE).open("a") as file:
        file.writelines(json.dumps(asdict(score)) + "\n" for score in scores)
    return str(folder)


def read_folders(tmp_path: Path, *folders) -> list[ScoredCheckpoint]:
    """Write each list of scores to its own folder, and read the checkpoints of all folders."""
    return [
        checkpoint
        for index, scores in enumerate(folders)
        for checkpoint in read_checkpoints(write_scores(tmp_path / f"run{index}", scores))
    ]


def make_scores(steps: int, wall_seconds: float, average: float, *, tasks=tuple(TASKS), std=0.5) -> list[Score]:
    """Create the scores of a checkpoint, with the number of seeds of the paper for each task."""
    noise = random.Random(f"{steps} {wall_seconds} {average}")
    return [
        make_score(
            task,
            average + noise.gauss(0.0, std),
            step=steps,
            seed=seed,
            pretraining=make_pretraining(steps, wall_seconds),
        )
        for task in tasks
        for seed in SEEDS[: TASKS[task].protocol.num_seeds]
    ]
