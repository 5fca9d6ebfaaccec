"""What happens when the numbers go wrong: steps are skipped, or the run goes back and leaves batches out."""

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mosaicbert.config import FaultConfig

_NORMAL = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations
_LEAST_DEVIATION = 0.01  # of the median: no loss is steadier, and a smaller rise is worth no going back


class TrainingFault(RuntimeError):
    """The run cannot go on by itself. The message says what happened and what may help, in one line."""


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


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A line of faults.jsonl.

    Attributes:
        kind: skipped: a step without an update; rollback: the run went back; checkpoint: one was damaged or not written.
        step: number of the step, from 1.
        reason: in words.
        batches: numbers of the batches concerned.
        resumed_step: the step that a rollback went back to.
        samples: of the batches, as (epoch, number in the store).
    """

    kind: Literal["skipped", "rollback", "checkpoint"]
    step: int
    reason: str
    batches: list[int]
    resumed_step: int | None = None
    samples: list[tuple[int, int]] | None = None


class FaultLog:
    """faults.jsonl: all that went wrong in a run. It decides which batches are left out, so it is never shortened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Fault]:
        """The faults so far, without a last line that a crash cut off."""
        if not self.path.exists():
            return []
        return [Fault(**json.loads(line)) for line in self.path.read_text().split("\n")[:-1]]

    def write(self, fault: Fault) -> None:
        """Adds a line, and waits until it is on the disk. A step that is done again after a crash adds none."""
        if fault in self.read():
            return
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(fault)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rollbacks(self) -> list[Fault]:
        """The times that the run went back."""
        return [fault for fault in self.read() if fault.kind == "rollback"]

    def skipped_batches(self) -> set[int]:
        """The batches that the run leaves out."""
        return {batch for fault in self.rollbacks() for batch in fault.batches}


class Guard:
    """Judges each step by its loss and gradient norm, before its update.

    A loss is a spike if it lies many robust standard deviations (median absolute deviations of the recent losses) above
    their median. The batches to blame are the spiking one, and those since the last checkpoint whose gradient norm stood
    out in the same way.

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
        """Whether the step may update the weights.

        Args:
            step: its number, from 1.
            batch: its batch's number.
            loss: mean over the masked tokens of the global batch.
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
        self.losses.extend(state["losses"])
        self.norms.extend(state["norms"])
        self.skipped = list(state["skipped"])
        self.num_skipped = state["num_skipped"]

    def _stands_out(self, value: float, recent: deque[float]) -> bool:
        if len(recent) < self.config.window_steps // 2:
            return False
        median = statistics.median(recent)
        spread = _NORMAL * statistics.median(abs(other - median) for other in recent)
        return value > median + self.config.spike_deviations * max(spread, _LEAST_DEVIATION * abs(median))
