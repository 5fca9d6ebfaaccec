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
def heard():
    """What the handlers that were there before have heard; without them a test that fails would end pytest."""
    heard = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in _SIGNALS}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number):
    os.kill(os.getpid(), number)


def _send_in_vain(number):
    try:
        _send(number)
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail(f"{signal.Signals(number).name} interrupts")


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_is_noted_and_goes_no_further(number, heard):
    with StopRequest() as stop:
        assert stop.signal is None
        _send(number)
        assert stop.signal == signal.Signals(number).name
    assert heard == []


@pytest.mark.parametrize("number", _SIGNALS)
def test_a_signal_that_a_launcher_delivers_twice_asks_once(number):
    with StopRequest() as stop:
        for _ in range(3):
            _send_in_vain(number)
        assert stop.signal == signal.Signals(number).name


def test_a_second_interrupt_after_a_second_interrupts():
    with StopRequest() as stop:
        _send(signal.SIGINT)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)
        assert stop.signal == "SIGINT"


def test_a_second_termination_does_nothing():
    with StopRequest() as stop:
        _send(signal.SIGTERM)
        time.sleep(1.1)
        _send_in_vain(signal.SIGTERM)
        assert stop.signal == "SIGTERM"


def test_an_interrupt_long_after_a_termination_interrupts():
    with StopRequest() as stop:
        _send(signal.SIGTERM)
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            _send(signal.SIGINT)
        assert stop.signal == "SIGTERM"


def test_the_handlers_from_before_are_put_back(heard):
    before = [signal.getsignal(number) for number in _SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in _SIGNALS] != before
    assert [signal.getsignal(number) for number in _SIGNALS] == before
    for number in _SIGNALS:
        _send(number)
    assert heard == _SIGNALS


def test_the_handlers_from_before_are_put_back_after_an_error():
    before = [signal.getsignal(number) for number in _SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest():
        _ = 1 // 0
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_a_second_request_begins_afresh():
    with StopRequest() as first:
        _send(signal.SIGINT)
    with StopRequest() as second:
        assert second.signal is None
    assert first.signal == "SIGINT"


def test_outside_the_main_thread_nothing_is_noted_and_nothing_fails():
    before = [signal.getsignal(number) for number in _SIGNALS]
    found = []

    def work():
        with StopRequest() as stop:
            found.append((stop.signal, [signal.getsignal(number) for number in _SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)]
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_a_process_that_was_asked_to_stop_ends_without_an_error():
    program = (
        "import time\n"
        "from mosaicbert.train.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    print('open', flush=True)\n"
        "    while stop.signal is None:\n"
        "        time.sleep(0.01)\n"
        "print(stop.signal)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        process.terminate()
        printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "SIGTERM\n")
