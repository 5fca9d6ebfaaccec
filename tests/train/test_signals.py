"""Stop requests: recording of SIGTERM and SIGINT, and the signal handlers before and after."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mosaicbert.train.signals import StopRequest

_SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture(autouse=True)
def handled():
    """Return the signals that the previous handlers have received. They keep a failing test from ending pytest."""
    handled = []
    before = {number: signal.signal(number, lambda number, _: handled.append(number)) for number in _SIGNALS}
    yield handled
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number):
    os.kill(os.getpid(), number)


def _send_without_effect(number):
    try:
        _send(number)
    except KeyboardInterrupt:  # it would end pytest
        pytest.fail(f"{signal.Signals(number).name} raises KeyboardInterrupt")


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_is_recorded_and_not_passed_to_the_previous_handler(number, handled):
    with StopRequest() as stop:
        assert stop.signal is None
        _send(number)
        assert stop.signal == signal.Signals(number).name
    assert handled == []


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_that_a_launcher_delivers_repeatedly_has_the_effect_of_one(number):
    with StopRequest() as stop:
        for _ in range(3):
            _send_without_effect(number)
        assert stop.signal == signal.Signals(number).name


def test_another_interrupt_more_than_a_second_later_raises_keyboard_interrupt():
    with StopRequest() as stop:
        _send(signal.SIGINT)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_another_termination_signal_has_no_effect():
    with StopRequest() as stop:
        _send(signal.SIGTERM)
        time.sleep(1.1)
        _send_without_effect(signal.SIGTERM)
        assert stop.signal == "SIGTERM"


def test_an_interrupt_more_than_a_second_after_a_termination_signal_raises_keyboard_interrupt():
    with StopRequest() as stop:
        _send(signal.SIGTERM)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_the_previous_handlers_are_restored(handled):
    before = [signal.getsignal(number) for number in _SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in _SIGNALS] != before
    assert [signal.getsignal(number) for number in _SIGNALS] == before
    for number in _SIGNALS:
        _send(number)
    assert handled == _SIGNALS


def test_the_previous_handlers_are_restored_after_an_error():
    before = [signal.getsignal(number) for number in _SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest():
        _ = 1 // 0
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_a_new_stop_request_has_no_signal():
    with StopRequest() as first:
        _send(signal.SIGINT)
    with StopRequest() as second:
        assert second.signal is None
    assert first.signal == "SIGINT"


def test_outside_the_main_thread_no_handler_is_installed():
    before = [signal.getsignal(number) for number in _SIGNALS]
    observed = []

    def work():
        with StopRequest() as stop:
            observed.append((stop.signal, [signal.getsignal(number) for number in _SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert observed == [(None, before)]
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_a_process_that_records_sigterm_can_exit_with_code_zero():
    program = (
        "import time\n"
        "from mosaicbert.train.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while stop.signal is None:\n"
        "        time.sleep(0.01)\n"
        "print(stop.signal)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "SIGTERM\n")
