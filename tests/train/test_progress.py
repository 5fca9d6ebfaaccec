import json
import math
import random
import time
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import FaultConfig, OptimizerConfig, parse_duration
from mosaicbert.train.faults.spike_detector import Guard
from mosaicbert.train.progress import Clock, Course, StepReport
from mosaicbert.train_plan import TrainPlan, TrainPosition, has_passed
from tests.recipes import tiny_recipe

_SAMPLES, _TOKENS = 16, 400
_FALLING = {"warmup_fraction": 0.0, "final_lr_fraction": 0.0}


def _course(duration, *, log_interval_steps=1000, interval="1000000 steps", **optimizer):
    recipe = tiny_recipe(
        Path("runs"), Path("text.jsonl"), train={"duration": duration, "global_batch_samples": _SAMPLES}
    )
    plan = TrainPlan(recipe, tokens_per_sample=_TOKENS / _SAMPLES)
    optimizer = OptimizerConfig(**(_FALLING | optimizer))
    return Course(plan, Guard(FaultConfig()), optimizer, log_interval_steps, [parse_duration("interval", interval)])


class _Sitting:
    """Makes steps of a course as the trainer does, on a clock of its own.

    Args:
        course: to go through.
        is_ahead: whether the host is ahead of the device, as it is of a GPU: then it looks at the clock when the device
            has come to the step before, unless the step is to be settled at once.
    """

    def __init__(self, course, *, is_ahead=False):
        self.course = course
        self.is_ahead = is_ahead
        self.now = course.position.seconds
        self._looked = self._trained = 0.0
        self._sent = None

    def step(self, *, tokens=_TOKENS, lasts=1.0, paused=0.0):
        """Trains for `lasts` seconds, and evaluates for `paused` before that; returns the learning rate's share."""
        course = self.course
        share = course.learning_rate_share(_SAMPLES, tokens)
        self._settle()
        course.count(_SAMPLES, tokens)
        began = self.now + paused
        self.now += lasts + paused
        self._trained += lasts
        is_late = self.is_ahead and not course.is_due
        lap, self._looked = self._trained - is_late * lasts - self._looked, self._trained - is_late * lasts
        self._sent = (course.position.steps, lap, began if is_late else self.now)
        if course.is_due:
            self._settle()
        return share

    def _settle(self):
        if self._sent is None:
            return
        (step, lap, seconds), self._sent = self._sent, None
        report = StepReport(
            step=step,
            batch=step - 1,
            loss=2.0,
            accuracy=0.5,
            grad_norm=1.0,
            seconds=lap,
            learning_rate_share=1.0,
            updated=True,
        )
        self.course.settle(report, seconds)


def _train(course, lengths=None, *, is_ahead=False):
    """Goes to the end of the run; returns each step's share of the learning rate and whether it was logged."""
    sitting = _Sitting(course, is_ahead=is_ahead)
    said = []
    while not course.is_done:
        share = sitting.step(lasts=next(lengths) if lengths else 1.0)
        said.append((share, course.is_logged))
    assert course.position.seconds == pytest.approx(sitting.now)  # the end is read at once, by all that is known
    return said


ahead = pytest.mark.parametrize("is_ahead", [False, True], ids=["beside the device", "ahead of it"])


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
    sitting = _Sitting(course)
    assert sitting.step(tokens=100) == pytest.approx(0.9)
    assert course.learning_rate_share(_SAMPLES, 700) == pytest.approx(0.2)
    sitting.step(tokens=899)
    assert not course.is_done
    assert course.learning_rate_share(_SAMPLES, 1) == course.learning_rate_share(_SAMPLES, 700) == 0.0
    sitting.step(tokens=1)
    assert course.is_done


def test_a_run_of_one_step_ends_with_it():
    assert (
        len(_train(_course("1 steps"))) == len(_train(_course("16 samples"))) == len(_train(_course("1 tokens"))) == 1
    )


@pytest.mark.parametrize("duration", ["10 steps", "160 samples", "4000 tokens", "11s"])
@pytest.mark.parametrize("interval, logged", [(1, range(1, 11)), (4, [1, 4, 8, 10]), (5, [1, 5, 10]), (99, [1, 10])])
@ahead
def test_the_first_the_last_and_every_so_manieth_step_are_logged(interval, logged, duration, is_ahead):
    said = _train(_course(duration, log_interval_steps=interval), is_ahead=is_ahead)
    assert len(said) == 10
    assert [step for step, (_, is_logged) in enumerate(said, start=1) if is_logged] == list(logged)


@given(
    length=st.floats(0.01, 5.0),  # the first step of a sitting, which compiles, says nothing
    budget=st.integers(10, 60),
    interval=st.sampled_from([1, 5, 1000]),
    is_ahead=st.booleans(),
)
def test_even_steps_fill_a_time_and_never_pass_it(length, budget, interval, is_ahead):
    course = _course(f"{budget}s", log_interval_steps=interval)
    said = _train(course, iter(lambda: length, None), is_ahead=is_ahead)
    assert budget - length <= course.position.seconds + 1e-6
    assert course.position.seconds <= budget + 1e-6
    assert said[-1][0] <= 2 * length / budget + 1e-6  # the rate has come down to that of the last steps


