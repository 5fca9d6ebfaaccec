import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mosaicbert.scores.statistics import (
    VarianceTerm,
    accuracy_term,
    combine_terms,
    difference_test,
    example_term,
    mean_over_tasks,
    sample_deviation,
    seed_terms,
    t_interval,
)

_VALUES = st.floats(-100, 100).map(lambda value: round(value, 3))
_SEEDS = st.lists(_VALUES, min_size=2, max_size=10).filter(lambda values: max(values) - min(values) > 1e-3)
_TASKS = st.lists(st.lists(_VALUES, min_size=1, max_size=5), min_size=1, max_size=8)
_TERMS = st.lists(st.builds(VarianceTerm, st.floats(1e-6, 1e3), st.floats(1, 1e4)), min_size=1, max_size=6)


def test_the_mean_is_over_tasks_not_over_scores():
    assert mean_over_tasks([[1.0, 2.0, 3.0], [10.0]]) == 6.0


def test_the_mean_reproduces_the_average_of_the_published_model_card():
    # mosaicml/mosaic-bert-base: MNLI, QQP, QNLI, SST-2, CoLA, STS-B, MRPC, RTE
    tasks = [0.8495, 0.9029, 0.9074, 0.9246, 0.5511, 0.8927, 0.9003, 0.8136]
    assert round(mean_over_tasks([[100 * task] for task in tasks]), 2) == 84.28


def test_the_deviation_is_that_of_a_sample_and_none_for_one_seed():
    assert sample_deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert sample_deviation([1.0]) is None


@given(_SEEDS)
def test_the_interval_of_one_task_is_the_t_interval_of_its_mean(seeds):
    expected = stats.t.interval(0.95, len(seeds) - 1, loc=np.mean(seeds), scale=stats.sem(seeds))
    assert t_interval(mean_over_tasks([seeds]), seed_terms([seeds])) == pytest.approx(expected)


@given(_TASKS)
def test_the_variance_of_a_mean_over_tasks_is_the_sum_of_the_squared_standard_errors(tasks):
    terms = seed_terms(tasks)
    repeated = [seeds for seeds in tasks if len(seeds) > 1]
    assert [term.degrees_of_freedom for term in terms] == [len(seeds) - 1 for seeds in repeated]
    expected = [stats.sem(seeds) ** 2 / len(tasks) ** 2 for seeds in repeated]
    assert [term.variance for term in terms] == pytest.approx(expected)


def test_seeds_that_differ_by_rounding_have_zero_variance():
    num_correct = np.arange(50, 60)
    exact, rounded = 100 * num_correct / 277, 100 * (num_correct / 277)
    assert any(exact != rounded)
    assert all(seed_terms([list(seeds)])[0].variance == 0.0 for seeds in zip(exact, rounded, strict=True))


@given(st.lists(st.lists(_VALUES, min_size=2, max_size=30), min_size=1, max_size=5))
def test_the_variance_over_examples_is_that_of_the_means_of_independent_groups(groups):
    term = example_term([np.array(values) for values in groups])
    expected = sum(stats.sem(values) ** 2 for values in groups) / len(groups) ** 2
    assert term.variance == pytest.approx(expected)
    assert term.degrees_of_freedom == sum(map(len, groups)) - len(groups)


def test_a_group_of_one_example_has_no_variance():
    assert example_term([np.array([3.0])]) == VarianceTerm(0.0, 1)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=50), min_size=1, max_size=5))
def test_the_variance_of_accuracies_is_that_of_their_examples(groups):
    term = accuracy_term([float(np.mean(correct)) for correct in groups], [len(correct) for correct in groups])
    expected = example_term([np.array(correct, dtype=float) for correct in groups])
    assert term.variance == pytest.approx(expected.variance)
    assert term.degrees_of_freedom == expected.degrees_of_freedom


@given(_TERMS)
def test_combined_variances_are_added_and_their_degrees_of_freedom_are_bounded(terms):
    total = combine_terms(terms)
    degrees = [term.degrees_of_freedom for term in terms]
    assert total.variance == pytest.approx(sum(term.variance for term in terms))
    rounding = 1e-9
    assert min(degrees) * (1 - rounding) <= total.degrees_of_freedom <= sum(degrees) * (1 + rounding)


@given(st.floats(1e-6, 1e3), st.floats(1, 1e4), st.integers(1, 10))
def test_equal_terms_have_the_sum_of_their_degrees_of_freedom(variance, degrees_of_freedom, count):
    total = combine_terms([VarianceTerm(variance, degrees_of_freedom)] * count)
    assert total.degrees_of_freedom == pytest.approx(count * degrees_of_freedom)


@given(_TERMS, st.floats(1, 1e4))
def test_a_term_without_variance_does_not_change_the_others(terms, degrees_of_freedom):
    total, extended = combine_terms(terms), combine_terms([*terms, VarianceTerm(0.0, degrees_of_freedom)])
    assert (extended.variance, extended.degrees_of_freedom) == pytest.approx((total.variance, total.degrees_of_freedom))


