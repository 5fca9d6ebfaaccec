"""Tests of the metrics against values computed by hand and against their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.finetune.metrics import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    compute_metrics,
    predict_labels,
    problem_type_of,
)


def _single_label_metrics(names, labels, predictions, num_classes=2):
    logits = F.one_hot(torch.tensor(predictions), num_classes)
    return compute_metrics(names, SINGLE_LABEL, logits, torch.tensor(labels))


def test_metrics_of_two_classes_match_values_computed_by_hand():
    # Class 1 has 1 true positive, 1 false positive and 2 false negatives; class 0 has 1 true negative.
    metrics = _single_label_metrics(("accuracy", "f1", "matthews_correlation"), [1, 1, 1, 0, 0], [1, 0, 0, 1, 0])
    assert metrics["accuracy"] == pytest.approx(2 / 5)
    assert metrics["f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert metrics["matthews_correlation"] == pytest.approx((1 * 1 - 1 * 2) / np.sqrt(2 * 3 * 2 * 3))


def test_metrics_of_three_classes_match_values_computed_by_hand():
    labels, predictions = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    metrics = _single_label_metrics(("accuracy", "macro_f1"), labels, predictions, 3)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["macro_f1"] == pytest.approx(np.mean([2 * 1 / (2 + 2), 2 * 2 / (2 + 3), 2 * 1 / (2 + 1)]))


@pytest.mark.parametrize("prediction", [0, 1])
def test_the_matthews_correlation_of_constant_predictions_is_zero(prediction):
    metrics = _single_label_metrics(("matthews_correlation",), [1, 1, 0], [prediction] * 3)
    assert metrics == {"matthews_correlation": 0.0}


@given(seed=st.integers(0, 1000), size=st.integers(4, 60))
def test_the_matthews_correlation_of_two_classes_is_their_pearson_correlation(seed, size):
    rng = np.random.default_rng(seed)
    labels, predictions = [0, 1, *rng.integers(2, size=size)], [1, 0, *rng.integers(2, size=size)]
    metrics = _single_label_metrics(("matthews_correlation",), labels, predictions)
    assert metrics["matthews_correlation"] == pytest.approx(np.corrcoef(labels, predictions)[0, 1])


@given(seed=st.integers(0, 1000), size=st.integers(3, 60), ties=st.booleans())
def test_regression_metrics_match_their_definitions(seed, size, ties):
    rng = np.random.default_rng(seed)
    labels = [0.0, 1.0, *(rng.integers(4, size=size) if ties else rng.normal(size=size)).astype(float)]
    logits = rng.normal(size=(len(labels), 1)).astype(np.float32)
    metrics = compute_metrics(
        ("spearman", "pearson", "mean_squared_error"), REGRESSION, torch.tensor(logits), torch.tensor(labels).double()
    )
    values = logits[:, 0].astype(float)
    assert metrics["spearman"] == pytest.approx(np.corrcoef(_ranks(values), _ranks(labels))[0, 1])
    assert metrics["pearson"] == pytest.approx(np.corrcoef(values, labels)[0, 1])
    assert metrics["mean_squared_error"] == pytest.approx(np.mean((values - labels) ** 2))


def _ranks(values):
    # Equal values have the mean of their ranks.
    return [(np.sum(np.less(values, value)) + np.sum(np.less_equal(values, value)) - 1) / 2 for value in values]


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_the_correlation_with_constant_values_is_zero(name):
    labels = torch.tensor([1.0, 2.0, 3.0])
    assert compute_metrics((name,), REGRESSION, torch.full((3, 1), 0.5), labels) == {name: 0.0}
    assert compute_metrics((name,), REGRESSION, torch.ones(1, 1), torch.ones(1)) == {name: 0.0}


def test_metrics_of_multi_hot_labels_match_values_computed_by_hand():
    logits = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-1.0, 3.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert predict_labels(MULTI_LABEL, logits).tolist() == [[1, 0], [1, 1], [0, 1]]
    names = ("subset_accuracy", "label_accuracy", "micro_f1", "macro_f1")
    metrics = compute_metrics(names, MULTI_LABEL, logits, labels)
    assert metrics == pytest.approx(
        {
            "subset_accuracy": 1 / 3,
            "label_accuracy": 4 / 6,
            "micro_f1": 2 * 3 / (2 * 3 + 1 + 1),
            "macro_f1": np.mean([2 * 1 / (2 + 2), 2 * 2 / (2 + 2)]),
        }
    )


def test_the_macro_f1_contains_classes_that_do_not_occur():
    metrics = _single_label_metrics(("macro_f1",), [0, 1], [0, 1], num_classes=4)
    assert metrics["macro_f1"] == pytest.approx(2 / 4)
    absent = compute_metrics(("macro_f1",), MULTI_LABEL, torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    assert absent["macro_f1"] == pytest.approx(1 / 2)


def test_the_macro_f1_shows_that_a_rare_class_is_not_found():
    metrics = _single_label_metrics(("accuracy", "macro_f1"), [0] * 97 + [1] * 3, [0] * 100)
    assert metrics == pytest.approx({"accuracy": 0.97, "macro_f1": (2 * 97 / (97 + 100) + 0) / 2})


def test_a_task_with_one_label_is_a_regression():
    assert (problem_type_of(1), problem_type_of(2), problem_type_of(3)) == (REGRESSION, SINGLE_LABEL, SINGLE_LABEL)
