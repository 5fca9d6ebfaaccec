"""Tests of the variance over examples, against formulas, scikit-learn, scipy and explicit resamples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mosaicbert.scores.predictions import Predictions, SplitPredictions, encode_values
from mosaicbert.scores.resampling import (
    _CLASS_METRICS,
    _CLASS_RESAMPLES,
    _NUMBER_RESAMPLES,
    _standardized_ranks,
    bootstrap_examples,
)

_SKLEARN_METRICS = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0),
    "matthews_correlation": matthews_corrcoef,
}


def _predictions(**splits) -> Predictions:
    """Create predictions from pairs of labels and predictions, by split."""
    encoded = {
        suffix: SplitPredictions(
            labels=encode_values(labels, is_regression=np.asarray(labels).dtype == float),
            predictions=encode_values(values, is_regression=np.asarray(values).dtype == float),
        )
        for suffix, (labels, values) in splits.items()
    }
    return Predictions(model="m", step=1, task="t", seed=0, protocol="p", finished="now", splits=encoded)


def _of_one_split(labels, predictions) -> Predictions:
    return _predictions(**{"": (labels, predictions)})


def _random_classes(seed: int, count: int, accuracy: float, num_labels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(num_labels, size=count)
    is_wrong = random.random(count) > accuracy
    return labels, np.where(is_wrong, (labels + 1) % num_labels, labels)


@given(num_examples=st.integers(20, 2_000), fraction=st.floats(0.2, 0.8))
def test_the_variance_of_an_accuracy_is_that_of_a_binomial_proportion(num_examples, fraction):
    num_correct = round(fraction * num_examples)
    accuracy = num_correct / num_examples
    predictions = _of_one_split([1] * num_examples, [1] * num_correct + [0] * (num_examples - num_correct))
    term = bootstrap_examples(["accuracy"], [predictions])
    expected = 100**2 * accuracy * (1 - accuracy) / num_examples
    # Five standard errors of a variance of R resamples, whose excess kurtosis is negligible here.
    assert term.variance == pytest.approx(expected, rel=5 * (2 / (_CLASS_RESAMPLES - 1)) ** 0.5)
    assert term.degrees_of_freedom == num_examples - 1


@pytest.mark.parametrize("is_correct", [True, False])
def test_equally_predicted_examples_have_no_variance(is_correct):
    predictions = _of_one_split([1] * 30, [int(is_correct)] * 30)
    assert bootstrap_examples(["accuracy"], [predictions]).variance == 0.0


def test_a_single_example_has_one_degree_of_freedom():
    assert bootstrap_examples(["accuracy"], [_of_one_split([1], [1])]).degrees_of_freedom == 1


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(data=st.data(), num_examples=st.integers(1, 30), num_labels=st.integers(2, 3))
def test_the_metrics_of_resamples_are_those_of_scikit_learn(data, num_examples, num_labels):
    values = st.lists(st.integers(0, num_labels - 1), min_size=num_examples, max_size=num_examples)
    labels, predictions = np.array(data.draw(values)), np.array(data.draw(values))
    indices = st.lists(st.integers(0, num_examples - 1), min_size=num_examples, max_size=num_examples)
    resamples = np.array(data.draw(st.lists(indices, min_size=1, max_size=4)))
    counts = np.stack([np.bincount(resample, minlength=num_examples) for resample in resamples]).astype(float)
    for name in _CLASS_METRICS if num_labels == 2 else ("accuracy",):
        expected = [_SKLEARN_METRICS[name](labels[resample], predictions[resample]) for resample in resamples]
        assert _CLASS_METRICS[name](counts, labels, predictions) == pytest.approx(expected)


@given(
    st.lists(
        st.tuples(st.integers(0, 5).map(float), st.floats(-10, 10).map(lambda x: round(x, 1))), min_size=3, max_size=20
    )
)
def test_the_rank_correlation_is_that_of_scipy_and_zero_for_constant_values(pairs):
    labels, predictions = np.array(pairs).T
    value = float((_standardized_ranks(labels[None]) * _standardized_ranks(predictions[None])).sum())
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        assert value == 0.0
    else:
        assert value == pytest.approx(stats.spearmanr(labels, predictions).statistic)


def _explicit_values(metric, labels, predictions, num_resamples: int) -> list[float]:
    random = np.random.default_rng(99)
    values = []
    for _ in range(num_resamples):
        indices = random.integers(len(labels), size=len(labels))
        values.append(100 * metric(labels[indices], predictions[indices]))
    return values


def _assert_equal_variances(first: float, num_first: int, second: float, num_second: int) -> None:
    """Check that two variances are equal at a significance level of one in a million."""
    low, high = stats.f.interval(1 - 1e-6, num_first - 1, num_second - 1)
    assert low < first / second < high


@pytest.mark.parametrize("names", [["f1"], ["matthews_correlation"], ["accuracy", "f1"]], ids="-".join)
def test_the_variance_of_class_metrics_is_that_of_explicit_resamples(names):
    labels, predictions = _random_classes(0, 200, 0.7)
    term = bootstrap_examples(names, [_of_one_split(labels, predictions)])

    def mean_metric(*arrays):
        return np.mean([_SKLEARN_METRICS[name](*arrays) for name in names])

    values = _explicit_values(mean_metric, labels, predictions, 100)
    _assert_equal_variances(term.variance, _CLASS_RESAMPLES, float(np.var(values, ddof=1)), 100)


def test_the_variance_of_a_rank_correlation_is_that_of_explicit_resamples():
    random = np.random.default_rng(0)
    labels = random.integers(0, 26, size=200) / 5  # with ties, as in STS-B
    predictions = labels + random.normal(size=200)
    term = bootstrap_examples(["spearman"], [_of_one_split(labels, predictions)])
    values = _explicit_values(lambda *arrays: stats.spearmanr(*arrays).statistic, labels, predictions, 300)
    _assert_equal_variances(term.variance, _NUMBER_RESAMPLES, float(np.var(values, ddof=1)), 300)
    assert term.degrees_of_freedom == 199


_KINDS = {"classes": (["accuracy", "f1"], False), "numbers": (["spearman"], True)}


def _two_models(*, is_regression: bool) -> tuple[Predictions, Predictions]:
    """Create the predictions of two models that agree on most examples."""
    labels, first = _random_classes(0, 300, 0.7)
    second = np.where(np.arange(300) % 10 == 0, 1 - first, first)
    if is_regression:
        noise = np.random.default_rng(1).normal(size=300)
        labels, first, second = labels + noise, first + 0.5 * noise, second + 0.5 * noise
    return _of_one_split(labels, first), _of_one_split(labels, second)


@pytest.mark.parametrize("names, is_regression", _KINDS.values(), ids=_KINDS)
def test_a_difference_of_identical_predictions_has_no_variance(names, is_regression):
    first, _ = _two_models(is_regression=is_regression)
    assert bootstrap_examples(names, [first], [first]).variance == 0.0


@pytest.mark.parametrize("names, is_regression", _KINDS.values(), ids=_KINDS)
def test_a_difference_of_similar_predictions_has_less_variance_than_that_of_independent_examples(names, is_regression):
    first, second = _two_models(is_regression=is_regression)
    paired = bootstrap_examples(names, [first], [second])
    separate = sum(bootstrap_examples(names, [model]).variance for model in (first, second))
    assert 0.0 < paired.variance < 0.5 * separate
    assert bootstrap_examples(names, [second], [first]).variance == pytest.approx(paired.variance)


def test_the_variance_of_a_paired_difference_of_accuracies_is_that_of_the_differences_of_examples():
    first, second = _two_models(is_regression=False)
    correct = [model.splits[""].label_array() == model.splits[""].prediction_array() for model in (first, second)]
    differences = 100.0 * (correct[0].astype(float) - correct[1])
    term = bootstrap_examples(["accuracy"], [first], [second])
    assert term.variance == pytest.approx(np.var(differences) / 300, rel=5 * (2 / (_CLASS_RESAMPLES - 1)) ** 0.5)


@pytest.mark.parametrize("names, is_regression", _KINDS.values(), ids=_KINDS)
def test_seeds_are_evaluated_on_the_same_examples(names, is_regression):
    first, _ = _two_models(is_regression=is_regression)
    one, three = bootstrap_examples(names, [first]), bootstrap_examples(names, [first] * 3)
    assert three.variance == pytest.approx(one.variance)  # not a third of it, as for independent examples
    assert three.degrees_of_freedom == one.degrees_of_freedom


def _mnli(accuracy: float, sizes=(400, 100)) -> Predictions:
    return _predictions(
        _matched=_random_classes(1, sizes[0], accuracy, num_labels=3),
        _mismatched=_random_classes(2, sizes[1], accuracy, num_labels=3),
    )


def test_the_variances_of_the_splits_of_mnli_are_added():
    model = _mnli(0.7)
    matched, mismatched = (bootstrap_examples([f"accuracy{split}"], [model]) for split in ("_matched", "_mismatched"))
    both = bootstrap_examples(["accuracy_matched", "accuracy_mismatched"], [model])
    assert both.variance == pytest.approx((matched.variance + mismatched.variance) / 4)
    assert both.degrees_of_freedom == matched.degrees_of_freedom + mismatched.degrees_of_freedom == 498


@pytest.mark.filterwarnings("error")
def test_a_split_without_a_selected_metric_is_not_used():
    model = _mnli(0.7)
    alone = _predictions(_matched=_random_classes(1, 400, 0.7, num_labels=3))
    assert bootstrap_examples(["accuracy_matched"], [model]) == bootstrap_examples(["accuracy_matched"], [alone])


def test_equal_predictions_have_equal_variances():
    first, second = (_of_one_split(*_random_classes(3, 50, 0.6)) for _ in range(2))
    assert bootstrap_examples(["f1"], [first]) == bootstrap_examples(["f1"], [second])
