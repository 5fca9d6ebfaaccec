"""Synchronization policy: the steps after which the host waits for the device."""

from collections.abc import Sequence
from dataclasses import replace

from mosaicbert.config import Duration
from mosaicbert.train_plan import TrainPlan, TrainPosition, has_passed


class SyncPolicy:
    """Rule for the steps whose results are read at once: before log lines, evaluations, checkpoints and the end.

    Args:
        plan: Training plan of the run.
        log_interval_steps: Steps between two lines of metrics.jsonl.
        intervals: Intervals between evaluations and between checkpoints.
    """

    def __init__(self, plan: TrainPlan, log_interval_steps: int, intervals: Sequence[Duration]) -> None:
        self.plan = plan
        self.log_interval_steps = log_interval_steps
        self.intervals = intervals

    def is_log_step(self, step: int) -> bool:
        """Return whether a step is logged: the first step and every Nth step, counted from 1."""
        return step == 1 or step % self.log_interval_steps == 0

    def must_sync(
        self,
        last_sync_position: TrainPosition,
        position: TrainPosition,
        *,
        step_seconds: float | None,
        stop_requested: bool,
    ) -> bool:
        """Return whether the step that led to `position` has to be finalized at once.

        Args:
            last_sync_position: Position after the synchronization step before this one.
            position: Position after the step; its seconds are an estimate.
            step_seconds: Duration of a step in seconds, or None in the first two steps of a session. These measure it,
                and are always finalized at once.
            stop_requested: Whether the run has been asked to stop.
        """
        if step_seconds is None or stop_requested or self.is_log_step(position.steps):
            return True
        # The estimate may be one step too low, and a time limit ends the run one step early.
        later = replace(position, seconds=position.seconds + 2 * step_seconds)
        return self.plan.is_done(later) or any(
            has_passed(interval, last_sync_position, position) for interval in self.intervals
        )