@given(seed=st.integers(0, 1000), spread=st.floats(0.0, 0.5), is_ahead=st.booleans())
def test_no_step_begins_that_would_pass_the_time_if_it_lasted_as_those_before(seed, spread, is_ahead):
    draw = random.Random(seed)
    course = _course("100s")
    sitting = _Sitting(course, is_ahead=is_ahead)
    shares = []
    while not course.is_done:
        assert sitting.now + course.step_seconds < 100 + 4 * spread + 2.0 * is_ahead
        is_evaluated = course.is_settled and draw.random() < 0.3
        shares.append(sitting.step(lasts=1 + draw.uniform(-spread, spread), paused=2.0 * is_evaluated))
    longest = 1 + spread
    assert 100 - longest - 4 * spread <= course.position.seconds <= 100 + longest + 4 * spread + 2.0
    assert 0.0 <= shares[-1] <= (3 * longest + 4 * spread + 2.0) / 100


def test_a_step_that_is_longer_than_the_time_is_the_only_one():
    course = _course("10s")
    assert _Sitting(course).step(lasts=30.0) == 1.0
    assert course.is_done


@pytest.mark.parametrize("slow", [1, 2, 50, 77], ids=lambda step: f"step-{step}")
@ahead
def test_one_slow_step_does_not_end_the_run_early(slow, is_ahead):
    course = _course("100s")
    lengths = (20.0 if step == slow else 1.0 for step in count(1))
    _train(course, lengths, is_ahead=is_ahead)
    assert course.position.steps == 80
    assert course.position.seconds == 99.0


def test_evaluations_take_of_the_time_but_are_no_training():
    course = _course("10s", log_interval_steps=1)
    sitting = _Sitting(course)
    sitting.step(lasts=1.0)
    sitting.step(lasts=1.0, paused=6.0)
    assert not course.is_done
    sitting.step(lasts=1.0)
    assert course.is_done
    assert course.training_seconds == 3.0
    assert course.position.seconds == 9.0


def test_the_position_is_kept_that_was_last_looked_at():
    course = _course("100 steps", log_interval_steps=4)
    sitting = _Sitting(course)
    sitting.step()
    sitting.step(tokens=5, lasts=0.5)
    assert course.before == TrainPosition(steps=1, samples=16, tokens=400, seconds=1.0)
    assert course.position == TrainPosition(steps=2, samples=32, tokens=405, seconds=1.5)
    sitting.step(lasts=3.0)
    assert not course.is_settled
    assert course.position == TrainPosition(steps=3, samples=48, tokens=805, seconds=1.5 + 0.5)  # as the step before it
    sitting.step(lasts=3.0)
    assert course.is_settled
    assert course.before == TrainPosition(steps=2, samples=32, tokens=405, seconds=1.5)
    assert course.position == TrainPosition(steps=4, samples=64, tokens=1205, seconds=7.5)
    assert course.training_seconds == 7.5


def test_steps_are_settled_at_once_only_where_something_is_due():
    course = _course("40 steps", log_interval_steps=10, interval="14 steps")
    sitting = _Sitting(course, is_ahead=True)
    settled = []
    while not course.is_done:
        sitting.step()
        settled += [course.position.steps] * course.is_settled
    assert settled == [1, 2, 10, 14, 20, 28, 30, 40]


def test_a_run_that_is_asked_to_stop_is_settled_at_the_next_step():
    course = _course("100 steps")
    sitting = _Sitting(course)
    for _ in range(4):
        sitting.step()
    assert not course.is_settled
    course.stop = True  # as the trainer says when it has settled a step
    sitting.step()
    assert course.is_settled


@pytest.mark.parametrize("unit, amount", [("steps", 7), ("samples", 100), ("tokens", 3000), ("s", 9)])
@given(seed=st.integers(0, 1000), is_ahead=st.booleans())
def test_no_interval_is_missed_or_served_twice(unit, amount, seed, is_ahead):
    draw = random.Random(seed)
    course = _course("100 steps", log_interval_steps=23, interval=f"{amount} {unit}" if unit != "s" else f"{amount}s")
    (interval,) = course.intervals
    sitting = _Sitting(course, is_ahead=is_ahead)
    served, looked = [], [TrainPosition()]
    while not course.is_done:
        sitting.step(tokens=draw.randrange(100, 700), lasts=draw.uniform(0.5, 2.0))
        if course.is_settled:
            assert course.before == looked[-1]
            looked.append(course.position)
            if has_passed(interval, course.before, course.position):
                served.append(course.position.count(interval.unit))
    multiples = {math.floor(at / amount) for at in served}
    assert len(multiples) == len(served)
    late = 0.0 if unit != "s" else 4.0  # seconds: a step that was longer than expected, and the one after it
    assert all(later - at <= amount + late + _longest(unit) for at, later in pairwise(served))
    assert multiples == set(range(1, math.floor(course.position.count(interval.unit) / amount) + 1))


def _longest(unit):
    """How far a step goes at most."""
    return {"steps": 1, "samples": _SAMPLES, "tokens": 700, "s": 2.0}[unit]


@given(lengths=st.lists(st.floats(1e-3, 1e3), max_size=20), duration=st.sampled_from(["7 steps", "2500 tokens", "50s"]))
def test_a_course_that_is_written_and_read_goes_on_as_before(lengths, duration):
    whole, read = (_course(duration, log_interval_steps=1) for _ in range(2))
    sitting = _Sitting(whole)
    for number, lasts in enumerate(lengths):
        sitting.step(lasts=lasts)
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
