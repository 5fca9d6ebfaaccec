"""Where a run stands, apart from its weights: how far it has come, how fast it goes, and when it was asked to stop."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mosaicbert.config import Duration, OptimizerConfig
from mosaicbert.train.faults.spike_detector import Guard
from mosaicbert.train.lr_schedule import learning_rate_share
from mosaicbert.train_plan import TrainPlan, TrainPosition, has_passed

_STEPS_TIMED = 10


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step gave, the same on every rank.

    Attributes:
        step: its number, from 1.
        batch: number of its batch.
        loss: nats per masked token of the global batch.
        accuracy: share of the masked tokens that were right.
        grad_norm: Euclidean norm of the whole gradient.
        seconds: that the step took, evaluations left out.
        learning_rate_share: of the peak.
        updated: whether it changed the weights.
    """

    step: int
    batch: int
    loss: float
    accuracy: float
    grad_norm: float
    seconds: float
    learning_rate_share: float
    updated: bool


class Course:
    """The state of a run that all ranks agree on without asking: what changes it is the same on all of them.

    A step is counted when all of its work has been given to the device, and settled when its numbers have come back:
    at once if something is due after it, else while the device is at the step that follows.

    Args:
        plan: of the run.
        guard: of its numbers.
        optimizer: the recipe's section, for the learning rate.
        log_interval_steps: between two lines of metrics.jsonl.
        intervals: between two evaluations, and between two checkpoints.

    Attributes:
        position: how far the run has come; while a step is not settled, its seconds are an estimate.
        is_due: whether the last step has to be settled at once, since something may have to be done after it. The first
            two of a sitting have to: they tell how long a step takes.
        before: where the run stood after the last step that was due before this one.
        training_seconds: of the settled steps alone, without evaluations.
        report: of the last settled step of this sitting.
        step_seconds: that a step takes: the median of the last ones, without the first of a sitting, which compiles.
        stop: whether the run has been asked to stop.
    """

    def __init__(
        self,
        plan: TrainPlan,
        guard: Guard,
        optimizer: OptimizerConfig,
        log_interval_steps: int,
        intervals: Sequence[Duration],
    ) -> None:
        self.plan = plan
        self.guard = guard
        self.optimizer = optimizer
        self.log_interval_steps = log_interval_steps
        self.intervals = intervals
        self.position = self.before = TrainPosition()
        self.training_seconds = 0.0
        self.report: StepReport | None = None
        self.step_seconds = 0.0
        self._lasted: deque[float] = deque(maxlen=_STEPS_TIMED)
        self._is_warm = False
        self._num_unsettled = 0
        self.is_due = self.stop = False

    def after(self, samples: int, tokens: int) -> TrainPosition:
        """Where the run will stand after a step of so many samples and tokens that takes as long as the last one."""
        now = self.position
        return TrainPosition(
            steps=now.steps + 1,
            samples=now.samples + samples,
            tokens=now.tokens + tokens,
            seconds=now.seconds + self.step_seconds,
        )

    def learning_rate_share(self, samples: int, tokens: int) -> float:
        """Of its peak, in the step that comes next, which trains so many samples and tokens."""
        return learning_rate_share(self.optimizer, self.plan.share_done(self.after(samples, tokens)))

    def count(self, samples: int, tokens: int) -> None:
        """Counts a step whose forward and backward passes have been given to the device.

        Args:
            samples: of the global batch.
            tokens: real ones among them.
        """
        if self.is_due:
            self.before = self.position
        self.position = self.after(samples, tokens)
        self._num_unsettled += 1
        # The clock is read when the device has come to the step before, and a time ends one step early.
        later = replace(self.position, seconds=self.position.seconds + 2 * self.step_seconds)
        self.is_due = (
            not self._lasted
            or self.stop
            or self._is_log_step
            or self.plan.is_done(later)
            or any(has_passed(interval, self.before, self.position) for interval in self.intervals)
        )

    def settle(self, report: StepReport, seconds: float) -> None:
        """Takes what the oldest of the counted steps gave.

        Args:
            report: of it.
            seconds: on the clock of rank 0 since the run began, pauses between sittings left out.
        """
        self._num_unsettled -= 1
        self.training_seconds += report.seconds
        self.report = report
        if self._is_warm:
            self._lasted.append(report.seconds)
            self.step_seconds = statistics.median(self._lasted)
        self._is_warm = True
        self.position = replace(self.position, seconds=seconds)

    @property
    def is_settled(self) -> bool:
        """Whether the numbers of all steps are known."""
        return self._num_unsettled == 0

    @property
    def is_logged(self) -> bool:
        """Whether the last step gets a line in metrics.jsonl: the first, the last and every so-manieth do."""
        return self.is_settled and (self._is_log_step or self.is_done)

    @property
    def is_done(self) -> bool:
        """Whether the run ends here; a time is over when one more step like the last would pass it."""
        then = replace(self.position, seconds=self.position.seconds + self.step_seconds)
        return self.is_settled and self.plan.is_done(then)

    @property
    def _is_log_step(self) -> bool:
        return self.position.steps == 1 or self.position.steps % self.log_interval_steps == 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, when all steps are settled: numbers that JSON can hold."""
        assert self.is_settled
        return {
            "position": asdict(self.position),
            "training_seconds": self.training_seconds,
            "step_seconds": self.step_seconds,
            "is_done": self.is_done,
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.position = self.before = TrainPosition(**state["position"])
        self.training_seconds = state["training_seconds"]
        self.step_seconds = state["step_seconds"]
        self.guard.load_state_dict(state["guard"])


class Clock:
    """Seconds since a run began, summed over its sittings, and how long its steps took without the evaluations."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._lap = self._paused_at = 0.0

    def start(self, seconds: float) -> None:
        """Begins a sitting of a run that has taken `seconds` before; or goes on, if the sitting has begun already."""
        self._lap = time.monotonic()
        if self._began is None:
            self._began = self._lap - seconds

    @property
    def seconds(self) -> float:
        """Since the run began."""
        assert self._began is not None
        return time.monotonic() - self._began

    def pause(self) -> None:
        """What comes now is no training."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """The training goes on."""
        self._lap += time.monotonic() - self._paused_at

    def lap(self) -> float:
        """Seconds of training since this was last asked, or since the sitting began."""
        now = time.monotonic()
        lasted, self._lap = now - self._lap, now
        return lasted
