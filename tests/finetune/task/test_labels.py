"""Label columns: names of classes, several labels, numbers; and what is none of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.finetune.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from mosaicbert.finetune.task.labels import LabelSet

_NAME = st.text(st.characters(exclude_characters=";", exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=6)


def _encode(kind, column, source="here"):
    labels = LabelSet.of(kind, column, source)
    return labels, labels.encode(column, source)


@given(column=st.lists(_NAME, min_size=2, max_size=30).filter(lambda names: len(set(names)) > 1))
def test_classes_are_numbered_and_named_back(column):
    labels, encoded = _encode("single_label", column)
    assert labels.problem_type == SINGLE_LABEL
    assert [labels.names[number] for number in encoded] == column
    assert set(encoded) == set(range(labels.num_outputs))
    assert LabelSet.of("single_label", column[::-1], "here") == labels


def test_numbers_are_sorted_by_size_and_booleans_are_classes():
    assert _encode("single_label", [10, 2, 1, 2]) == (
        LabelSet(problem_type=SINGLE_LABEL, names=("1", "2", "10")),
        [2, 1, 0, 1],
    )
    assert _encode("single_label", [1.0, 0.0])[0].names == ("0", "1")
    assert _encode("single_label", [True, False])[0].names == ("False", "True")


_SEVERAL = st.lists(st.lists(_NAME, max_size=4, unique=True), min_size=1, max_size=20)


@given(column=_SEVERAL.filter(lambda cells: len({name for names in cells for name in names}) > 1))
def test_several_labels_come_as_lists_or_with_a_separator(column):
    labels, encoded = _encode("multi_label", column)
    assert labels.problem_type == MULTI_LABEL
    for names, row in zip(column, encoded, strict=True):
        assert {name for name, applies in zip(labels.names, row, strict=True) if applies} == set(names)
    assert _encode("multi_label", [" ; ".join(names) for names in column]) == (labels, encoded)


def test_a_class_called_nan_has_its_place_among_names():
    for column in (["nan", "1", "b", "a"], ["b", "a", "nan", "1"]):
        assert LabelSet.of("single_label", column, "here").names == ("1", "a", "b", "nan")


def test_numbers_are_numbers_also_as_text():
    assert _encode("regression", [1, 2.5, "3"]) == (LabelSet(problem_type=REGRESSION, names=()), [1.0, 2.5, 3.0])
    assert LabelSet(problem_type=REGRESSION, names=()).num_outputs == 1


@pytest.mark.parametrize(
    "kind, column, message",
    [
        ("single_label", ["a", None], "row 2 holds None, which is no class"),
        ("single_label", ["a", " "], "row 2 has no class"),
        ("single_label", [0.5, 1.0], r"row 1 holds 0\.5, which is no class; see data\.kind"),
        ("single_label", [["a"], ["b"]], "row 1 holds .* which is no class"),
        ("single_label", ["a", "a"], r"fewer than two classes occur \(a\); give examples of two"),
        ("multi_label", [["a"], None], "row 2 holds None; several labels are a list"),
        ("multi_label", [[0, 1, 0], [1.0, 0, 1]], "each row holds 3 marks of 0 and 1; give the names of the classes"),
        ("multi_label", [[], []], r"fewer than two classes occur \(none\)"),
        ("multi_label", [["a"], [], ["a"]], r"fewer than two classes occur \(a\)"),
        ("regression", ["1", "x"], "row 2 holds 'x', which is no number"),
        ("regression", [1.0, None], "row 2 holds None, which is no number"),
        ("regression", [float("nan")], "row 1 holds nan, which is no number"),
    ],
)
def test_a_cell_that_is_no_label_is_named(kind, column, message):
    with pytest.raises(ConfigError, match=f"here: {message}"):
        _encode(kind, column)


@pytest.mark.parametrize("kind, cell", [("single_label", "c"), ("multi_label", "a;c")])
def test_a_class_that_no_training_example_has_is_named(kind, cell):
    labels = LabelSet.of(kind, ["a", "b"], "train")
    with pytest.raises(ConfigError, match="there: row 1 has class 'c', which no training example has"):
        labels.encode([cell], "there")
