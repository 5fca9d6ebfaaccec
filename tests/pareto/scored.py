"""Synthetic score records and predictions, without training."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import f1_score, matthews_corrcoef

from mosaicbert.config.glue import MNLI, SEEDS, TASKS
from mosaicbert.config.pareto import ParetoConfig, ParetoRecipe
from mosaicbert.pareto.checkpoints import ScoredCheckpoint, read_checkpoints
from mosaicbert.scores.predictions import PREDICTIONS_FILE, Predictions, SplitPredictions, make_predictions
from mosaicbert.scores.records import BLIMP_PREFIX, SCORES_FILE, Pretraining, Score

FIVE_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte")


def pareto_recipe(folder: Path, series, **changes) -> ParetoRecipe:
    """Create a recipe without published points, whose output folder is `folder`/figure."""
    config = ParetoConfig(series=series, **({"reference": False} | changes))
    return ParetoRecipe(run_name="figure", runs_folder=str(folder), pareto=config)


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


def make_predicted(task: str, num_correct: int, *, num_examples: int = 100, **changes) -> tuple[Score, Predictions]:
    """Create a score of a classification task, and its predictions, of which the first are correct."""
    labels = np.arange(num_examples) % 2
    predictions = np.where(np.arange(num_examples) < num_correct, labels, 1 - labels)
    digits = SplitPredictions(labels="".join(map(str, labels)), predictions="".join(map(str, predictions)))
    values = {
        "accuracy": num_correct / num_examples,
        "f1": float(f1_score(labels, predictions)),
        "matthews_correlation": float(matthews_corrcoef(labels, predictions)),
    }
    names = TASKS[task].metrics
    suffixes = {f"_{name.partition('_')[2]}" if task == MNLI else "" for name in names}
    metrics = {name: values[name.partition("_")[0] if task == MNLI else name] for name in names}
    score = make_score(task, 0.0, **({"metrics": metrics} | changes))
    return score, make_predictions(score, dict.fromkeys(sorted(suffixes), digits))


def make_blimp(correct: dict[str, str], phenomenon: str = "agreement", **changes) -> tuple[Score, Predictions]:
    """Create a BLiMP score of one phenomenon.

    Args:
        correct: For each paradigm, one digit per pair: 1 if it is correct.
        phenomenon: Name of the phenomenon.
        changes: Changed fields of the score.
    """
    fields = {
        "metrics": {name: digits.count("1") / len(digits) for name, digits in correct.items()},
        "seed": 0,
        "protocol": "blimp-official",
        "initialized_from": "pretraining",
    }
    score = replace(make_score("cola", 0.0), task=f"{BLIMP_PREFIX}{phenomenon}", **(fields | changes))
    splits = {name: SplitPredictions(labels="1" * len(digits), predictions=digits) for name, digits in correct.items()}
    return score, make_predictions(score, splits)


def make_pretraining(steps: int, wall_seconds: float, **changes) -> Pretraining:
    """Create the cost of a run with 1000 tokens per step."""
    fields = {
        "steps": steps,
        "tokens": 1000 * steps,
        "seconds": 0.9 * wall_seconds,
        "wall_seconds": wall_seconds,
        "flops": 1e12 * steps,
        "device": "H200",
        "num_devices": 1,
    }
    return Pretraining(**(fields | changes))


def write_scores(folder: Path, scores) -> str:
    """Append scores to the scores.jsonl of a folder, and return the folder.

    Args:
        folder: Folder, which need not exist.
        scores: Scores, or pairs of a score and its predictions, which are appended to predictions.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SCORES_FILE).open("a") as score_file, (folder / PREDICTIONS_FILE).open("a") as predictions_file:
        for item in scores:
            score, *predictions = item if isinstance(item, tuple) else (item,)
            score_file.write(json.dumps(asdict(score)) + "\n")
            predictions_file.writelines(json.dumps(asdict(record)) + "\n" for record in predictions)
    return str(folder)


def read_folders(tmp_path: Path, *folders, metrics=None) -> list[ScoredCheckpoint]:
    """Write each list of scores to its own folder, and read the checkpoints of all folders."""
    return [
        checkpoint
        for index, scores in enumerate(folders)
        for checkpoint in read_checkpoints(write_scores(tmp_path / f"run{index}", scores), metrics)
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
