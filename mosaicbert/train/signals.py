"""Stop requests: SIGTERM and SIGINT end a run after the current step, with a checkpoint and without an error."""

import signal
import threading
import time
from types import FrameType
from typing import Any

_MIN_SECONDS_BETWEEN_INTERRUPTS = 1.0  # launchers may deliver one signal twice in a shorter time


class TrainingStopped(Exception):
    """Exception that ends training after a stop request. Every rank raises it after the same step.

    Attributes:
        has_checkpoint: Whether the checkpoint was written; valid on rank 0.
    """

    def __init__(self, has_checkpoint: bool) -> None:
        super().__init__()
        self.has_checkpoint = has_checkpoint


class StopRequest:
    """Context manager that records SIGTERM and SIGINT. A second SIGINT interrupts the process as usual.

    Attributes:
        signal: Name of the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._received_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    def _record(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._received_at = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._received_at > _MIN_SECONDS_BETWEEN_INTERRUPTS:
            raise KeyboardInterrupt
