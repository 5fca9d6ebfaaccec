import time

import pytest

from mosaicbert.bench.timing import NUM_WARMUP_ROUNDS, PhaseClock, TimeLimitExceeded, measure_in_turn, time_limit


def _measure(calls, num_rounds=3, seconds=60.0, alternatives=None, compiled=None):
    groups = {name: name for name in calls} | (alternatives or {})
    return measure_in_turn(
        calls, num_rounds=num_rounds, seconds=seconds, device_type="cpu", alternatives=groups, compiled=compiled
    )


def test_versions_run_in_turn_after_their_warmup():
    order = []
    calls = {name: lambda index, _clock, name=name: order.append((name, index)) for name in "ab"}
    _measure(calls)
    warmup = [(name, index) for name in "ab" for index in range(NUM_WARMUP_ROUNDS)]
    rounds = [(name, NUM_WARMUP_ROUNDS + index) for index in range(3) for name in "ab"]
    assert order == warmup + rounds


def test_the_times_of_a_phase_that_occurs_twice_are_added():
    clock = PhaseClock("cpu")
    for phase in ("forward", "backward", "forward"):
        clock.lap(phase)
    seconds = clock.seconds()
    assert list(seconds) == ["forward", "backward"]
    assert all(value >= 0 for value in seconds.values())


def test_a_restarted_clock_has_no_phases():
    clock = PhaseClock("cpu")
    clock.lap("forward")
    clock.restart()
    assert clock.seconds() == {}


@pytest.mark.parametrize("failing_round", [0, NUM_WARMUP_ROUNDS + 1], ids=["warmup", "timed"])
def test_a_version_that_fails_has_its_error_and_the_others_continue(failing_round):
    def fail(index, clock):
        clock.lap("forward")
        if index == failing_round:
            raise RuntimeError("out of\nluck")

    measurements = _measure({"failing": fail, "working": lambda _, clock: clock.lap("forward")})
    assert measurements["failing"].error == "RuntimeError: out of luck"
    assert measurements["working"].error is None
    assert len(measurements["working"].seconds) == 3


def test_a_version_that_exceeds_its_time_limit_is_stopped():
    calls = {"endless": lambda *_: time.sleep(60), "working": lambda _, clock: clock.lap("forward")}
    measurements = _measure(calls, seconds=0.5)
    assert measurements["endless"].error.startswith("TimeLimitExceeded: time limit of 0.")
    assert len(measurements["working"].seconds) == 3


def test_versions_for_which_no_time_is_left_are_not_run():
    measurements = _measure({"late": lambda _, clock: clock.lap("forward")}, seconds=0.0)
    assert measurements["late"].error == "not run: no time was left"
    assert measurements["late"].warmup_seconds == []


def test_of_alternatives_only_the_fast_one_is_timed():
    calls = {"slow": lambda *_: time.sleep(0.2), "fast": lambda _, clock: clock.lap("forward")}
    measurements = _measure(calls, alternatives={"slow": "group", "fast": "group"})
    assert measurements["slow"].error.startswith("slower than the alternative: 0.2")
    assert len(measurements["fast"].seconds) == 3


def test_the_first_call_of_a_much_slower_alternative_is_stopped():
    calls = {"fast": lambda *_: time.sleep(0.05), "slow": lambda *_: time.sleep(60)}
    measurements = _measure(calls, alternatives=dict.fromkeys(calls, "group"))
    assert measurements["slow"].error.startswith("TimeLimitExceeded: time limit of 0.2")
    assert measurements["slow"].is_slow
    assert not measurements["fast"].is_slow


def test_compilers_cannot_catch_the_time_limit_as_an_exception():
    with pytest.raises(TimeLimitExceeded), time_limit(0.01):
        try:
            time.sleep(60)
        except Exception:
            pytest.fail("caught")


def test_a_compiled_version_is_warmed_up_last_and_with_all_rounds():
    order = []
    calls = {name: lambda index, _clock, name=name: order.append((name, index)) for name in ("compiled", "eager")}
    _measure(calls, compiled={"compiled": "eager"})
    warmup = [("eager", 0), ("eager", 1), *(("compiled", index) for index in range(5))]
    assert order == warmup + [(name, index) for index in (2, 3, 4) for name in calls]


def test_a_version_is_not_compiled_if_it_is_slow_without_compilation():
    fast = lambda _, clock: clock.lap("forward")  # noqa: E731
    calls = {"fast": fast, "slow": lambda *_: time.sleep(0.2), "slow, compiled": fast}
    groups = {"fast": "group", "slow": "group"}
    measurements = _measure(calls, alternatives=groups, compiled={"slow, compiled": "slow"})
    assert measurements["slow, compiled"].error == "not run: slow is slower than its alternative"
    assert measurements["slow, compiled"].warmup_seconds == []
