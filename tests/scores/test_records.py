"""Tests of the score records in scores.jsonl."""

import fcntl
import json
import threading
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError
from mosaicbert.scores.records import append_line, append_score, read_scores
from tests.scores.scored import COST, make_score


def test_the_value_is_the_mean_of_the_metrics():
    assert make_score().value == pytest.approx(60.0)


@given(num_bytes=st.integers(0, 200))
def test_a_truncated_last_line_is_ignored_and_overwritten(num_bytes, tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    assert read_scores(path) == []
    first, second, third = make_score(1), make_score(2, pretraining=None, step=None), make_score(3, model="ä")
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
    append_score(path, make_score(1))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_scores(path) == [make_score(1)]
    append_score(path, make_score(2))
    assert read_scores(path) == [make_score(1), make_score(2)]


def test_the_same_training_is_identified_by_steps_tokens_and_time():
    assert COST.is_same_training(replace(COST, flops=2e12, device="Different CPU"))
    assert not COST.is_same_training(replace(COST, wall_seconds=3.0))


@pytest.mark.parametrize(
    "line", ["{", "{}", "3", "[]", '"é"', '{"model": 1, "pretraining": null}', '{"pretraining": {"steps": 1}}']
)
def test_an_invalid_line_is_an_error_with_its_number(line, tmp_path):
    path = tmp_path / "scores.jsonl"
    append_score(path, make_score())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2, must be a score record"):
        read_scores(path)


@given(
    cpu_seconds=st.none() | st.floats(0, 1e9),
    eval_loss=st.none() | st.floats(0, 20),
    eval_bits_per_byte=st.none() | st.floats(0, 20),
    seed=st.none() | st.integers(0, 2**31),
)
def test_the_optional_fields_of_a_pretraining_are_read_unchanged(tmp_path_factory, **fields):
    path = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    score = make_score(pretraining=replace(COST, **fields))
    append_score(path, score)
    assert read_scores(path) == [score]


def test_a_pretraining_without_the_optional_fields_is_read(tmp_path):
    path = tmp_path / "scores.jsonl"
    record = asdict(make_score())
    for name in ("cpu_seconds", "eval_loss", "eval_bits_per_byte", "seed"):
        del record["pretraining"][name]
    append_line(path, json.dumps(record))
    assert read_scores(path) == [make_score()]


def test_a_line_is_appended_after_another_writer_has_released_the_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    append_line(path, "1")
    writer = threading.Thread(target=append_line, args=(path, "2"))
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer.start()
        writer.join(timeout=0.2)
        assert writer.is_alive()
        assert path.read_text() == "1\n"
    writer.join()
    assert path.read_text() == "1\n2\n"


def test_lines_of_several_writers_are_complete(tmp_path):
    path = tmp_path / "scores.jsonl"
    lines = {json.dumps([writer, number, "x" * 5_000]) for writer in range(4) for number in range(10)}
    writers = [
        threading.Thread(
            target=lambda writer=writer: [
                append_line(path, line) for line in sorted(lines) if json.loads(line)[0] == writer
            ]
        )
        for writer in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.read_text().splitlines()) == sorted(lines)


def test_a_score_is_of_blimp_if_its_task_is_a_phenomenon():
    assert make_score(task="blimp/anaphor_agreement", metrics={"a": 0.5}).is_blimp
    assert not make_score().is_blimp
