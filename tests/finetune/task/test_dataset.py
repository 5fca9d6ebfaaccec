"""Tests of the validation examples that are held out of the training examples."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config.finetune import TaskDataConfig
from mosaicbert.finetune.tables import Examples
from mosaicbert.finetune.task.dataset import hold_out, read_task_dataset

_EXAMPLES = st.lists(st.tuples(st.text(max_size=6), st.integers(0, 3)), min_size=1, max_size=60)


def make_examples(rows):
    texts, labels = zip(*rows, strict=True)
    return Examples(texts=(list(texts),), labels=list(labels))


def rows_of(examples):
    return list(zip(examples.texts[0], examples.labels, strict=True))


@given(rows=_EXAMPLES, fraction=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_equal_texts_are_in_one_split_and_the_order_has_no_effect(rows, fraction, seed):
    train, validation = hold_out(make_examples(rows), fraction)
    assert Counter(rows_of(train)) + Counter(rows_of(validation)) == Counter(rows)
    assert not set(train.texts[0]) & set(validation.texts[0])
    shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    again = hold_out(make_examples(shuffled), fraction)
    assert [Counter(rows_of(split)) for split in again] == [Counter(rows_of(split)) for split in (train, validation)]


@given(rows=_EXAMPLES, fraction=st.floats(0.05, 0.8))
def test_a_larger_fraction_extends_the_validation_examples(rows, fraction):
    smaller, larger = (hold_out(make_examples(rows), value)[1] for value in (fraction, fraction + 0.1))
    assert not Counter(rows_of(smaller)) - Counter(rows_of(larger))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), fraction=st.floats(0.05, 0.9))
def test_each_class_has_its_fraction_of_the_validation_examples(sizes, fraction):
    rows = [(f"text {label} {index}", label) for label, size in enumerate(sizes) for index in range(size)]
    counts = Counter(label for _, label in rows_of(hold_out(make_examples(rows), fraction)[1]))
    for label, size in enumerate(sizes):
        assert counts[label] == min(size - 1, max(1, round(fraction * size)))


@given(
    rows=st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=30),
    fraction=st.floats(0.1, 0.9),
)
def test_every_class_of_several_labels_has_training_examples(rows, fraction):
    train, validation = hold_out(make_examples([(f"text {index}", row) for index, row in enumerate(rows)]), fraction)
    trained = np.any(train.labels, axis=0)
    assert all(trained[index] for row in validation.labels for index in np.flatnonzero(row))
    assert len(train) + len(validation) == len(rows)


def test_numbers_are_divided_together():
    train, validation = hold_out(make_examples([(f"text {index}", index / 10) for index in range(50)]), 0.1)
    assert (len(train), len(validation)) == (45, 5)


@pytest.mark.parametrize("kind, num_validation", [("single_label", 4), ("regression", 4)])
def test_the_held_out_examples_of_a_file_have_the_fraction(kind, num_validation, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {row}", "label": row % 2}) + "\n" for row in range(40)))
    data = read_task_dataset(TaskDataConfig(train=str(path), kind=kind, validation_fraction=0.1))
    assert (len(data.train), len(data.validation)) == (40 - num_validation, num_validation)
