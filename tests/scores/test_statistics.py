import itertools
import statistics

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
def test_an_interval_holds_the_mean_and_stays_within_the_scores(tasks):
    interval = interval_of(tasks)
    assert (interval is None) == all(len(seeds) == 1 for seeds in tasks)
    if interval is not None:
        low, high = interval
        rounding = 1e-9
        assert low - rounding <= mean_of(tasks) <= high + rounding
        assert statistics.fmean(map(min, tasks)) - rounding <= low
        assert high <= statistics.fmean(map(max, tasks)) + rounding


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


def _by_enumeration(tasks) -> float:
    """Share of all sign flips whose mean is as far from zero."""
    weighted = [value / (len(seeds) * len(tasks)) for seeds in tasks for value in seeds]
    means = [abs(np.dot(signs, weighted)) for signs in itertools.product((1, -1), repeat=len(weighted))]
    return float(np.mean([mean >= abs(sum(weighted)) * (1 - 1e-9) - 1e-12 for mean in means]))


@given(
    st.lists(st.lists(_VALUES, min_size=1, max_size=4), min_size=1, max_size=3).filter(
        lambda tasks: sum(map(len, tasks)) <= 9
    )
)
def test_p_is_the_share_of_sign_flips_that_go_as_far(tasks):
    test = paired_test(tasks)
    assert test.is_exact
    assert test.p_value == pytest.approx(_by_enumeration(tasks))
    assert test.difference == pytest.approx(mean_of(tasks))


@given(st.lists(_VALUES.filter(lambda value: value != 0), min_size=2, max_size=10))
def test_exchanging_the_two_changes_the_sign_and_not_p(differences):
    one, other = paired_test([differences]), paired_test([[-value for value in differences]])
    assert one.p_value == other.p_value
    assert one.difference == -other.difference


@pytest.mark.parametrize("num_pairs, enough", [(1, False), (5, False), (6, True)])
def test_pairs_of_one_sign_give_the_smallest_p(num_pairs, enough):
    test = paired_test([[1.0 + index for index in range(num_pairs)]])
    assert test.p_value == test.smallest_p == 2 / 2**num_pairs
    assert test.has_enough_pairs == enough


def test_p_of_clear_cases_is_close_to_that_of_other_tests():
    random = np.random.default_rng(1)
    for shift, significant in ((0.0, False), (1.5, True)):
        differences = random.normal(shift, 1.0, size=15)
        test = paired_test([differences.tolist()])
        others = (stats.wilcoxon(differences).pvalue, stats.ttest_1samp(differences, 0.0).pvalue)
        assert {p < 0.05 for p in (test.p_value, *others)} == {significant}
        assert test.p_value == pytest.approx(others[1], abs=0.03)


def test_many_pairs_are_tested_on_a_sample_of_the_flips_and_p_is_never_zero():
    test = paired_test([[1.0] * 5] * 8)
    assert not test.is_exact
    assert 0.0 < test.p_value < 0.001


def test_equal_scores_show_no_difference():
    test = paired_test([[0.0] * 5, [0.0] * 5])
    assert (test.difference, test.interval, test.p_value) == (0.0, (0.0, 0.0), 1.0)
