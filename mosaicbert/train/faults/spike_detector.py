"""Detection of non-finite and spiking training steps."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from mosaicbert.config import FaultConfig

_STD_PER_MAD = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
_MIN_DEVIATION = 0.01  # fraction of the median; smaller rises of a very steady loss do not justify a rollback


class RollbackRequest(Exception):
    """Request to resume the run from a checkpoint and to skip some batches. Every rank raises it in the same step.

    Attributes:
        step: Number of the step that caused it, from 1.
        batches: Numbers of the batches to skip.
        reason: Reason in words.
    """

    def __init__(self, step: int, batches: Sequence[int], reason: str) -> None:
        super().__init__(reason)
        self.step = step
        self.batches = sorted(batches)
        self.reason = reason


class SpikeDetector:
    """Check each step by its loss and gradient norm.

    A step that is not finite has not been applied: the optimizer has skipped it (`update_unless`). A spike is
    found after its update; the run then resumes from a checkpoint before it.

    A loss is a spike if it is many robust standard deviations (from the median absolute deviation of the recent losses)
    above their median. The batches to skip are the spiking one, and those since the last checkpoint whose gradient norm
    was an outlier in the same sense.

    Args:
        config: Faults section of the recipe.

    Attributes:
        num_skipped: Number of steps of the run that were not applied.
    """

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.num_skipped = 0
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._grad_norms: deque[float] = deque(maxlen=config.window_steps)
        self._suspect_batches: list[int] = []
        self._skipped_in_a_row: list[int] = []

    def check(self, step: int, batch: int, loss: float, grad_norm: float) -> bool:
        """Check a step, and return whether it has updated the weights.

        Args:
            step: Number of the step, from 1.
            batch: Number of its batch.
            loss: Mean loss over the masked tokens of the global batch, NaN if there are none.
            grad_norm: Norm of the whole gradient.

        Raises:
            RollbackRequest: If the loss is a spike, or if too many steps in a row were not finite.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.num_skipped += 1
            skipped = self._skipped_in_a_row
            skipped.append(batch)
            if len(skipped) > self.config.max_skipped_steps:
                raise RollbackRequest(step, skipped, f"{len(skipped)} steps in a row without a finite loss")
            return False
        self._skipped_in_a_row.clear()
        if self._is_outlier(loss, self._losses):
            median = statistics.median(self._losses)
            raise RollbackRequest(
                step, [*self._suspect_batches, batch], f"loss {loss:.3f} after a median of {median:.3f}"
            )
        if self._is_outlier(grad_norm, self._grad_norms):
            self._suspect_batches.append(batch)
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        return True

    def clear_suspects(self) -> None:
        """Clear the suspected batches after a checkpoint, since batches before it can no longer be skipped."""
        self._suspect_batches.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values for a checkpoint, so that a resumed run makes the same decisions."""
        return {
            "losses": list(self._losses),
            "grad_norms": list(self._grad_norms),
            "skipped_in_a_row": list(self._skipped_in_a_row),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._losses = deque(state["losses"], maxlen=self.config.window_steps)
        self._grad_norms = deque(state["grad_norms"], maxlen=self.config.window_steps)
        self._skipped_in_a_row = list(state["skipped_in_a_row"])
        self.num_skipped = state["num_skipped"]

    def _is_outlier(self, value: float, recent: deque[float]) -> bool:
        if len(recent) < self.config.window_steps // 2:
            return False
        median = statistics.median(recent)
        deviation = _STD_PER_MAD * statistics.median(abs(other - median) for other in recent)
        return value > median + self.config.spike_deviations * max(deviation, _MIN_DEVIATION * abs(median))
