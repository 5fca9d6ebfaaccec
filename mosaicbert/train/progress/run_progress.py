"""Progress of a run: steps, samples, tokens and seconds, the same on every rank."""

import statistics
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any

from mosaicbert.train.progress.sync_policy import SyncPolicy
from mosaicbert.train_plan import TrainPlan, TrainPosition

_NUM_TIMED_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Results of one training step, the same on every rank.

    Attributes:
        step: Number of the step, from 1.
        batch: Number of the batch that the step trained on.
        loss: Loss in nats per masked token of the global batch.
        accuracy: Fraction of the masked tokens that were predicted correctly.
        grad_norm: Euclidean norm of the whole gradient.
        seconds: Duration of the step in seconds, without evaluations.
        cpu_seconds: CPU time of the training processes of all ranks in seconds, without loader processes.
        lr_fraction: Learning rate as a fraction of its peak.
        updated: Whether the step changed the weights.
    """

    step: int
    batch: int
    loss: float
    accuracy: float
    grad_norm: float
    seconds: float
    cpu_seconds: float
    lr_fraction: float
    updated: bool


class RunProgress:
    """Counters of a run, which are equal on all ranks without communication.

    A step is counted when its work has been enqueued on the device. It is finalized when its results have been read: at
    once on a synchronization step (`SyncPolicy`), otherwise while the device computes the next step.

    Args:
        plan: Training plan of the run.
        sync_policy: Rule for the steps that are finalized at once.

    Attributes:
        position: Position after the last counted step. Its seconds are an estimate while a step is pending.
        last_sync_position: Position after the last synchronization step before the current one. `has_passed` compares
            it with `position` to determine whether an interval has passed.
        is_sync_step: Whether the last counted step has to be finalized at once.
        training_seconds: Training time of all finalized steps in seconds, without evaluations.
        cpu_seconds: CPU time of all finalized steps in seconds, without evaluations.
        report: Report of the last finalized step of this session, or None.
        step_seconds: Median duration of the last steps in seconds, without the first step of a session, which compiles.
        stop_requested: Whether the run has been asked to stop.
    """

    def __init__(self, plan: TrainPlan, sync_policy: SyncPolicy) -> None:
        self.plan = plan
        self.sync_policy = sync_policy
        self.position = self.last_sync_position = TrainPosition()
        self.training_seconds = self.cpu_seconds = 0.0
        self.report: StepReport | None = None
        self.step_seconds = 0.0
        self._recent_step_seconds: deque[float] = deque(maxlen=_NUM_TIMED_STEPS)
        self._has_compiled = False
        self._num_pending = 0
        self.is_sync_step = self.stop_requested = False

    def position_after(self, samples: int, tokens: int) -> TrainPosition:
        """Return the position after one more step of the given size and the median duration."""
        return TrainPosition(
            steps=self.position.steps + 1,
            samples=self.position.samples + samples,
            tokens=self.position.tokens + tokens,
            seconds=self.position.seconds + self.step_seconds,
        )

    def count(self, samples: int, tokens: int) -> None:
        """Count a step whose forward and backward passes have been enqueued on the device.

        Args:
            samples: Number of samples of the global batch.
            tokens: Number of real tokens of the global batch, without padding.
        """
        if self.is_sync_step:
            self.last_sync_position = self.position
        self.position = self.position_after(samples, tokens)
        self._num_pending += 1
        self.is_sync_step = self.sync_policy.must_sync(
            self.last_sync_position,
            self.position,
            step_seconds=self.step_seconds if self._recent_step_seconds else None,
            stop_requested=self.stop_requested,
        )

    def finalize(self, report: StepReport, seconds: float) -> None:
        """Record the results of the oldest pending step.

        Args:
            report: Report of the step.
            seconds: Wall-clock time of rank 0 since the run began in seconds, without pauses between sessions.
        """
        self._num_pending -= 1
        self.training_seconds += report.seconds
        self.cpu_seconds += report.cpu_seconds
        self.report = report
        if self._has_compiled:
            self._recent_step_seconds.append(report.seconds)
            self.step_seconds = statistics.median(self._recent_step_seconds)
        self._has_compiled = True
        self.position = replace(self.position, seconds=seconds)

    @property
    def is_finalized(self) -> bool:
        """Return whether no step is pending."""
        return self._num_pending == 0

    @property
    def is_logged(self) -> bool:
        """Return whether metrics.jsonl has a line for the last step: for the first, the last and every Nth step."""
        return self.is_finalized and (self.sync_policy.is_log_step(self.position.steps) or self.is_done)

    @property
    def is_done(self) -> bool:
        """Return whether the run ends with the last step. A time limit ends it before a step that would exceed it."""
        next_position = replace(self.position, seconds=self.position.seconds + self.step_seconds)
        return self.is_finalized and self.plan.is_done(next_position)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as JSON values, for a checkpoint. No step may be pending."""
        assert self.is_finalized
        return {
            "position": asdict(self.position),
            "training_seconds": self.training_seconds,
            "cpu_seconds": self.cpu_seconds,
            "step_seconds": self.step_seconds,
            "is_done": self.is_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters that `state_dict` returned."""
        self.position = self.last_sync_position = TrainPosition(**state["position"])
        self.training_seconds, self.cpu_seconds = state["training_seconds"], state["cpu_seconds"]
        self.step_seconds = state["step_seconds"]
