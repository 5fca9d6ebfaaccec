"""Fault log of a run, faults.jsonl, which also determines the batches to skip."""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mosaicbert.config import ConfigError
from mosaicbert.filesystem import write_file
from mosaicbert.train.composer import dist
from mosaicbert.train.progress.run_progress import StepReport

# Function that returns the epochs and the numbers in the store of a batch's samples, see `TrainDataset.samples_of`.
BatchSamples = Callable[[int], tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A line of faults.jsonl.

    Attributes:
        kind: "skipped" for a step without an update, "rollback" for a resumption from an earlier checkpoint,
            "checkpoint" for a checkpoint that is corrupted or could not be written.
        step: Number of the step, from 1.
        reason: Reason in words.
        batches: Numbers of the affected batches.
        resumed_step: Step of the checkpoint that a rollback resumed from.
        samples: Samples of the batches, as [epoch, number in the store].
    """

    kind: Literal["skipped", "rollback", "checkpoint"]
    step: int
    reason: str
    batches: list[int]
    resumed_step: int | None = None
    samples: list[list[int]] | None = None


class FaultLog:
    """Fault log of a run, faults.jsonl. Lines are never removed, since they determine the batches to skip."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Fault]:
        """Return the faults so far, without a last line that a crash truncated."""
        if not self.path.exists():
            return []
        return [Fault(**json.loads(line)) for line in self.path.read_text().split("\n")[:-1]]

    def write(self, fault: Fault) -> None:
        """Append a fault durably. A step that is repeated after a crash adds no second line."""
        faults = self.read()
        if fault not in faults:
            lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in [*faults, fault])
            write_file(self.path, lines.encode())

    def try_write(self, fault: Fault) -> None:
        """Append a fault if possible: a full disk does not stop the run."""
        with contextlib.suppress(ConfigError):
            self.write(fault)

    def rollbacks(self) -> list[Fault]:
        """Return the rollbacks of the run, in order."""
        return [fault for fault in self.read() if fault.kind == "rollback"]

    def skipped_batches(self) -> set[int]:
        """Return the numbers of the batches that the run skips."""
        return {batch for fault in self.rollbacks() for batch in fault.batches}


class SkippedStepLog:
    """Log of the steps that did not change the weights, with their samples. Only rank 0 writes.

    Args:
        faults: Fault log of the run.
        samples_of: Function that returns the samples of a batch.
    """

    def __init__(self, faults: FaultLog, samples_of: BatchSamples) -> None:
        self.faults = faults
        self.samples_of = samples_of

    def write(self, report: StepReport) -> None:
        """Append a skipped step."""
        if dist.get_global_rank() == 0:
            self.faults.try_write(
                Fault(
                    kind="skipped",
                    step=report.step,
                    reason=f"loss {report.loss}, gradient norm {report.grad_norm}",
                    batches=[report.batch],
                    samples=list_samples(self.samples_of, [report.batch]),
                )
            )


def list_samples(samples_of: BatchSamples, batches: Sequence[int]) -> list[list[int]]:
    """Return [epoch, number in the store] for all samples of the given batches."""
    return [pair for batch in batches for pair in np.stack(samples_of(batch), axis=1).tolist()]
