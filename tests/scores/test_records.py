"""Tests of the score records in scores.jsonl."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.scores.records import Pretraining, Score, append_score, read_scores

_COST = Pretraining(
    steps=3, tokens=4_000, seconds=1.5, wall_seconds=2.0, flops=1e12, device="Example CPU", num_devices=1
)


def _score(seed=19, **changes):
    fields = {
        "model": "m",
        "step": 3,
        "task": "mrpc",
        "seed": seed,
        "metrics": {"accuracy": 0.5, "f1": 0.7},
        "protocol": "abc",
        "settings": {"shuffle": True},
        "initialized_from": "mnli",
        "is_partial": False,
        "seconds": 1.0,
        "pretraining": _COST,
        "environment": {"commit": None},
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return Score(**(fields | changes))


def test_the_value_is_the_mean_of_the_metrics():
    assert _score().value == pytest.approx(60.0)


@given(num_bytes=st.integers(0, 200))
def test_a_truncated_last_line_is_ignored_and_overwritten(num_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    assert read_scores(path) == []
    first, second, third = _score(1), _score(2, pretraining=None, step=None), _score(3, model="ä")
    append_score(path, first)
    append_score(path, second)
    assert read_scores(path) == [first, second]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 2 - num_bytes])
    assert read_scores(path) == [first]
    append_score(path, third)
    assert read_scores(path) == [first, third]


def test_a_last_line_without_a_line_break_is_read(tmp_path):
    path = tmp_path / "scores.jsonl"
    append_score(path, _score(1))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_scores(path) == [_score(1)]
    append_score(path, _score(2))
    assert read_scores(path) == [_score(1), _score(2)]


def test_the_same_training_is_identified_by_steps_tokens_and_time():
    assert _COST.is_same_training(replace(_COST, flops=2e12, device="Different CPU"))
    assert not _COST.is_same_training(replace(_COST, wall_seconds=3.0))


@pytest.mark.parametrize(
    "line", ["{", "{}", "3", "[]", '"é"', '{"model": 1, "pretraining": null}', '{"pretraining": {"steps": 1}}']
)
def test_an_invalid_line_is_an_error_with_its_number(line, tmp_path):
    path = tmp_path / "scores.jsonl"
    append_score(path, _score())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2, must be a score record"):
        read_scores(path)
