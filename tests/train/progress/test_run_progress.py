"""Run progress: units, time limits, synchronization steps, intervals, and restored state."""

import json
import math
import random
from itertools import count, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import OptimizerConfig, parse_duration
from mosaicbert.train.progress.lr_schedule import learning_rate_fraction
from mosaicbert.train.progress.run_progress import RunProgress, StepReport
from mosaicbert.train.progress.sync_policy import SyncPolicy
from mosaicbert.train_plan import TrainPlan, TrainPosition, has_passed
from tests.recipes import tiny_recipe

_SAMPLES, _TOKENS = 16, 400
_DECAY = OptimizerConfig(warmup_fraction=0.0, final_lr_fraction=0.0)


def _progress(duration, *, log_interval_steps=1000, interval="1000000 steps"):
    recipe = tiny_recipe(
        Path("runs"), Path("text.jsonl"), train={"duration": duration, "global_batch_samples": _SAMPLES}
    )
    plan = TrainPlan(recipe.data, recipe.train, tokens_per_sample=_TOKENS / _SAMPLES)
    return RunProgress(plan, SyncPolicy(plan, log_interval_steps, [parse_duration("interval", interval)]))


def _lr_fraction(progress, tokens):
    """Return the learning rate fraction of the next step, with linear decay to zero."""
    return learning_rate_fraction(_DECAY, progress.plan.fraction_done(progress.position_after(_SAMPLES, tokens)))


class _Trainer:
    """Trainer that counts and finalizes steps with a simulated clock.

    Args:
        progress: Progress of the run.
        is_async: Whether the host is one step ahead of the device, as with a GPU. It then reads the clock when the
            device has finished the previous step, except on synchronization steps.
    """

    def __init__(self, progress, *, is_async=False):
        self.progress = progress
        self.is_async = is_async
        self.now = progress.position.seconds
        self._read_at = self._trained = 0.0
        self._pending = None

    def step(self, *, tokens=_TOKENS, seconds=1.0, eval_seconds=0.0):
        """Evaluate for `eval_seconds`, then train for `seconds`. Return the learning rate fraction."""
        progress = self.progress
        lr_fraction = _lr_fraction(progress, tokens)
        self._finalize()
        progress.count(_SAMPLES, tokens)
        started_at = self.now + eval_seconds
        self.now += seconds + eval_seconds
        self._trained += seconds
        is_late = self.is_async and not progress.is_sync_step
        read_at = self._trained - is_late * seconds
        step_seconds, self._read_at = read_at - self._read_at, read_at
        self._pending = (progress.position.steps, step_seconds, started_at if is_late else self.now, is_late)
        if progress.is_sync_step:
            self._finalize()
        return lr_fraction

    def _finalize(self):
        if self._pending is None:
            return
        (step, step_seconds, seconds, is_late), self._pending = self._pending, None
        report = StepReport(
            step=step,
            batch=step - 1,
            loss=2.0,
            accuracy=0.5,
            grad_norm=1.0,
            seconds=step_seconds,
            cpu_seconds=2 * step_seconds,
            lr_fraction=1.0,
            updated=True,
        )
        self.progress.finalize(report, seconds + is_late * self.progress.step_seconds)


def _train(progress, durations=None, *, is_async=False):
    """Train to the end of the run. Return for each step the learning rate fraction and whether it is logged."""
    trainer = _Trainer(progress, is_async=is_async)
    steps = []
    while not progress.is_done:
        lr_fraction = trainer.step(seconds=next(durations) if durations else 1.0)
        steps.append((lr_fraction, progress.is_logged))
    assert progress.position.seconds == pytest.approx(trainer.now)  # the last step is finalized at once
    return steps


asynchronous = pytest.mark.parametrize("is_async", [False, True], ids=["synchronous", "asynchronous"])


@pytest.mark.parametrize("duration", ["10 steps", "160 samples", "4000 tokens", "3601 tokens", "175 samples"])
def test_the_learning_rate_decays_over_the_duration_in_its_unit(duration):
    fractions = [fraction for fraction, _ in _train(_progress(duration))]
    assert len(fractions) == 10
    if duration == "3601 tokens":
        assert fractions == pytest.approx([max(0.0, 1 - 400 * step / 3601) for step in range(1, 11)])
    else:
        assert fractions == pytest.approx([1 - step / 10 for step in range(1, 11)])


