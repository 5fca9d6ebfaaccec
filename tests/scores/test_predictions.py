"""Tests of the predictions of score records in predictions.jsonl."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.scores.predictions import (
    Predictions,
    SplitPredictions,
    append_predictions,
    encode_values,
    make_predictions,
    read_predictions,
)
from tests.scores.scored import make_score

_CLASSES = st.lists(st.integers(0, 9), min_size=1, max_size=20)
_NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)
_VALUES = st.one_of(
    _CLASSES.map(lambda values: encode_values(values, is_regression=False)),
    _NUMBERS.map(lambda values: encode_values(values, is_regression=True)),
)
_SPLITS = st.dictionaries(
    st.sampled_from(["", "_matched", "_mismatched", "anaphor_number_agreement"]),
    st.builds(SplitPredictions, labels=_VALUES, predictions=_VALUES),
    min_size=1,
)


def _predictions(**changes) -> Predictions:
    return make_predictions(make_score(**changes), {"": SplitPredictions(labels="01", predictions="11")})


@given(all_splits=st.lists(_SPLITS, max_size=3))
def test_appended_predictions_are_read_unchanged(all_splits, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    records = [make_predictions(make_score(seed), splits) for seed, splits in enumerate(all_splits)]
    for record in records:
        append_predictions(path, record)
    assert read_predictions(path) == records


@given(num_bytes=st.integers(0, 150))
def test_a_truncated_last_line_is_ignored_and_overwritten(num_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("predictions") / "predictions.jsonl"
    first, second, third = _predictions(seed=1), _predictions(seed=2), _predictions(seed=3)
    append_predictions(path, first)
    append_predictions(path, second)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2 - num_bytes])
    assert read_predictions(path) == [first]
    append_predictions(path, third)
    assert read_predictions(path) == [first, third]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "{}",
        "3",
        "[]",
        '"é"',
        '{"splits": []}',
        '{"splits": {"": {"labels": "1"}}}',
        '{"splits": {}, "model": "m"}',
    ],
)
def test_an_invalid_line_is_an_error_with_its_number(line, tmp_path):
    path = tmp_path / "predictions.jsonl"
    append_predictions(path, _predictions())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2, must be a predictions record"):
        read_predictions(path)


@given(_CLASSES)
def test_encoded_classes_are_one_digit_per_example_and_decoded_unchanged(classes):
    encoded = encode_values(classes, is_regression=False)
    assert len(encoded) == len(classes)
    split = SplitPredictions(labels=encoded, predictions=encoded)
    assert split.label_array().tolist() == split.prediction_array().tolist() == classes


@given(_NUMBERS)
def test_encoded_numbers_have_five_significant_digits(numbers):
    decoded = SplitPredictions(labels=encode_values(numbers, is_regression=True), predictions=[]).label_array()
    for number, value in zip(numbers, decoded, strict=True):
        # Half a unit of the fifth digit is at most 5e-5 of the number, and decimals are rounded to float64.
        assert abs(value - number) <= abs(number) * (5e-5 + 1e-15) + 5e-324
        assert float(f"{value:.4e}") == value


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"step": 4}, {"task": "rte"}, {"seed": 2}, {"protocol": "def"}, {"finished": "2027-01-01"}],
    ids=lambda change: next(iter(change)),
)
def test_predictions_belong_to_the_score_with_the_same_key(change):
    score = make_score()
    predictions = make_predictions(score, {})
    assert predictions.is_of(score)
    assert predictions.is_of(replace(score, seconds=7.0, metrics={}))
    assert not predictions.is_of(replace(score, **change))
