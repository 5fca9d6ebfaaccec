"""Progress of `prepare`: a progress bar on a terminal, and a line every 30 seconds otherwise."""

import time
from collections.abc import Sequence
from datetime import timedelta

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from mosaicbert.console import print_line
from mosaicbert.data.prepare.sources import InputFile
from mosaicbert.data.prepare.tokenize import TokenizedBlock

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Context manager that shows the number of documents and tokens, the speed and the remaining time.

    Args:
        console: Console for the output.
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
        """Show an activity without counts.

        Args:
            activity: Description of the activity.
        """
        self._bar.update(self._task, description=activity, total=None, counts="")
        if not self.console.is_terminal:
            print_line(self.console, f"{activity} ...")

    def start(self, activity: str, input_files: Sequence[InputFile], next_input_file: int) -> None:
        """Start to count, at one of the input files.

        Args:
            activity: Description of the activity.
            input_files: All input files of the activity.
            next_input_file: Index of the first input file that is not finished.
        """
        # If a size is unknown, all input files have equal parts of the progress bar.
        has_sizes = all(input_file.size for input_file in input_files)
        self._ends = [0.0]
        for input_file in input_files:
            self._ends.append(self._ends[-1] + (input_file.size if has_sizes else 1.0))
        self._initial: float | None = None
        self._start_time = time.monotonic()
        self._activity = activity
        self._num_documents = self._num_tokens = self._text_bytes = 0
        self._bar.update(
            self._task, description=activity, completed=self._ends[next_input_file], total=self._ends[-1] or 1.0
        )

    def advance(self, index: int, block: TokenizedBlock) -> None:
        """Count a tokenized block.

        Args:
            index: Index of the input file of the block.
            block: Tokenized block.
        """
        self._num_documents += block.num_documents
        self._num_tokens += sum(len(samples.ids) for samples in block.samples.values())
        self._text_bytes += block.text_bytes
        now = time.monotonic()
        completed = self._ends[index] + block.fraction * (self._ends[index + 1] - self._ends[index])
        if self._initial is None:  # work of an earlier session is excluded from the speed
            self._initial = completed
        seconds = max(now - self._start_time, 1e-9)
        speed = (completed - self._initial) / seconds
        left = "" if speed <= 0 else f", {timedelta(seconds=round((self._ends[-1] - completed) / speed))} left"
        counts = (
            f"{self._num_documents:,} documents, {self._num_tokens / 1e6:,.1f} M tokens, "
            f"{self._text_bytes / 1e6 / seconds:,.1f} MB/s{left}"
        )
        self._bar.update(self._task, completed=completed, counts=counts)
        if not self.console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            fraction = completed / (self._ends[-1] or 1.0)
            print_line(self.console, f"{self._activity}: {fraction:.0%}, {counts}")
