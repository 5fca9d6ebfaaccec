import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import FaultConfig, OptimizerConfig
from mosaicbert.config.plan import Plan, Position
from mosaicbert.train.course import Clock, Course, StepReport
from mosaicbert.train.guard import Guard
from tests.recipes import tiny_recipe

_SAMPLES, _TOKENS = 16, 400
_FALLING = {"warmup_fraction": 0.0, "final_lr_fraction": 0.0}


def _course(duration, *, log_interval_steps=1000, **optimizer):
    recipe = tiny_recipe(
        Path("runs"), Path("text.jsonl"), train={"duration": duration, "global_batch_samples": _SAMPLES}
    )
    plan = Plan(recipe, tokens_per_sample=_TOKENS / _SAMPLES)
    return Course(plan, Guard(FaultConfig()), OptimizerConfig(**(_FALLING | optimizer)), log_interval_steps)


def _advance(course, *, tokens=_TOKENS, lasts=1.0, paused=0.0):
    report = StepReport(loss=2.0, accuracy=None, grad_norm=1.0, seconds=lasts, learning_rate_share=1.0, updated=True)
    seconds = course.position.seconds + lasts + paused
    course.advance(report, samples=_SAMPLES, tokens=tokens, seconds=seconds)


def _train(course, lengths=None):
    """Goes to the end of the run; returns each step's share of the learning rate and whether it was logged."""
    said = []
    while not course.is_done:
        said.append((course.learning_rate_share(_SAMPLES, _TOKENS), course.is_logged(_SAMPLES, _TOKENS)))
        _advance(course, lasts=next(lengths) if lengths else 1.0)
    return said


@pytest.mark.parametrize("duration", ["10 steps", "160 samples", "4000 tokens", "3601 tokens", "175 samples"])
def test_the_rate_follows_the_unit_of_the_duration_to_its_end(duration):
    shares = [share for share, _ in _train(_course(duration))]
    assert len(shares) == 10
    if duration == "3601 tokens":
        assert shares == pytest.approx([max(0.0, 1 - 400 * step / 3601) for step in range(1, 11)])
    else:
        assert shares == pytest.approx([1 - step / 10 for step in range(1, 11)])


def test_the_rate_of_a_run_in_tokens_follows_the_tokens_that_its_steps_have():
    course = _course("1000 tokens")
    assert course.learning_rate_share(_SAMPLES, 100) == pytest.approx(0.9)
    _advance(course, tokens=100)
    assert course.learning_rate_share(_SAMPLES, 700) == pytest.approx(0.2)
    _advance(course, tokens=899)
    assert not course.is_done
    assert course.learning_rate_share(_SAMPLES, 1) == course.learning_rate_share(_SAMPLES, 700) == 0.0
    _advance(course, tokens=1)
    assert course.is_done


def test_a_run_of_one_step_ends_with_it():
    assert (
        len(_train(_course("1 steps"))) == len(_train(_course("16 samples"))) == len(_train(_course("1 tokens"))) == 1
    )


@pytest.mark.parametrize("duration", ["10 steps", "160 samples", "4000 tokens", "11s"])
@pytest.mark.parametrize("interval, logged", [(1, range(1, 11)), (4, [1, 4, 8, 10]), (5, [1, 5, 10]), (99, [1, 10])])
def test_the_first_the_last_and_every_so_manieth_step_are_logged(interval, logged, duration):
    said = _train(_course(duration, log_interval_steps=interval))
    assert len(said) == 10
    assert [step for step, (_, is_logged) in enumerate(said, start=1) if is_logged] == list(logged)


@given(length=st.floats(0.01, 3.0), budget=st.integers(10, 60))
def test_even_steps_fill_a_time_and_never_pass_it(length, budget):
    course = _course(f"{budget}s")
    said = _train(course, iter(lambda: length, None))
    assert budget - length <= course.position.seconds + 1e-6
    assert course.position.seconds <= budget + 1e-6
    assert said[-1][0] <= 2 * length / budget + 1e-6  # the rate has come down to that of the last steps