def test_the_learning_rate_of_a_run_in_tokens_depends_on_the_tokens_of_its_steps():
    progress = _progress("1000 tokens")
    trainer = _Trainer(progress)
    assert trainer.step(tokens=100) == pytest.approx(0.9)
    assert _lr_fraction(progress, 700) == pytest.approx(0.2)
    trainer.step(tokens=899)
    assert not progress.is_done
    assert _lr_fraction(progress, 1) == _lr_fraction(progress, 700) == 0.0
    trainer.step(tokens=1)
    assert progress.is_done


@pytest.mark.parametrize("duration", ["1 steps", "16 samples", "1 tokens"])
def test_a_run_may_have_only_one_step(duration):
    assert len(_train(_progress(duration))) == 1


@pytest.mark.parametrize("duration", ["10 steps", "160 samples", "4000 tokens", "11s"])
@pytest.mark.parametrize(
    "interval, logged_steps", [(1, range(1, 11)), (4, [1, 4, 8, 10]), (5, [1, 5, 10]), (99, [1, 10])]
)
@asynchronous
def test_the_first_the_last_and_every_nth_step_are_logged(interval, logged_steps, duration, is_async):
    steps = _train(_progress(duration, log_interval_steps=interval), is_async=is_async)
    assert len(steps) == 10
    assert [step for step, (_, is_logged) in enumerate(steps, start=1) if is_logged] == list(logged_steps)


@given(
    step_seconds=st.floats(0.01, 5.0),  # the first step of a session, which compiles, is not timed
    time_limit=st.integers(10, 60),
    interval=st.sampled_from([1, 5, 1000]),
    is_async=st.booleans(),
)
def test_steps_of_equal_duration_use_the_time_limit_without_exceeding_it(step_seconds, time_limit, interval, is_async):
    progress = _progress(f"{time_limit}s", log_interval_steps=interval)
    steps = _train(progress, iter(lambda: step_seconds, None), is_async=is_async)
    assert time_limit - step_seconds <= progress.position.seconds + 1e-6
    assert progress.position.seconds <= time_limit + 1e-6
    assert steps[-1][0] <= 2 * step_seconds / time_limit + 1e-6  # the learning rate has decayed


@given(seed=st.integers(0, 1000), jitter=st.floats(0.0, 0.5), is_async=st.booleans())
def test_a_step_that_would_exceed_the_time_limit_does_not_start(seed, jitter, is_async):
    draw = random.Random(seed)
    progress = _progress("100s")
    trainer = _Trainer(progress, is_async=is_async)
    fractions = []
    while not progress.is_done:
        assert trainer.now + progress.step_seconds < 100 + 4 * jitter + 2.0 * is_async
        is_evaluated = progress.is_finalized and draw.random() < 0.3
        fractions.append(trainer.step(seconds=1 + draw.uniform(-jitter, jitter), eval_seconds=2.0 * is_evaluated))
    max_step_seconds = 1 + jitter
    assert 100 - max_step_seconds - 4 * jitter <= progress.position.seconds <= 100 + max_step_seconds + 4 * jitter + 2.0
    assert 0.0 <= fractions[-1] <= (3 * max_step_seconds + 4 * jitter + 2.0) / 100


def test_a_run_ends_after_a_step_longer_than_its_time_limit():
    progress = _progress("10s")
    assert _Trainer(progress).step(seconds=30.0) == 1.0
    assert progress.is_done


@pytest.mark.parametrize("slow_step", [1, 2, 50, 77], ids=lambda step: f"step-{step}")
@asynchronous
def test_one_slow_step_does_not_end_the_run_early(slow_step, is_async):
    progress = _progress("100s")
    durations = (20.0 if step == slow_step else 1.0 for step in count(1))
    _train(progress, durations, is_async=is_async)
    assert progress.position.steps == 80
    assert progress.position.seconds == 99.0


def test_evaluations_count_as_wall_clock_time_but_not_as_training_time():
    progress = _progress("10s", log_interval_steps=1)
    trainer = _Trainer(progress)
    trainer.step(seconds=1.0)
    trainer.step(seconds=1.0, eval_seconds=6.0)
    assert not progress.is_done
    trainer.step(seconds=1.0)
    assert progress.is_done
    assert progress.training_seconds == 3.0
    assert progress.position.seconds == 9.0


