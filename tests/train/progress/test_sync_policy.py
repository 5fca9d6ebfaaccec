"""Synchronization policy: steps that are finalized at once."""

from pathlib import Path

import pytest

from mosaicbert.config import parse_duration
from mosaicbert.train.progress.sync_policy import SyncPolicy
from mosaicbert.train_plan import TrainPlan, TrainPosition
from tests.recipes import tiny_recipe


def _policy(duration="1000 steps", intervals=("100 steps",)):
    recipe = tiny_recipe(Path("runs"), Path("text.jsonl"), train={"duration": duration})
    plan = TrainPlan(recipe.data, recipe.train, tokens_per_sample=25.0)
    return SyncPolicy(plan, 40, [parse_duration("interval", interval) for interval in intervals])


def _must_sync(policy, step, *, seconds=0.0, last_step=None, step_seconds=1.0, stop_requested=False):
    return policy.must_sync(
        TrainPosition(steps=step - 1 if last_step is None else last_step),
        TrainPosition(steps=step, samples=16 * step, tokens=400 * step, seconds=seconds),
        step_seconds=step_seconds,
        stop_requested=stop_requested,
    )


def test_an_ordinary_step_is_not_a_sync_step():
    assert not _must_sync(_policy(), 50)


def test_the_first_and_every_nth_step_are_logged():
    policy = _policy()
    assert [step for step in range(1, 130) if policy.is_log_step(step)] == [1, 40, 80, 120]
    assert _must_sync(policy, 80)


def test_steps_before_the_first_measured_duration_are_sync_steps():
    assert _must_sync(_policy(), 50, step_seconds=None)


def test_a_step_after_a_stop_request_is_a_sync_step():
    assert _must_sync(_policy(), 50, stop_requested=True)


@pytest.mark.parametrize("step, last_step, is_sync", [(99, 98, False), (100, 98, True), (101, 99, True)])
def test_a_step_that_completes_an_interval_is_a_sync_step(step, last_step, is_sync):
    assert _must_sync(_policy(), step, last_step=last_step) == is_sync


def test_one_of_several_intervals_is_enough():
    assert _must_sync(_policy(intervals=["1000000 steps", "50 steps"]), 50)


def test_the_last_step_is_a_sync_step():
    assert not _must_sync(_policy("55 steps"), 54)
    assert _must_sync(_policy("55 steps"), 55)


@pytest.mark.parametrize("seconds, is_sync", [(57.9, False), (58.0, True)])
def test_steps_within_two_step_durations_of_the_time_limit_are_sync_steps(seconds, is_sync):
    assert _must_sync(_policy("60s"), 50, seconds=seconds) == is_sync
