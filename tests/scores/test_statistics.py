import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.scores.statistics import bootstrap_interval, mean_over_tasks, paired_test, sample_deviation

_VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
_TASKS = st.lists(st.lists(_VALUES, min_size=1, max_size=5), min_size=1, max_size=8)


def test_the_mean_is_over_tasks_not_over_scores():
    assert mean_over_tasks([[1.0, 2.0, 3.0], [10.0]]) == 6.0


def test_the_mean_reproduces_the_average_of_the_published_model_card():
    # mosaicml/mosaic-bert-base: MNLI, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE
    tasks = [0.8495, 0.9029, 0.9074, 0.9246, 0.5511, 0.8927, 0.9003, 0.8136]
    assert round(mean_over_tasks([[100 * task] for task in tasks]), 2) == 84.28


def test_the_deviation_is_that_of_a_sample_and_none_for_one_seed():
    assert sample_deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert sample_deviation([1.0]) is None


@given(_TASKS)
def test_an_interval_contains_the_mean_and_needs_two_seeds_of_a_task(tasks):
    interval = bootstrap_interval(tasks)
    assert (interval is None) == all(len(seeds) == 1 for seeds in tasks)
    if interval is not None:
        rounding = 1e-9
        assert interval[0] - rounding <= mean_over_tasks(tasks) <= interval[1] + rounding


def test_the_same_scores_have_the_same_interval():
    tasks = [[80.0, 81.0, 82.5], [60.0, 61.0]]
    assert bootstrap_interval(tasks) == bootstrap_interval(tasks)


def test_a_task_with_one_seed_shifts_the_interval_and_narrows_it():
    low, high = bootstrap_interval([[80.0, 81.0, 82.0, 83.0]])
    shifted = bootstrap_interval([[80.0, 81.0, 82.0, 83.0], [60.0]])
    assert shifted == pytest.approx(((low + 60.0) / 2, (high + 60.0) / 2))


def test_the_interval_of_many_seeds_is_that_of_the_normal_distribution():
    seeds = np.random.default_rng(0).normal(80.0, 2.0, size=400)
    expected = stats.norm.interval(0.95, seeds.mean(), stats.sem(seeds))
    assert bootstrap_interval([seeds.tolist()]) == pytest.approx(expected, abs=0.02)


def test_the_bootstrap_of_three_seeds_has_the_variance_of_the_mean():
    seeds = [60.0, 63.0, 70.0]
    low, high = bootstrap_interval([seeds] * 25)  # the mean of 25 tasks is normally distributed
    error = stats.sem(seeds) / 25**0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.03)


@given(st.lists(st.lists(_VALUES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_difference_is_significant_exactly_if_the_interval_excludes_zero(tasks):
    test = paired_test(tasks)
    assert (test.p_value is None) == (test.interval is None)
    assert test.tested_tasks == tuple(index for index, seeds in enumerate(tasks) if len(seeds) > 1)
    if test.interval is not None:
        low, high = test.interval
        assert (test.p_value < 0.05) == (not low <= 0.0 <= high)
        assert test.difference == pytest.approx(mean_over_tasks([tasks[index] for index in test.tested_tasks]))


@given(st.lists(_VALUES, min_size=3, max_size=10).filter(lambda values: np.std(values) > 1e-3))
def test_the_test_of_one_task_is_the_paired_t_test(differences):
    test, expected = paired_test([differences]), stats.ttest_1samp(differences, 0.0)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_test_of_two_tasks_is_welchs_test():
    first, second = [3.0, 4.5, 5.0, 4.0], [1.0, -2.0, 7.0]
    expected = stats.ttest_ind(
        first, [-value for value in second], equal_var=False
    )  # null hypothesis: mean(first) + mean(second) = 0
    assert paired_test([first, second]).p_value == pytest.approx(expected.pvalue)


@given(st.lists(_VALUES, min_size=2, max_size=10))
def test_exchanging_the_models_changes_the_sign_but_not_the_p_value(differences):
    test, exchanged = paired_test([differences]), paired_test([[-value for value in differences]])
    assert test.p_value == exchanged.p_value
    assert test.difference == -exchanged.difference


@pytest.mark.parametrize(
    "tasks, is_testable",
    [([[1.0]], False), ([[1.0, 2.0]], False), ([[1.0], [2.0], [3.0]], False), ([[1.0, 2.0], [3.0, 5.0]], True)],
)
def test_a_test_needs_two_degrees_of_freedom(tasks, is_testable):
    assert (paired_test(tasks).p_value is not None) == is_testable


def test_a_test_with_zero_variance_has_a_p_value_only_for_equal_models():
    assert paired_test([[2.0] * 5]).p_value is None
    test = paired_test([[0.0] * 5, [0.0] * 5])
    assert (test.difference, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("num_examples", [277, 408, 872, 1043])
@pytest.mark.parametrize("num_more", [0, 3])
def test_equal_differences_in_numbers_of_examples_have_zero_variance(num_examples, num_more):
    num_correct = np.random.default_rng(0).integers(num_examples - num_more, size=(100, 3))
    for counts in num_correct:
        first, second = 100 * (counts + num_more) / num_examples, 100 * counts / num_examples
        test = paired_test([(first - second).tolist()])
        assert test.has_zero_variance == (num_more > 0)
        assert test.p_value == (None if num_more else 1.0)


def test_the_false_positive_rate_is_five_percent():
    # Five tasks with three seeds each, with different variances as in GLUE, and with a mean difference of zero.
    random = np.random.default_rng(0)
    deviations, means = np.array([0.2, 0.5, 1.0, 2.0, 3.0]), np.array([4.0, -4.0, 1.0, -3.0, 2.0])
    differences = means[:, None] + deviations[:, None] * random.normal(size=(2_000, 5, 3))
    is_significant = [paired_test(tasks.tolist()).p_value < 0.05 for tasks in differences]
    assert 0.03 < np.mean(is_significant) < 0.065