def test_the_last_sync_position_is_the_position_of_the_previous_sync_step():
    progress = _progress("100 steps", log_interval_steps=4)
    trainer = _Trainer(progress)
    trainer.step()
    trainer.step(tokens=5, seconds=0.5)
    assert progress.last_sync_position == TrainPosition(steps=1, samples=16, tokens=400, seconds=1.0)
    assert progress.position == TrainPosition(steps=2, samples=32, tokens=405, seconds=1.5)
    trainer.step(seconds=3.0)
    assert not progress.is_finalized
    assert progress.position == TrainPosition(
        steps=3, samples=48, tokens=805, seconds=1.5 + 0.5
    )  # estimated from the previous step
    trainer.step(seconds=3.0)
    assert progress.is_finalized
    assert progress.last_sync_position == TrainPosition(steps=2, samples=32, tokens=405, seconds=1.5)
    assert progress.position == TrainPosition(steps=4, samples=64, tokens=1205, seconds=7.5)
    assert progress.training_seconds == 7.5


def test_only_sync_steps_are_finalized_at_once():
    progress = _progress("40 steps", log_interval_steps=10, interval="14 steps")
    trainer = _Trainer(progress, is_async=True)
    finalized = []
    while not progress.is_done:
        trainer.step()
        finalized += [progress.position.steps] * progress.is_finalized
    assert finalized == [1, 2, 10, 14, 20, 28, 30, 40]


def test_a_stop_request_makes_the_next_step_a_sync_step():
    progress = _progress("100 steps")
    trainer = _Trainer(progress)
    for _ in range(4):
        trainer.step()
    assert not progress.is_finalized
    progress.stop_requested = True  # the trainer sets it when it finalizes a step
    trainer.step()
    assert progress.is_finalized


@pytest.mark.parametrize("unit, amount", [("steps", 7), ("samples", 100), ("tokens", 3000), ("s", 9)])
@given(seed=st.integers(0, 1000), is_async=st.booleans())
def test_every_interval_has_passed_exactly_once(unit, amount, seed, is_async):
    draw = random.Random(seed)
    progress = _progress(
        "100 steps", log_interval_steps=23, interval=f"{amount} {unit}" if unit != "s" else f"{amount}s"
    )
    (interval,) = progress.sync_policy.intervals
    trainer = _Trainer(progress, is_async=is_async)
    passed_at, sync_positions = [], [TrainPosition()]
    while not progress.is_done:
        trainer.step(tokens=draw.randrange(100, 700), seconds=draw.uniform(0.5, 2.0))
        if progress.is_finalized:
            assert progress.last_sync_position == sync_positions[-1]
            sync_positions.append(progress.position)
            if has_passed(interval, progress.last_sync_position, progress.position):
                passed_at.append(progress.position.count(interval.unit))
    multiples = {math.floor(at / amount) for at in passed_at}
    assert len(multiples) == len(passed_at)
    tolerance = 0.0 if unit != "s" else 4.0  # seconds of a step that is longer than expected, and of the next one
    assert all(later - at <= amount + tolerance + _max_step_size(unit) for at, later in pairwise(passed_at))
    assert multiples == set(range(1, math.floor(progress.position.count(interval.unit) / amount) + 1))


def _max_step_size(unit):
    """Return the maximum size of a step in a unit."""
    return {"steps": 1, "samples": _SAMPLES, "tokens": 700, "s": 2.0}[unit]


@given(
    durations=st.lists(st.floats(1e-3, 1e3), max_size=20), duration=st.sampled_from(["7 steps", "2500 tokens", "50s"])
)
def test_restored_progress_is_equal_to_the_original(durations, duration):
    original, restored = (_progress(duration, log_interval_steps=1) for _ in range(2))
    trainer = _Trainer(original)
    for seconds in durations:
        trainer.step(seconds=seconds)
    state = json.loads(json.dumps(original.state_dict(), allow_nan=False))
    assert state["is_done"] == original.is_done
    restored.load_state_dict(state)
    assert restored.last_sync_position == restored.position == original.position
    for progress in (original, restored):
        assert progress.state_dict() == state
    assert restored.is_done == original.is_done
    assert _lr_fraction(restored, _TOKENS) == _lr_fraction(original, _TOKENS)