@given(seed=st.integers(0, 1000), spread=st.floats(0.0, 0.5))
def test_no_step_begins_that_would_pass_the_time_if_it_lasted_as_those_before(seed, spread):
    draw = random.Random(seed)
    course = _course("100s")
    shares = []
    while not course.is_done:
        assert course.position.seconds + course.step_seconds < 100
        shares.append(course.learning_rate_share(_SAMPLES, _TOKENS))
        _advance(course, lasts=1 + draw.uniform(-spread, spread), paused=draw.choice([0.0, 0.0, 2.0]))
    longest = 1 + spread
    assert 100 - longest <= course.position.seconds <= 100 + 2 * spread + 2.0  # and what the evaluation took
    assert 0.0 < shares[-1] <= (2 * longest + 2.0) / 100


def test_a_step_that_is_longer_than_the_time_is_the_only_one():
    course = _course("10s")
    assert course.learning_rate_share(_SAMPLES, _TOKENS) == 1.0
    _advance(course, lasts=30.0)
    assert course.is_done


@pytest.mark.parametrize("slow", [1, 2, 50, 79], ids=lambda step: f"step-{step}")
def test_one_slow_step_does_not_end_the_run_early(slow):
    course = _course("100s")
    lengths = (20.0 if step == slow else 1.0 for step in range(1, 200))
    _train(course, lengths)
    assert course.position.steps == 80
    assert course.position.seconds == 99.0


def test_evaluations_take_of_the_time_but_are_no_training():
    course = _course("10s")
    _advance(course, lasts=1.0)
    _advance(course, lasts=1.0, paused=6.0)
    assert not course.is_done
    _advance(course, lasts=1.0)
    assert course.is_done
    assert course.training_seconds == 3.0
    assert course.position.seconds == 9.0


def test_the_position_before_is_kept():
    course = _course("10 steps")
    _advance(course)
    _advance(course, tokens=5, lasts=0.5)
    assert course.before == Position(steps=1, samples=16, tokens=400, seconds=1.0)
    assert course.position == Position(steps=2, samples=32, tokens=405, seconds=1.5)


@given(lengths=st.lists(st.floats(1e-3, 1e3), max_size=20), duration=st.sampled_from(["7 steps", "2500 tokens", "50s"]))
def test_a_course_that_is_written_and_read_goes_on_as_before(lengths, duration):
    whole, read = _course(duration), _course(duration)
    for number, lasts in enumerate(lengths):
        _advance(whole, lasts=lasts)
        whole.guard.judge(whole.position.steps, number, 2.0 + lasts / 1e4, 1.0)
    state = json.loads(json.dumps(whole.state_dict(), allow_nan=False))
    assert state["is_done"] == whole.is_done
    read.load_state_dict(state)
    assert read.before == read.position == whole.position
    for course in (whole, read):
        assert course.state_dict() == state
    assert read.is_done == whole.is_done
    assert read.learning_rate_share(_SAMPLES, _TOKENS) == whole.learning_rate_share(_SAMPLES, _TOKENS)


def test_a_clock_counts_all_sittings():
    clock = Clock()
    clock.start(100.0)
    time.sleep(0.02)
    assert 100.02 <= clock.seconds < 101.0


def test_a_clock_that_is_started_again_goes_on_and_begins_a_new_lap():
    clock = Clock()
    clock.start(100.0)
    time.sleep(0.3)
    clock.start(5.0)
    assert clock.lap() < 0.2
    assert 100.3 <= clock.seconds < 102.0


def test_a_lap_is_the_time_since_the_one_before():
    clock = Clock()
    clock.start(100.0)
    time.sleep(0.3)
    first = clock.lap()
    second = clock.lap()
    assert 0.3 <= first < 2.0
    assert 0.0 <= second < 0.2


def test_a_pause_counts_as_time_but_not_as_training():
    clock = Clock()
    clock.start(0.0)
    clock.lap()
    clock.pause()
    time.sleep(0.3)
    clock.resume()
    time.sleep(0.02)
    assert 0.02 <= clock.lap() < 0.25
    assert 0.32 <= clock.seconds < 2.0
    time.sleep(0.02)
    assert 0.02 <= clock.lap() < 0.25


def test_laps_leave_no_time_out():
    clock = Clock()
    clock.start(0.0)
    laps = 0.0
    for _ in range(5):
        time.sleep(0.01)
        before = clock.seconds
        laps += clock.lap()
        assert before - 0.005 <= laps <= clock.seconds
