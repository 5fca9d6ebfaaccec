import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.scores.statistics import deviation_of, interval_of, mean_of, paired_test

_VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
_TASKS = st.lists(st.lists(_VALUES, min_size=1, max_size=5), min_size=1, max_size=8)


def test_the_mean_is_over_tasks_not_over_scores():
    assert mean_of([[1.0, 2.0, 3.0], [10.0]]) == 6.0


def test_the_average_of_the_published_model_card_follows_from_its_tasks():
    # mosaicml/mosaic-bert-base: MNLI, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE
    tasks = [0.8495, 0.9029, 0.9074, 0.9246, 0.5511, 0.8927, 0.9003, 0.8136]
    assert round(mean_of([[100 * task] for task in tasks]), 2) == 84.28


def test_the_deviation_is_of_a_sample_and_unknown_for_one_seed():
    assert deviation_of([1.0, 3.0]) == pytest.approx(2**0.5)
    assert deviation_of([1.0]) is None


@given(_TASKS)
def test_an_interval_holds_the_mean_and_is_there_where_seeds_can_scatter(tasks):
    interval = interval_of(tasks)
    assert (interval is None) == all(len(seeds) == 1 for seeds in tasks)
    if interval is not None:
        rounding = 1e-9
        assert interval[0] - rounding <= mean_of(tasks) <= interval[1] + rounding


def test_the_same_scores_give_the_same_interval():
    tasks = [[80.0, 81.0, 82.5], [60.0, 61.0]]
    assert interval_of(tasks) == interval_of(tasks)


def test_a_task_with_one_seed_shifts_the_interval_and_narrows_it():
    low, high = interval_of([[80.0, 81.0, 82.0, 83.0]])
    shifted = interval_of([[80.0, 81.0, 82.0, 83.0], [60.0]])
    assert shifted == pytest.approx(((low + 60.0) / 2, (high + 60.0) / 2))


def test_an_interval_of_many_seeds_is_that_of_the_normal_distribution():
    seeds = np.random.default_rng(0).normal(80.0, 2.0, size=400)
    expected = stats.norm.interval(0.95, seeds.mean(), stats.sem(seeds))
    assert interval_of([seeds.tolist()]) == pytest.approx(expected, abs=0.02)


def test_a_bootstrap_of_three_seeds_has_the_variance_of_a_mean():
    seeds = [60.0, 63.0, 70.0]
    low, high = interval_of([seeds] * 25)  # the mean of 25 is normally distributed, and a fifth as wide as one
    error = stats.sem(seeds) / 25**0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.03)


@given(st.lists(st.lists(_VALUES, min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_test_says_that_there_is_a_difference_where_its_interval_leaves_out_zero(tasks):
    test = paired_test(tasks)
    assert (test.p_value is None) == (test.interval is None)
    assert test.tested == tuple(index for index, seeds in enumerate(tasks) if len(seeds) > 1)
    if test.interval is not None:
        low, high = test.interval
        assert (test.p_value < 0.05) == (not low <= 0.0 <= high)
        assert test.difference == pytest.approx(mean_of([tasks[index] for index in test.tested]))


@given(st.lists(_VALUES, min_size=3, max_size=10).filter(lambda values: np.std(values) > 1e-3))
def test_of_one_task_it_is_the_paired_t_test(differences):
    test, known = paired_test([differences]), stats.ttest_1samp(differences, 0.0)
    assert test.p_value == pytest.approx(known.pvalue)
    assert test.interval == pytest.approx(tuple(known.confidence_interval(0.95)))


def test_of_two_tasks_it_is_welchs_test():
    first, second = [3.0, 4.5, 5.0, 4.0], [1.0, -2.0, 7.0]
    known = stats.ttest_ind(first, [-value for value in second], equal_var=False)  # mean(first) + mean(second) = 0?
    assert paired_test([first, second]).p_value == pytest.approx(known.pvalue)


@given(st.lists(_VALUES, min_size=2, max_size=10))
def test_exchanging_the_two_changes_the_sign_and_not_p(differences):
    one, other = paired_test([differences]), paired_test([[-value for value in differences]])
    assert one.p_value == other.p_value
    assert one.difference == -other.difference


@pytest.mark.parametrize(
    "tasks, enough",
    [([[1.0]], False), ([[1.0, 2.0]], False), ([[1.0], [2.0], [3.0]], False), ([[1.0, 2.0], [3.0, 5.0]], True)],
)
def test_a_scatter_that_one_pair_of_numbers_tells_is_too_little(tasks, enough):
    assert (paired_test(tasks).p_value is not None) == enough


def test_without_scatter_nothing_can_be_said_but_that_equals_are_equal():
    assert paired_test([[2.0] * 5]).p_value is None
    test = paired_test([[0.0] * 5, [0.0] * 5])
    assert (test.difference, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize("num_examples", [277, 408, 872, 1043])
@pytest.mark.parametrize("more", [0, 3])
def test_seeds_that_differ_by_as_many_examples_do_not_scatter(num_examples, more):
    right = np.random.default_rng(0).integers(num_examples - more, size=(100, 3))
    for counts in right:
        first, second = 100 * (counts + more) / num_examples, 100 * counts / num_examples
        test = paired_test([(first - second).tolist()])
        assert test.is_without_scatter == (more > 0)
        assert test.p_value == (None if more else 1.0)


def test_where_nothing_differs_a_difference_is_said_one_time_in_twenty():
    # Five tasks of three seeds whose scatter differs as GLUE's does, and whose differences cancel out.
    random = np.random.default_rng(0)
    scatter, means = np.array([0.2, 0.5, 1.0, 2.0, 3.0]), np.array([4.0, -4.0, 1.0, -3.0, 2.0])
    differences = means[:, None] + scatter[:, None] * random.normal(size=(2_000, 5, 3))
    said = [paired_test(tasks.tolist()).p_value < 0.05 for tasks in differences]
    assert 0.03 < np.mean(said) < 0.065
