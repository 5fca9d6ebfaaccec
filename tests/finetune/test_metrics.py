"""Metrics against numbers worked out by hand, and against their definitions."""

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


def _single(names, labels, predicted, num_classes=2):
    return compute_metrics(names, SINGLE_LABEL, F.one_hot(torch.tensor(predicted), num_classes), torch.tensor(labels))


def test_two_classes_by_hand():
    # Of class 1: 1 found, 1 too many, 2 missed; 1 of class 0 right.
    metrics = _single(("accuracy", "f1", "matthews_correlation"), [1, 1, 1, 0, 0], [1, 0, 0, 1, 0])
    assert metrics["accuracy"] == pytest.approx(2 / 5)
    assert metrics["f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert metrics["matthews_correlation"] == pytest.approx((1 * 1 - 1 * 2) / np.sqrt(2 * 3 * 2 * 3))


def test_three_classes_by_hand():
    labels, predicted = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 0]
    metrics = _single(("accuracy", "f1"), labels, predicted, 3)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["f1"] == pytest.approx(np.mean([2 * 1 / (2 + 2), 2 * 2 / (2 + 3), 2 * 1 / (2 + 1)]))


@pytest.mark.parametrize("always", [0, 1])
def test_a_model_that_always_says_the_same_has_no_matthews_correlation(always):
    assert _single(("matthews_correlation",), [1, 1, 0], [always] * 3) == {"matthews_correlation": 0.0}


@given(seed=st.integers(0, 1000), size=st.integers(4, 60))
def test_the_matthews_correlation_of_two_classes_is_their_correlation(seed, size):
    rng = np.random.default_rng(seed)
    labels, predicted = [0, 1, *rng.integers(2, size=size)], [1, 0, *rng.integers(2, size=size)]
    metrics = _single(("matthews_correlation",), labels, predicted)["matthews_correlation"]
    assert metrics == pytest.approx(np.corrcoef(labels, predicted)[0, 1])


@given(seed=st.integers(0, 1000), size=st.integers(3, 60), ties=st.booleans())
def test_the_rank_correlation_is_the_correlation_of_the_ranks(seed, size, ties):
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
    """Equal values share the mean of their places."""
    return [(np.sum(np.less(values, value)) + np.sum(np.less_equal(values, value)) - 1) / 2 for value in values]


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_a_correlation_with_something_constant_is_nothing(name):
    labels = torch.tensor([1.0, 2.0, 3.0])
    assert compute_metrics((name,), REGRESSION, torch.full((3, 1), 0.5), labels) == {name: 0.0}
    assert compute_metrics((name,), REGRESSION, torch.ones(1, 1), torch.ones(1)) == {name: 0.0}


def test_several_labels_by_hand():
    logits = torch.tensor([[1.0, -1.0], [2.0, 0.5], [-1.0, 3.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert predict_labels(MULTI_LABEL, logits).tolist() == [[1, 0], [1, 1], [0, 1]]
    metrics = compute_metrics(("accuracy", "f1"), MULTI_LABEL, logits, labels)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["f1"] == pytest.approx(np.mean([2 * 1 / (2 + 2), 1.0]))


def test_a_task_with_one_label_is_a_number():
    assert (problem_type_of(1), problem_type_of(2), problem_type_of(3)) == (REGRESSION, SINGLE_LABEL, SINGLE_LABEL)
