"""Console output of a run: one live line on a terminal, a line for every 5% of the run elsewhere."""

import math
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mosaicbert.console import print_line
from mosaicbert.train.callbacks.metrics import MetricsLogger
from mosaicbert.train.composer import Callback, Logger, State, dist
from mosaicbert.train.progress.run_progress import RunProgress

_NUM_LINES_WITHOUT_TERMINAL = 20
_BAR_TOTAL = 1000


class ProgressBar(Callback):
    """Show step, loss, throughput and remaining time. Only rank 0 prints.

    Args:
        progress: Progress of the run.
        metrics: Metrics callback, which must run before this one.
        console: Console to print to.
    """

    def __init__(self, progress: RunProgress, metrics: MetricsLogger, console: Console) -> None:
        self.progress = progress
        self.metrics = metrics
        self.console = console
        self._is_rank_zero = dist.get_global_rank() == 0
        self._printed_fraction = -1.0
        self._bar = Progress(
            BarColumn(bar_width=8),  # the whole line fits 80 columns
            TextColumn("{task.fields[measures]}"),
            console=console,
            disable=not (console.is_terminal and self._is_rank_zero),
        )
        self._task = self._bar.add_task("pretraining", total=_BAR_TOTAL, measures="")

    def fit_start(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        if self._is_rank_zero:
            self._bar.start()

    def batch_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        if not self._is_rank_zero:
            return
        progress = self.progress
        done, line = progress.plan.fraction_done(progress.position), self._line()
        self._bar.update(self._task, completed=done * _BAR_TOTAL, measures=line)
        num_due, num_printed = (
            math.floor(fraction * _NUM_LINES_WITHOUT_TERMINAL) for fraction in (done, self._printed_fraction)
        )
        if not self.console.is_terminal and (num_due > num_printed or progress.is_done):
            self._printed_fraction = done
            print_line(self.console, line)

    def fit_end(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._stop()

    def close(self, state: State, logger: Logger) -> None:  # noqa: ARG002
        self._stop()

    def _stop(self) -> None:
        if self._bar.live.is_started:
            self._bar.stop()

    def _line(self) -> str:
        progress, throughput, eval_loss = self.progress, self.metrics.throughput, self.metrics.eval_loss
        assert progress.report is not None
        steps, num_steps = progress.position.steps, progress.plan.num_steps
        counter = f"{steps}" if num_steps is None else f"{steps}/{max(num_steps, steps)}"
        validation = "" if math.isnan(eval_loss) else f", validation {eval_loss:.2f}"
        remaining = timedelta(seconds=max(0, round(self._seconds_remaining())))
        return (
            f"step {counter}  loss {progress.report.loss:.2f}{validation}  "
            f"{throughput.tokens_per_second / 1e3:,.1f}k tokens/s  MFU {throughput.mfu:.0%}  {remaining} left"
        )

    def _seconds_remaining(self) -> float:
        plan, position = self.progress.plan, self.progress.position
        if plan.length.unit == "seconds":
            return plan.length.amount - position.seconds
        return (1.0 - plan.fraction_done(position)) * (plan.num_steps or 0) * self.metrics.throughput.seconds_per_step
