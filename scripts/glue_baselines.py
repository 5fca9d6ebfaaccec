"""Score two classifiers without an encoder on GLUE: the majority answer, and words with their overlap.

    python scripts/glue_baselines.py RECIPE [section.key=value ...]

RECIPE is a recipe of `mosaicbert glue`. Its data, tasks and numbers of training examples are used, its model is not.
For text pairs the second classifier is a gradient boosting of nine features: the numbers of words, and how many words
and word pairs the texts share. For single texts it is a logistic regression of the words. The score records are written
to majority-answer and bag-of-words in the runs folder, for `pareto.baselines`.
"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mosaicbert.config.glue import TASKS, GlueRecipe
from mosaicbert.config.load import load_recipe
from mosaicbert.config.shipped import find_recipe
from mosaicbert.finetune.glue.dataset import GlueTaskData, find_tasks, read_glue_task
from mosaicbert.finetune.glue.settings import describe_settings
from mosaicbert.finetune.metrics import REGRESSION, compute_metrics, problem_type_of
from mosaicbert.finetune.tables import Examples
from mosaicbert.scores.predictions import (
    PREDICTIONS_FILE,
    SplitPredictions,
    append_predictions,
    encode_values,
    make_predictions,
)
from mosaicbert.scores.records import PRETRAINED, SCORES_FILE, Score, append_score
from mosaicbert.scoring.plan import describe_scoring_environment, fingerprint

_SEED = 0
_WORD = re.compile(r"\w+")
_NEGATIONS = {"no", "not", "never", "none", "nothing", "nobody", "n't", "without", "neither", "nor", "cannot"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="YAML file or name of a recipe of `mosaicbert glue`")
    parser.add_argument("overrides", nargs="*", help="overrides as section.key=value")
    arguments = parser.parse_args()
    recipe = load_recipe(find_recipe(arguments.recipe, "glue"), arguments.overrides, GlueRecipe)
    summaries, _ = find_tasks(recipe.glue)
    for task in summaries:
        data = read_glue_task(recipe.glue, task)
        settings = describe_settings(recipe.glue, task, summaries)
        for name, model in (("majority-answer", _majority(task)), ("bag-of-words", _bag_of_words(task))):
            folder = Path(recipe.runs_folder) / name
            folder.mkdir(parents=True, exist_ok=True)
            score, splits = _score(name, task, model, data, settings)
            append_predictions(folder / PREDICTIONS_FILE, make_predictions(score, splits))
            append_score(folder / SCORES_FILE, score)
            print(f"{name} / {TASKS[task].title}: {score.value:.2f}", flush=True)


def _majority(task: str) -> Any:
    return DummyRegressor() if TASKS[task].num_labels == 1 else DummyClassifier(strategy="most_frequent")


def _bag_of_words(task: str) -> Any:
    if TASKS[task].num_labels == 1:
        return HistGradientBoostingRegressor(random_state=_SEED)
    if len(TASKS[task].columns) == 2:
        return HistGradientBoostingClassifier(random_state=_SEED)
    return make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1_000))


def _score(
    name: str, task: str, model: Any, data: GlueTaskData, settings: dict[str, Any]
) -> tuple[Score, dict[str, SplitPredictions]]:
    start_time = time.monotonic()
    problem_type = problem_type_of(TASKS[task].num_labels)
    is_regression = problem_type == REGRESSION
    weights = _inverse_frequencies(data.train)
    model.fit(_inputs(data.train, weights), np.array(data.train.labels))
    metrics: dict[str, float] = {}
    splits: dict[str, SplitPredictions] = {}
    for suffix, examples in data.validation.items():
        predicted = torch.tensor(model.predict(_inputs(examples, weights)))
        labels = torch.tensor(examples.labels)
        # Logits whose largest entry is the predicted class.
        logits = predicted[:, None] if is_regression else torch.eye(TASKS[task].num_labels)[predicted]
        names = tuple(metric.removesuffix(suffix) for metric in TASKS[task].metrics if metric.endswith(suffix))
        values = compute_metrics(names, problem_type, logits, labels)
        metrics |= {f"{metric}{suffix}": value for metric, value in values.items()}
        splits[suffix] = SplitPredictions(
            labels=encode_values(labels.tolist(), is_regression=is_regression),
            predictions=encode_values(predicted.tolist(), is_regression=is_regression),
        )
    score = Score(
        model=name,
        step=None,
        task=task,
        seed=_SEED,
        metrics=metrics,
        protocol=fingerprint(settings),
        settings=settings,
        initialized_from=PRETRAINED,
        is_partial=data.is_partial,
        seconds=round(time.monotonic() - start_time, 2),
        pretraining=None,
        environment=describe_scoring_environment(),
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return score, splits


def _inputs(examples: Examples, weights: dict[str, float]) -> Any:
    if len(examples.texts) == 1:
        return examples.texts[0]
    return np.array([_overlap(first, second, weights) for first, second in zip(*examples.texts, strict=True)])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _inverse_frequencies(examples: Examples) -> dict[str, float]:
    texts = [set(_words(text)) for column in examples.texts for text in column]
    counts = Counter(word for words in texts for word in words)
    return {word: float(np.log(len(texts) / count)) for word, count in counts.items()}


def _overlap(first: str, second: str, weights: dict[str, float]) -> list[float]:
    first_words, second_words = _words(first), _words(second)
    sets = set(first_words), set(second_words)
    common = sets[0] & sets[1]
    pairs = set(pairwise(first_words)), set(pairwise(second_words))
    return [
        len(first_words),
        len(second_words),
        len(common),
        _fraction(common, sets[0]),
        _fraction(common, sets[1]),
        _fraction(common, sets[0] | sets[1]),
        _fraction(pairs[0] & pairs[1], pairs[0] | pairs[1]),
        sum(weights.get(word, 0.0) for word in common) / max(1e-9, sum(weights.get(word, 0.0) for word in sets[1])),
        float(bool(sets[0] & _NEGATIONS) != bool(sets[1] & _NEGATIONS)),
    ]


def _fraction(part: Sequence[Any] | set[Any], whole: set[Any]) -> float:
    return len(part) / max(1, len(whole))


if __name__ == "__main__":
    main()
