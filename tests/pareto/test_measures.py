"""Tests of the measures of a point and their variance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.pareto.checkpoints import BlimpScores
from mosaicbert.pareto.measures import (
    blimp_example_term,
    blimp_scores,
    estimate_blimp,
    estimate_glue,
    estimate_loss,
    task_predictions,
)
from mosaicbert.pareto.selection import select_scores
from mosaicbert.scores.resampling import bootstrap_examples
from mosaicbert.scores.statistics import VarianceTerm
from tests.pareto.scored import make_blimp, make_predicted, make_pretraining, make_score, read_folders


def _losses(tmp_path, *losses):
    return read_folders(
        tmp_path,
        *[[make_score("cola", 50.0, pretraining=make_pretraining(100, 9.0, eval_loss=loss))] for loss in losses],
    )


def test_the_interval_of_a_loss_is_that_of_the_pretraining_seeds(tmp_path):
    losses = [4.0, 4.5, 4.1]
    estimate = estimate_loss(_losses(tmp_path, *losses))
    assert (estimate.value, estimate.values) == (pytest.approx(np.mean(losses)), tuple(losses))
    assert estimate.interval == pytest.approx(stats.t.interval(0.95, 2, loc=np.mean(losses), scale=stats.sem(losses)))


def test_a_loss_of_one_pretraining_seed_has_no_interval(tmp_path):
    assert estimate_loss(_losses(tmp_path, 4.0)).interval is None


def test_there_is_no_loss_if_a_checkpoint_was_not_evaluated(tmp_path):
    assert estimate_loss(_losses(tmp_path / "a", 4.0, None)) is None
    external = [make_score("cola", 50.0, step=None, pretraining=None)]
    assert estimate_loss(read_folders(tmp_path / "b", external)) is None


_DIGITS = st.lists(st.sampled_from("01"), min_size=2, max_size=30).map("".join)


def _blimp(correct: dict[str, str]) -> BlimpScores:
    score, predictions = make_blimp(correct)
    return BlimpScores(is_partial=False, accuracies=score.metrics, predictions={score.task: predictions})


@given(st.dictionaries(st.sampled_from("abcd"), _DIGITS, min_size=1))
def test_the_variance_of_a_blimp_score_is_that_of_the_accuracies_of_its_paradigms(correct):
    term = blimp_example_term([_blimp(correct)])
    errors = [stats.sem([100.0 * int(digit) for digit in digits]) for digits in correct.values()]
    assert term.variance == pytest.approx(sum(error**2 for error in errors) / len(correct) ** 2)
    assert term.degrees_of_freedom == sum(len(digits) - 1 for digits in correct.values())


@given(_DIGITS)
def test_equal_blimp_predictions_of_two_models_have_no_variance(digits):
    model, inverse = _blimp({"a": digits}), _blimp({"a": digits.translate(str.maketrans("01", "10"))})
    assert blimp_example_term([model], [model]).variance == 0.0
    # Opposite predictions are perfectly correlated: twice the difference, four times the variance.
    single = blimp_example_term([model]).variance
    assert blimp_example_term([model], [inverse]).variance == pytest.approx(4 * single)


def test_blimp_scores_without_predictions_have_no_interval(tmp_path):
    first, second = make_blimp({"a": "110"}, "one"), make_blimp({"b": "101"}, "two")
    checkpoints = read_folders(tmp_path, [first, second[0]])
    estimate = estimate_blimp(checkpoints, select_scores(checkpoints, [], None))
    assert estimate.value == pytest.approx(200 / 3)
    assert (estimate.example_terms, estimate.interval) == ((), None)


def test_a_blimp_score_is_the_mean_over_all_paradigms_and_pretraining_seeds(tmp_path):
    folders = [
        [make_blimp({"a": digits, "b": "1111"}, "one"), make_blimp({"c": "0001"}, "two")] for digits in ("0011", "0111")
    ]
    checkpoints = read_folders(tmp_path, *folders)
    estimate = estimate_blimp(checkpoints, select_scores(checkpoints, [], None))
    expected = [100 * (0.5 + 1.0 + 0.25) / 3, 100 * (0.75 + 1.0 + 0.25) / 3]
    assert estimate.values == pytest.approx(expected)
    assert estimate.value == pytest.approx(np.mean(expected))
    (seed_term,) = estimate.seed_terms
    assert (seed_term.variance, seed_term.degrees_of_freedom) == (pytest.approx(stats.sem(expected) ** 2), 1)


def test_incomplete_blimp_scores_of_a_checkpoint_give_no_estimate(tmp_path):
    complete, incomplete = [make_blimp({"a": "10", "b": "11"})], [make_blimp({"a": "10"})]
    checkpoints = read_folders(tmp_path, complete, incomplete, [make_score("cola", 50.0)])
    selection = select_scores(checkpoints, [], None)
    assert estimate_blimp(checkpoints[:1], selection) is not None
    for group in (checkpoints[:2], checkpoints[1:2], checkpoints[2:]):
        assert blimp_scores(group, selection) == []
        assert estimate_blimp(group, selection) is None


def _pairs(*num_correct, task="rte"):
    return [make_predicted(task, count, seed=seed) for seed, count in enumerate(num_correct)]


def test_the_interval_of_a_glue_score_has_the_variance_of_seeds_and_of_examples(tmp_path):
    pairs = {"rte": _pairs(60, 64, 63), "sst2": _pairs(80, task="sst2")}
    checkpoints = read_folders(tmp_path, [*pairs["rte"], *pairs["sst2"]])
    estimate = estimate_glue(checkpoints, select_scores(checkpoints, [], None))
    assert estimate.value == pytest.approx((np.mean([60, 64, 63]) + 80) / 2)
    (seed_term,) = estimate.seed_terms
    assert seed_term.variance == pytest.approx(stats.sem([60, 64, 63]) ** 2 / 4)
    expected = [bootstrap_examples(["accuracy"], [record for _, record in pairs[task]]) for task in ("sst2", "rte")]
    assert estimate.example_terms == tuple(
        VarianceTerm(term.variance / 4, term.degrees_of_freedom) for term in expected
    )
    low, high = estimate.interval
    assert low < estimate.value < high


def test_the_seeds_of_several_pretrainings_are_the_means_of_their_fine_tuning_seeds(tmp_path):
    checkpoints = read_folders(tmp_path, _pairs(60, 64), _pairs(70, 71, 72))
    estimate = estimate_glue(checkpoints, select_scores(checkpoints, [], None))
    assert estimate.values == pytest.approx((62.0, 71.0))
    (seed_term,) = estimate.seed_terms
    assert (seed_term.variance, seed_term.degrees_of_freedom) == (pytest.approx(stats.sem([62.0, 71.0]) ** 2), 1)


def test_the_variance_of_examples_is_unknown_if_a_score_has_no_predictions(tmp_path):
    pairs = _pairs(60, 64)
    checkpoints = read_folders(tmp_path, [pairs[0], pairs[1][0], *_pairs(80, task="sst2")])
    selection = select_scores(checkpoints, [], None)
    assert task_predictions(checkpoints, selection, "rte") is None
    assert len(task_predictions(checkpoints, selection, "sst2")) == 1
    assert estimate_glue(checkpoints, selection).example_terms == ()


def test_the_examples_of_unselected_metrics_do_not_count(tmp_path):
    metrics = {"mnli": ["accuracy_matched"]}
    checkpoints = read_folders(tmp_path, _pairs(60, 62, task="mnli"), metrics=metrics)
    estimate = estimate_glue(checkpoints, select_scores(checkpoints, [], None, metrics))
    (term,) = estimate.example_terms
    assert term.degrees_of_freedom == 99
    both = estimate_glue(checkpoints, select_scores(checkpoints, [], None)).example_terms[0]
    assert (term.variance, both.degrees_of_freedom) == (pytest.approx(2 * both.variance), 198)


def test_a_checkpoint_without_glue_scores_gives_no_estimate(tmp_path):
    checkpoints = read_folders(tmp_path, _pairs(60), [make_blimp({"a": "10"})])
    selection = select_scores(checkpoints, [], None)
    assert estimate_glue(checkpoints[:1], selection) is not None
    assert estimate_glue(checkpoints, selection) is None
    assert estimate_glue(checkpoints[:1], replace(selection, variants={})) is None
