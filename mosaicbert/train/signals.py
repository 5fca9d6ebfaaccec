"""Asked to stop: the step is finished, a checkpoint written, and the process ends without an error."""

import signal
import threading
import time
from types import FrameType
from typing import Any

_PATIENCE_SECONDS = 1.0  # launchers may deliver a signal twice; someone at a keyboard takes longer


class Stopped(Exception):
    """The run was asked to stop, and has tried to write its checkpoint. Every rank raises it after the same step.

    Attributes:
        has_checkpoint: whether it could be written; of meaning on rank 0.
    """

    def __init__(self, has_checkpoint: bool) -> None:
        super().__init__()
        self.has_checkpoint = has_checkpoint


class StopRequest:
    """Notes SIGTERM and SIGINT while it is open; a second SIGINT does what it always did.

    Attributes:
        signal: the name of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._since > _PATIENCE_SECONDS:
            raise KeyboardInterrupt
