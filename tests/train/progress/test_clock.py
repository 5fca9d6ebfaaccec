"""Training clock: wall-clock time, step time, and pauses."""

import time

from mosaicbert.train.progress.clock import TrainingClock


def test_the_clock_sums_all_sessions():
    clock = TrainingClock()
    clock.start(100.0)
    time.sleep(0.02)
    assert 100.02 <= clock.seconds < 101.0


def test_a_restarted_clock_continues_and_restarts_the_step_time():
    clock = TrainingClock()
    clock.start(100.0)
    time.sleep(0.3)
    clock.start(5.0)
    assert clock.step_seconds() < 0.2
    assert 100.3 <= clock.seconds < 102.0


def test_the_step_time_is_the_time_since_the_last_call():
    clock = TrainingClock()
    clock.start(100.0)
    time.sleep(0.3)
    first = clock.step_seconds()
    second = clock.step_seconds()
    assert 0.3 <= first < 2.0
    assert 0.0 <= second < 0.2


def test_a_pause_counts_as_wall_clock_time_but_not_as_step_time():
    clock = TrainingClock()
    clock.start(0.0)
    clock.step_seconds()
    clock.pause()
    time.sleep(0.3)
    clock.resume()
    time.sleep(0.02)
    assert 0.02 <= clock.step_seconds() < 0.25
    assert 0.32 <= clock.seconds < 2.0
    time.sleep(0.02)
    assert 0.02 <= clock.step_seconds() < 0.25


def test_step_times_sum_to_the_wall_clock_time():
    clock = TrainingClock()
    clock.start(0.0)
    total = 0.0
    for _ in range(5):
        time.sleep(0.01)
        before = clock.seconds
        total += clock.step_seconds()
        assert before - 0.005 <= total <= clock.seconds


def _compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_cpu_time_of_a_step_excludes_waiting_and_pauses():
    clock = TrainingClock()
    clock.start(0.0)
    _compute(0.1)
    time.sleep(0.3)
    clock.pause()
    _compute(0.3)
    clock.resume()
    assert 0.1 <= clock.step_cpu_seconds() < 0.25
    assert clock.step_cpu_seconds() < 0.1
