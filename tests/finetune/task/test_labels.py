"""Tests of label columns: class names, multi-label cells, numbers and invalid cells."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.task.labels import LabelSet, balanced_weights

_NAME = st.text(st.characters(exclude_characters=";|,/[]", exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=6)


def _encode(kind, column, source="t.csv"):
    label_set = LabelSet.from_column(kind, column, source)
    return label_set, label_set.encode(column, source)


@given(column=st.lists(_NAME, min_size=2, max_size=30).filter(lambda names: len(set(names)) > 1))
def test_class_indices_map_back_to_class_names(column):
    label_set, encoded = _encode("single_label", column)
    assert label_set.problem_type == SINGLE_LABEL
    assert [label_set.names[index] for index in encoded] == column
    assert set(encoded) == set(range(label_set.num_outputs))
    assert LabelSet.from_column("single_label", column[::-1], "t.csv") == label_set


def test_numbers_are_sorted_numerically_and_booleans_are_classes():
    assert _encode("single_label", [10, 2, 1, 2]) == (
        LabelSet(problem_type=SINGLE_LABEL, names=("1", "2", "10")),
        [2, 1, 0, 1],
    )
    assert _encode("single_label", [1.0, 0.0])[0].names == ("0", "1")
    assert _encode("single_label", [True, False])[0] == _encode("single_label", ["true", "false"])[0]


@pytest.mark.parametrize("cells", [["['a', 'b']", "['c']"], ['["a", "b"]', '["c"]'], ["a;b", "c"], [["a", "b"], ["c"]]])
def test_written_lists_and_separated_names_are_the_same_labels(cells):
    assert _encode("multi_label", cells) == (
        LabelSet(problem_type=MULTI_LABEL, names=("a", "b", "c")),
        [[1, 1, 0], [0, 0, 1]],
    )


@pytest.mark.parametrize("separator", ["|", ",", "/"])
def test_another_separator_is_found_and_can_be_set(separator):
    column = ["sports", f"sports{separator}politics"]
    message = rf"t\.csv must have ';' between .* in row 2 .* Set data\.label_separator='{re.escape(separator)}'"
    with pytest.raises(ConfigError, match=message):
        LabelSet.from_column("multi_label", column, "t.csv")
    label_set = LabelSet.from_column("multi_label", column, "t.csv", separator=separator)
    assert label_set.names == ("politics", "sports")
    assert label_set.encode(column, "t.csv") == [[0, 1], [1, 1]]
    one_class = LabelSet.from_column("multi_label", [*column, "other"], "t.csv", separator=";")
    assert one_class.names == ("other", "sports", column[1])


def test_a_separator_within_names_is_kept_where_the_default_separates():
    assert _encode("multi_label", ["a, b;c", "c"])[0].names == ("a, b", "c")


_MULTI_LABEL_COLUMN = st.lists(st.lists(_NAME, max_size=4, unique=True), min_size=1, max_size=20)


@given(column=_MULTI_LABEL_COLUMN.filter(lambda cells: len({name for names in cells for name in names}) > 1))
def test_multi_label_cells_are_lists_or_separated_strings(column):
    label_set, encoded = _encode("multi_label", column)
    assert label_set.problem_type == MULTI_LABEL
    for names, row in zip(column, encoded, strict=True):
        assert {name for name, applies in zip(label_set.names, row, strict=True) if applies} == set(names)
    assert _encode("multi_label", [" ; ".join(names) for names in column]) == (label_set, encoded)


def test_a_class_named_nan_is_sorted_as_a_name():
    for column in (["nan", "1", "b", "a"], ["b", "a", "nan", "1"]):
        assert LabelSet.from_column("single_label", column, "t.csv").names == ("1", "a", "b", "nan")


def test_regression_labels_may_be_numeric_strings():
    assert _encode("regression", [1, 2.5, "3"]) == (LabelSet(problem_type=REGRESSION, names=()), [1.0, 2.5, 3.0])
    assert LabelSet(problem_type=REGRESSION, names=()).num_outputs == 1


@pytest.mark.parametrize(
    "kind, column, message",
    [
        ("single_label", ["a", None], ", row 2, must be a class name or a whole number, got None"),
        ("single_label", ["a", " "], ", row 2, must be a class name, got ' '"),
        ("single_label", [0.5, 1.0], r", row 1, .* got 0\.5\. Fix the cell or change data\.kind"),
        ("single_label", [["a"], ["b"]], r", row 1, .* got \['a'\]"),
        (
            "single_label",
            ["a", "['a', 'b']"],
            r", row 2, must be one class name, got the list .* data\.kind=multi_label",
        ),
        ("single_label", [b"a", b"b"], ", row 1, must be a class name, got the bytes b'a'"),
        ("single_label", ["a", "b\nc"], ", row 2, must be a class name of one line"),
        ("single_label", [1.0, float("nan")], ", row 2, must be a class name or a whole number, got nan"),
        ("multi_label", ["a;b", "[a, b]"], ", row 2, must be a list of class names or a string"),
        ("multi_label", [[b"a"], [b"b"]], ", row 1, must be a class name, got the bytes"),
        ("single_label", ["a", "a"], " must contain at least two classes, got a. Add examples"),
        ("multi_label", [["a"], None], ", row 2, must be a list of class names or a string .* got None"),
        ("multi_label", [[0, 1, 0], [1.0, 0, 1]], " must contain class names .* got multi-hot labels of 3 classes"),
        ("multi_label", [[], []], " must contain at least two classes, got none"),
        ("multi_label", [["a"], [], ["a"]], " must contain at least two classes, got a"),
        ("regression", ["1", "x"], ", row 2, must be a finite number, got 'x'"),
        ("regression", [1.0, None], ", row 2, must be a finite number, got None"),
        ("regression", [float("nan")], ", row 1, must be a finite number, got nan"),
    ],
)
def test_an_invalid_label_is_rejected_with_its_row(kind, column, message):
    with pytest.raises(ConfigError, match=rf"t\.csv{message}"):
        _encode(kind, column)


@pytest.mark.parametrize("kind, cell", [("single_label", "c"), ("multi_label", "a;c")])
def test_a_class_without_training_examples_is_rejected(kind, cell):
    label_set = LabelSet.from_column(kind, ["a", "b"], "train.csv")
    with pytest.raises(ConfigError, match=r"v\.csv, row 1, must be a class of the training examples, got 'c'"):
        label_set.encode([cell], "v.csv")


def test_balanced_weights_make_the_classes_equal():
    single = LabelSet(problem_type=SINGLE_LABEL, names=("a", "b", "c"))
    assert balanced_weights(single, [0, 0, 0, 1]) == pytest.approx((4 / 9, 4 / 3, 1.0))
    several = LabelSet(problem_type=MULTI_LABEL, names=("a", "b"))
    assert balanced_weights(several, [[1, 0], [0, 0], [0, 0], [1, 0]]) == pytest.approx((1.0, 1.0))
    assert balanced_weights(several, [[1, 1], [0, 1], [0, 1], [0, 0]]) == pytest.approx((3.0, 1 / 3))
