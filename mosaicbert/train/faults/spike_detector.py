"""What is done when the numbers go wrong: a step is skipped, or the run goes back and leaves batches out."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

from mosaicbert.config import FaultConfig

_NORMAL = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations
_LEAST_DEVIATION = 0.01  # of the median: no loss is steadier, and a smaller rise is worth no going back


class RollBack(Exception):
    """The run is to go back to a checkpoint and leave batches out. Every rank raises it in the same step.

    Attributes:
        step: number of the step that went wrong, from 1.
        batches: numbers of those to leave out.
        reason: in words.
    """

    def __init__(self, step: int, batches: Sequence[int], reason: str) -> None:
        super().__init__(reason)
        self.step = step
        self.batches = sorted(batches)
        self.reason = reason


class Guard:
    """Judges each step by its loss and gradient norm. An update that is not finite has been withheld by then.

    A loss is a spike if it lies many robust standard deviations (by the median absolute deviation of the recent losses)
    above their median. The batches to blame are the spiking one, and those since the last checkpoint whose gradient
    norm stood out in the same way.

    Args:
        config: the recipe's section.
    """

    def __init__(self, config: FaultConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window_steps)
        self.norms: deque[float] = deque(maxlen=config.window_steps)
        self.suspects: list[int] = []
        self.skipped: list[int] = []  # batches of the steps in a row without an update
        self.num_skipped = 0

    def judge(self, step: int, batch: int, loss: float, norm: float) -> bool:
        """Whether the step has updated the weights.

        Args:
            step: its number, from 1.
            batch: its batch's number.
            loss: mean over the masked tokens of the global batch; NaN if there are none.
            norm: of the gradient.

        Raises:
            RollBack: the loss is a spike, or too many steps in a row were not finite.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.num_skipped += 1
            self.skipped.append(batch)
            if len(self.skipped) > self.config.max_skipped_steps:
                raise RollBack(step, self.skipped, f"{len(self.skipped)} steps in a row without a finite loss")
            return False
        self.skipped.clear()
        if self._stands_out(loss, self.losses):
            median = statistics.median(self.losses)
            raise RollBack(step, [*self.suspects, batch], f"loss {loss:.3f} after a median of {median:.3f}")
        if self._stands_out(norm, self.norms):
            self.suspects.append(batch)
        self.losses.append(loss)
        self.norms.append(norm)
        return True

    def clear_suspects(self) -> None:
        """Called when a checkpoint has been written: what came before it cannot be left out any more."""
        self.suspects.clear()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run judges as the uninterrupted one would have."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "skipped": list(self.skipped),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.losses = deque(state["losses"], maxlen=self.config.window_steps)
        self.norms = deque(state["norms"], maxlen=self.config.window_steps)
        self.skipped = list(state["skipped"])
        self.num_skipped = state["num_skipped"]

    def _stands_out(self, value: float, recent: deque[float]) -> bool:
        if len(recent) < self.config.window_steps // 2:
            return False
        median = statistics.median(recent)
        spread = _NORMAL * statistics.median(abs(other - median) for other in recent)
        return value > median + self.config.spike_deviations * max(spread, _LEAST_DEVIATION * abs(median))
