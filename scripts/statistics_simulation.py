"""Simulate the coverage of the confidence intervals of GLUE scores, and the power of the test of differences.

    python scripts/statistics_simulation.py [--repetitions N] [--output FILE]

Each simulated model answers the validation examples of MNLI-matched, QQP, QNLI and SST-2. An example has a difficulty
common to all models and seeds; the rest of an answer is random. The accuracy of a fine-tuning seed deviates from that
of its pretraining run, which deviates from that of its recipe. The true value is that of the recipe for several
pretraining seeds, and that of the pretraining run for one. The output has one line per case.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mosaicbert.environment import describe_environment
from mosaicbert.scores.statistics import (
    SIGNIFICANCE_LEVEL,
    VarianceTerm,
    difference_test,
    example_term,
    mean_over_tasks,
    seed_terms,
    t_interval,
)

_NUM_EXAMPLES = (9_815, 9_928, 5_463, 872)
_ACCURACIES = (0.55, 0.70, 0.65, 0.80)
_FINETUNING_DEVIATIONS = (0.4, 0.5, 0.8, 0.8)  # points, assumed
_PRETRAINING_DEVIATION = 0.4  # points
_NUM_FINETUNING_SEEDS = 3
_COMMON = 0.5  # correlation of the latent answers of two models to one example
_SEED = 0

_Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=500, help="simulated experiments per case")
    parser.add_argument("--output", type=Path, default=Path("statistics.jsonl"), help="file to write")
    arguments = parser.parse_args()
    random = np.random.default_rng(_SEED)
    cases = [(seeds, difference) for seeds in (1, 3) for difference in (0.0, 0.5, 1.0, 2.0)]
    common = {"repetitions": arguments.repetitions, "date": date.today().isoformat()}
    common["environment"] = describe_environment()
    with arguments.output.open("w") as file:
        for num_seeds, difference in cases:
            result = simulate(random, arguments.repetitions, num_pretraining_seeds=num_seeds, difference=difference)
            line = {"num_pretraining_seeds": num_seeds, "difference": difference} | result
            print(json.dumps(line), flush=True)
            file.write(json.dumps(line | common) + "\n")


def simulate(
    random: np.random.Generator, repetitions: int, *, num_pretraining_seeds: int, difference: float
) -> dict[str, float]:
    """Return the coverage of two kinds of intervals and the fraction of significant differences.

    Args:
        random: Random number generator.
        repetitions: Number of simulated experiments.
        num_pretraining_seeds: Number of pretraining seeds of each model.
        difference: True difference of the two models in points.
    """
    is_covered: list[bool] = []
    is_covered_by_seeds: list[bool] = []
    is_significant: list[bool] = []
    for _ in range(repetitions):
        difficulties = [random.normal(size=size) for size in _NUM_EXAMPLES]
        first, first_truth = _experiment(random, difficulties, num_pretraining_seeds, difference)
        second, _ = _experiment(random, difficulties, num_pretraining_seeds, 0.0)
        value, terms = _mean(first), _seed_terms(first)
        is_covered.append(_contains(t_interval(value, [*terms, *_example_terms(first)]), first_truth))
        is_covered_by_seeds.append(_contains(t_interval(value, terms), first_truth))
        test = difference_test(value - _mean(second), [*terms, *_seed_terms(second), *_example_terms(first, second)])
        is_significant.append(test.p_value is not None and test.p_value < SIGNIFICANCE_LEVEL)
    return {
        "coverage": float(np.mean(is_covered)),
        "coverage_of_seeds_alone": float(np.mean(is_covered_by_seeds)),
        "fraction_significant": float(np.mean(is_significant)),
    }


# Returns whether each answer is correct, (pretraining seeds, fine-tuning seeds, examples) by task, and the true score.
def _experiment(
    random: np.random.Generator, difficulties: list[_Array], num_pretraining_seeds: int, difference: float
) -> tuple[list[_Array], float]:
    pretraining = random.normal(0.0, _PRETRAINING_DEVIATION, size=num_pretraining_seeds)
    correct: list[_Array] = []
    for difficulty, accuracy, deviation in zip(difficulties, _ACCURACIES, _FINETUNING_DEVIATIONS, strict=True):
        noise = random.normal(0.0, deviation, size=(num_pretraining_seeds, _NUM_FINETUNING_SEEDS))
        probability = accuracy + (difference + pretraining[:, None] + noise) / 100
        shape = (*noise.shape, len(difficulty))
        answers = np.sqrt(_COMMON) * difficulty + np.sqrt(1 - _COMMON) * random.normal(size=shape)
        correct.append(answers < stats.norm.ppf(probability)[..., None])
    truth = 100 * float(np.mean(_ACCURACIES)) + difference
    return correct, truth + (float(pretraining[0]) if num_pretraining_seeds == 1 else 0.0)


def _tasks(correct: list[_Array]) -> list[list[list[float]]]:
    num_runs = len(correct[0])
    return [[(100 * task[run].mean(axis=1)).tolist() for task in correct] for run in range(num_runs)]


def _mean(correct: list[_Array]) -> float:
    return float(np.mean([mean_over_tasks(tasks) for tasks in _tasks(correct)]))


def _seed_terms(correct: list[_Array]) -> list[VarianceTerm]:
    runs = _tasks(correct)
    return seed_terms([[mean_over_tasks(tasks) for tasks in runs]]) if len(runs) > 1 else seed_terms(runs[0])


def _example_terms(first: list[_Array], second: list[_Array] | None = None) -> list[VarianceTerm]:
    terms: list[VarianceTerm] = []
    for index, task in enumerate(first):
        values = 100 * task.mean(axis=(0, 1))
        if second is not None:
            values = values - 100 * second[index].mean(axis=(0, 1))
        term = example_term([values])
        terms.append(VarianceTerm(term.variance / len(first) ** 2, term.degrees_of_freedom))
    return terms


def _contains(interval: tuple[float, float] | None, value: float) -> bool:
    return interval is not None and interval[0] <= value <= interval[1]


if __name__ == "__main__":
    main()
