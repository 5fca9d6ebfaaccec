"""Tests of the summary of the data before training."""

import pytest

from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import TaskDataset
from mosaicbert.finetune.task.labels import LabelSet
from mosaicbert.finetune.task.summary import summarize_data, summary_lines
from tests.tokenizers import letter_tokenizer


def make_data(texts, labels, problem_type=SINGLE_LABEL, names=("a", "b"), validation=("z",)):
    return TaskDataset(
        label_set=LabelSet(problem_type=problem_type, names=names),
        train=Examples(texts=(list(texts),), labels=list(labels)),
        validation=Examples(texts=(list(validation),), labels=list(labels)[: len(validation)]),
        predict=None,
    )


def summarize(data, max_seq_len=8):
    summary = summarize_data(data, letter_tokenizer(), max_seq_len)
    return summary, summary_lines(summary, len(data.validation))


def warnings_in(lines):
    return [line for line in lines if line.startswith("warning: ")]


def test_plain_data_have_classes_and_lengths_and_no_warnings():
    summary, lines = summarize(make_data(["t v", "t l", "v"], [0, 0, 1]))
    assert summary["classes"] == {"a": 2, "b": 1}
    assert lines[0] == "classes: a 2 (66.7%), b 1 (33.3%)"
    assert (summary["median_tokens"], summary["longest_tokens"]) == (4, 4)  # with [CLS] and [SEP]
    assert not warnings_in(lines)


def test_truncated_unknown_and_empty_texts_are_counted():
    summary, lines = summarize(make_data(["v " * 20, "\u4e2d \u6587 v", " "], [0, 1, 0]))
    assert summary["truncated_fraction"] == pytest.approx(1 / 3)
    assert summary["unknown_token_fraction"] == pytest.approx(2 / 23)
    assert [line.partition(".")[0] for line in warnings_in(lines)] == [
        "warning: 8",
        "warning: 1 training texts are empty",
    ]
    assert "8.7% of the tokens are not in the vocabulary" in lines[2]


def test_training_texts_among_the_validation_texts_are_reported():
    _, lines = summarize(make_data(["t v", "t l"], [0, 1], validation=["t l", "t v o"]))
    assert warnings_in(lines) == [
        "warning: 1 of 2 validation texts are also training texts, so the metrics are too high for new texts."
    ]


def test_classes_that_differ_in_case_or_have_no_training_example_are_reported():
    data = make_data(["t v", "t l"], [0, 1], names=("Good", "good", "very good"))
    assert warnings_in(summarize(data)[1]) == [
        "warning: the classes 'Good', 'good' differ only in case or spaces.",
        "warning: no training example has the class 'very good'.",
    ]


def test_several_labels_and_numbers_are_summarized():
    several, _ = summarize(make_data(["t v", "t l"], [[1, 1], [0, 1]], MULTI_LABEL))
    assert several["classes"] == {"a": 1, "b": 2}
    numbers, lines = summarize(make_data(["t v", "t l"], [1.0, 4.0], REGRESSION, ()))
    assert numbers["labels"] == {"mean": 2.5, "standard_deviation": 1.5, "minimum": 1.0, "maximum": 4.0}
    assert lines[0] == "labels: mean 2.5, standard deviation 1.5, from 1 to 4"


def test_only_the_largest_classes_are_listed():
    names = tuple(f"class {index:02}" for index in range(12))
    labels = [*range(12), 11]
    _, lines = summarize(make_data(["abcdefghijklm"[index] for index in labels], labels, names=names))
    assert lines[0].startswith("classes: class 11 2 (15.4%), class 00 1 (7.7%), ")
    assert lines[0].endswith(", and 2 more")
