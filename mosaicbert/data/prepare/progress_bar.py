"""What `prepare` says while it works: a live line on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Sequence
from datetime import timedelta

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from mosaicbert.data.prepare.sources import Part
from mosaicbert.data.prepare.tokenize import TokenisedBlock

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Documents, tokens, speed and time left; a context manager.

    Args:
        console: to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = rich.progress.Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[counts]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, counts="")
        self._last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def say(self, doing: str) -> None:
        """Shows what is being done where nothing is counted."""
        self._bar.update(self._task, description=doing, total=None, counts="")
        if not self.console.is_terminal:
            self.console.print(f"{doing} ...", highlight=False, soft_wrap=True)

    def start(self, doing: str, parts: Sequence[Part], next_part: int) -> None:
        """Begins to count, at a part; what was done before is not this process' work."""
        # Parts of unknown size count alike.
        known = all(part.size for part in parts)
        self._ends = [0.0]
        for part in parts:
            self._ends.append(self._ends[-1] + (part.size if known else 1.0))
        self._begun_at: float | None = None
        self._started = time.monotonic()
        self._doing = doing
        self._documents = self._tokens = self._text_bytes = 0
        self._bar.update(self._task, description=doing, completed=self._ends[next_part], total=self._ends[-1] or 1.0)

    def advance(self, part: int, block: TokenisedBlock) -> None:
        """Counts a block of one of the parts."""
        self._documents += block.documents
        self._tokens += sum(len(samples.ids) for samples in block.samples.values())
        self._text_bytes += block.text_bytes
        now = time.monotonic()
        done = self._ends[part] + block.fraction * (self._ends[part + 1] - self._ends[part])
        if self._begun_at is None:  # behind what was finished before, which says nothing about the speed
            self._begun_at = done
        seconds = max(now - self._started, 1e-9)
        speed = (done - self._begun_at) / seconds
        left = "" if speed <= 0 else f", {timedelta(seconds=round((self._ends[-1] - done) / speed))} left"
        counts = (
            f"{self._documents:,} documents, {self._tokens / 1e6:,.1f} M tokens, "
            f"{self._text_bytes / 1e6 / seconds:,.1f} MB/s{left}"
        )
        self._bar.update(self._task, completed=done, counts=counts)
        if not self.console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            share = done / (self._ends[-1] or 1.0)
            self.console.print(f"{self._doing}: {share:.0%}, {counts}", highlight=False, soft_wrap=True)
