"""Resuming a run from its newest valid checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaicbert.train.checkpoint.export_worker import ExportWorker
from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    CheckpointError,
    list_checkpoints,
    read_checkpoint,
    step_of,
)
from mosaicbert.train.checkpoint.rollback import remove_undone_checkpoints
from mosaicbert.train.composer import Timestamp, dist
from mosaicbert.train.distributed import broadcast_state
from mosaicbert.train.faults.log import Fault, FaultLog
from mosaicbert.train.run_folder import RunFolder
from mosaicbert.train.trainer import StepTrainer


@dataclass(frozen=True)
class ResumePoint:
    """Point of a run at which a session begins.

    Attributes:
        path: Path of the checkpoint, or None for the beginning of the run.
        state: State of the checkpoint, empty for the beginning of the run.
        skipped_batches: Numbers of the batches that the run skips.
    """

    path: Path | None
    state: dict[str, Any]
    skipped_batches: frozenset[int]

    @property
    def step(self) -> int:
        """Return the number of completed steps."""
        return 0 if self.path is None else step_of(self.path)


def find_resume_point(
    run: RunFolder, faults: FaultLog, export_worker: ExportWorker | None, log: Callable[[str], None]
) -> tuple[ResumePoint, Checkpoint | None]:
    """Find the newest valid checkpoint and the batches to skip. All ranks call it.

    Checkpoints that a rollback has undone are removed, and so are the exports of later steps.

    Args:
        run: Run folder.
        faults: Fault log of the run.
        export_worker: Exporter of checkpoints, on rank 0 only.
        log: Function that prints a line.

    Returns:
        The resume point, the same on every rank, and on rank 0 the content of its checkpoint.
    """
    resume_points: list[Any] = [None]
    checkpoint: Checkpoint | None = None
    if dist.get_global_rank() == 0:
        remove_undone_checkpoints(run.checkpoints, faults)
        path, checkpoint = _read_newest(run.checkpoints, faults, log)
        if export_worker is not None:
            export_worker.remove_after(0 if path is None else step_of(path))
        state = {} if checkpoint is None else checkpoint.state
        resume_points = [ResumePoint(path, state, frozenset(faults.skipped_batches()))]
    dist.broadcast_object_list(resume_points)
    return resume_points[0], checkpoint


def restore(trainer: StepTrainer, resume_point: ResumePoint, checkpoint: Checkpoint | None) -> None:
    """Restore weights, optimizer, progress and spike detector from a checkpoint. All ranks call it.

    Args:
        trainer: Trainer to restore.
        resume_point: Resume point of the session.
        checkpoint: Content of its checkpoint, on rank 0 only.
    """
    if resume_point.path is None:
        return
    progress = trainer.progress
    progress.load_state_dict(resume_point.state)
    trainer.spike_detector.load_state_dict(resume_point.state["spike_detector"])
    position = progress.position
    trainer.state.timestamp = Timestamp(batch=position.steps, sample=position.samples, token=position.tokens)
    weights, optimizer_state = ({}, {}) if checkpoint is None else (checkpoint.model, checkpoint.optimizer)
    has_updated = position.steps > trainer.spike_detector.num_skipped
    model, optimizer = trainer.composer_model.model, trainer.state.optimizers[0]
    broadcast_state(model, optimizer, weights, optimizer_state, has_updated=has_updated)


def _read_newest(
    folder: Path, faults: FaultLog, log: Callable[[str], None]
) -> tuple[Path, Checkpoint] | tuple[None, None]:
    for path in reversed(list_checkpoints(folder)):
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            log(f"checkpoint skipped: {error}")
            faults.try_write(Fault(kind="checkpoint", step=step_of(path), reason=str(error), batches=[]))
    return None, None