def test_there_is_no_interval_without_a_term_and_an_interval_without_variance_has_no_width():
    assert t_interval(5.0, []) is None
    assert t_interval(5.0, [VarianceTerm(0.0, 3)]) == (5.0, 5.0)


@given(_SEEDS, _SEEDS)
def test_the_test_of_two_models_is_welchs_test(first, second):
    test = difference_test(np.mean(first) - np.mean(second), seed_terms([first]) + seed_terms([second]))
    expected = stats.ttest_ind(first, second, equal_var=False)
    # The difference of two means of up to 100 has an absolute rounding error.
    interval = tuple(expected.confidence_interval(0.95))
    assert test.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    assert test.interval == pytest.approx(interval, abs=1e-9)


@given(st.floats(-100, 100), _TERMS)
def test_a_difference_is_significant_exactly_if_the_interval_excludes_zero(difference, terms):
    test = difference_test(difference, terms)
    low, high = test.interval
    assert low <= difference <= high
    assert (test.p_value < 0.05) == (not low <= 0.0 <= high)


@given(st.floats(-100, 100), _TERMS)
def test_exchanging_the_models_changes_the_sign_but_not_the_p_value(difference, terms):
    test, exchanged = difference_test(difference, terms), difference_test(-difference, terms)
    assert test.p_value == exchanged.p_value
    assert test.difference == -exchanged.difference
    assert test.interval == pytest.approx(tuple(-bound for bound in reversed(exchanged.interval)))


def test_a_difference_without_a_variance_estimate_is_not_tested():
    test = difference_test(3.0, [])
    assert (test.difference, test.interval, test.p_value) == (3.0, None, None)


@pytest.mark.parametrize("variance", [0.0, 1e-33], ids=["zero", "rounding"])
def test_a_test_with_zero_variance_has_a_p_value_only_for_equal_models(variance):
    terms = [VarianceTerm(variance, 2), VarianceTerm(variance, 300)]
    assert difference_test(2.0, terms).p_value is None
    test = difference_test(1e-14, terms)
    assert (test.interval, test.p_value) == ((0.0, 0.0), 1.0)


_NUM_SIMULATIONS = 1_500
_MAX_ERROR = 3 * (0.05 * 0.95 / _NUM_SIMULATIONS) ** 0.5  # three standard errors of the simulation
_NUM_EXAMPLES = 40
_SEED_DEVIATIONS = (0.2, 0.5, 1.0, 2.0, 3.0)  # of five tasks, as different as in GLUE
_EXAMPLE_DEVIATIONS = (4.0, 1.0, 8.0, 2.0, 6.0)


def _simulate(random: np.random.Generator, examples: np.ndarray) -> tuple[list[list[float]], float]:
    """Return scores of three seeds of five tasks with a true mean of zero, on the given examples."""
    seeds = np.array(_SEED_DEVIATIONS)[:, None] * random.normal(size=(len(_SEED_DEVIATIONS), 3))
    scores = (seeds + examples.mean(axis=1, keepdims=True)).tolist()
    return scores, mean_over_tasks(scores)


def _simulate_examples(random: np.random.Generator) -> np.ndarray:
    return np.array(_EXAMPLE_DEVIATIONS)[:, None] * random.normal(size=(len(_EXAMPLE_DEVIATIONS), _NUM_EXAMPLES))


def test_the_interval_of_a_mean_over_tasks_contains_the_true_mean_in_95_percent_of_the_cases():
    random = np.random.default_rng(0)
    num_covered = 0
    for _ in range(_NUM_SIMULATIONS):
        examples = _simulate_examples(random)
        scores, mean = _simulate(random, examples)
        low, high = t_interval(mean, [*seed_terms(scores), example_term(list(examples))])
        num_covered += low <= 0.0 <= high
    assert num_covered / _NUM_SIMULATIONS == pytest.approx(0.95, abs=_MAX_ERROR)


def test_the_false_positive_rate_is_five_percent():
    # Two equal models on the same examples, whose predictions differ on some of them.
    random = np.random.default_rng(0)
    num_significant = 0
    for _ in range(_NUM_SIMULATIONS):
        common = _simulate_examples(random)
        examples = [common + 0.3 * _simulate_examples(random) for _ in range(2)]
        (first, first_mean), (second, second_mean) = (_simulate(random, item) for item in examples)
        terms = [*seed_terms(first), *seed_terms(second), example_term(list(examples[0] - examples[1]))]
        num_significant += difference_test(first_mean - second_mean, terms).p_value < 0.05
    assert num_significant / _NUM_SIMULATIONS == pytest.approx(0.05, abs=_MAX_ERROR)


def test_ignoring_the_examples_gives_too_narrow_intervals():
    random = np.random.default_rng(0)
    num_covered = 0
    for _ in range(_NUM_SIMULATIONS):
        scores, mean = _simulate(random, _simulate_examples(random))
        low, high = t_interval(mean, seed_terms(scores))
        num_covered += low <= 0.0 <= high
    assert num_covered / _NUM_SIMULATIONS < 0.95 - _MAX_ERROR
