"""What is kept of a run's faults: faults.jsonl, which also says which batches the run leaves out."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mosaicbert.config import ConfigError
from mosaicbert.data.store import write_file
from mosaicbert.train.composer import dist
from mosaicbert.train.progress import StepReport

SamplesOf = Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A line of faults.jsonl.

    Attributes:
        kind: skipped: a step without an update; rollback: the run went back; checkpoint: one was damaged, or could not
            be written.
        step: number of the step, from 1.
        reason: in words.
        batches: numbers of the batches concerned.
        resumed_step: the step that a rollback went back to.
        samples: of the batches, as [epoch, number in the store].
    """

    kind: Literal["skipped", "rollback", "checkpoint"]
    step: int
    reason: str
    batches: list[int]
    resumed_step: int | None = None
    samples: list[list[int]] | None = None


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
        faults = self.read()
        if fault not in faults:
            lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in [*faults, fault])
            write_file(self.path, lines.encode())

    def note(self, fault: Fault) -> None:
        """Adds a line if that can be done: a full disk is no reason to stop."""
        with contextlib.suppress(ConfigError):
            self.write(fault)

    def rollbacks(self) -> list[Fault]:
        """The times that the run went back."""
        return [fault for fault in self.read() if fault.kind == "rollback"]

    def skipped_batches(self) -> set[int]:
        """The batches that the run leaves out."""
        return {batch for fault in self.rollbacks() for batch in fault.batches}


class SkippedSteps:
    """Notes steps that have not changed the weights, with their samples. Only rank 0 writes.

    Args:
        faults: of the run.
        samples_of: a batch: the epochs and the numbers of its samples, see `TrainDataset`.
    """

    def __init__(self, faults: FaultLog, samples_of: SamplesOf) -> None:
        self.faults = faults
        self.samples_of = samples_of

    def note(self, report: StepReport) -> None:
        """Notes a step."""
        if dist.get_global_rank() == 0:
            self.faults.note(
                Fault(
                    kind="skipped",
                    step=report.step,
                    reason=f"loss {report.loss}, gradient norm {report.grad_norm}",
                    batches=[report.batch],
                    samples=list_samples(self.samples_of, [report.batch]),
                )
            )


def list_samples(samples_of: SamplesOf, batches: Sequence[int]) -> list[list[int]]:
    """[epoch, number in the store] of all samples of some batches."""
    return [pair for batch in batches for pair in np.stack(samples_of(batch), axis=1).tolist()]
