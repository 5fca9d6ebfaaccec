"""What `prepare` says while it works: a live line on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Sequence
from datetime import timedelta

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.prepare.tokenize import TokenizedBlock

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

    def log(self, activity: str) -> None:
        """Shows what is being done where nothing is counted."""
        self._bar.update(self._task, description=activity, total=None, counts="")
        if not self.console.is_terminal:
            self.console.print(f"{activity} ...", highlight=False, soft_wrap=True)

    def start(self, activity: str, input_files: Sequence[InputFile], next_input_file: int) -> None:
        """Begins to count, at a part; what was done before is not this process' work."""
        # Parts of unknown size count alike.
        known = all(input_file.size for input_file in input_files)
        self._ends = [0.0]
        for input_file in input_files:
            self._ends.append(self._ends[-1] + (input_file.size if known else 1.0))
        self._begun_at: float | None = None
        self._started = time.monotonic()
        self._activity = activity
        self._documents = self._tokens = self._text_bytes = 0
        self._bar.update(
            self._task, description=activity, completed=self._ends[next_input_file], total=self._ends[-1] or 1.0
        )

    def advance(self, input_file: int, block: TokenizedBlock) -> None:
        """Counts a block of one of the parts."""
        self._documents += block.documents
        self._tokens += sum(len(samples.ids) for samples in block.samples.values())
        self._text_bytes += block.text_bytes
        now = time.monotonic()
        done = self._ends[input_file] + block.fraction * (self._ends[input_file + 1] - self._ends[input_file])
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
            self.console.print(f"{self._activity}: {share:.0%}, {counts}", highlight=False, soft_wrap=True)
