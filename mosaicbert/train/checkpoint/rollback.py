"""Rollback of a run to an earlier checkpoint, skipping the batches that caused it."""

from pathlib import Path

from mosaicbert.train.checkpoint.format import (
    CheckpointError,
    list_checkpoints,
    read_state,
    remove_checkpoint,
    step_of,
)
from mosaicbert.train.faults.log import BatchSamples, Fault, FaultLog, list_samples
from mosaicbert.train.faults.spike_detector import RollbackRequest
from mosaicbert.train.run_folder import RunFolder


def log_rollback(
    run: RunFolder, faults: FaultLog, cause: RollbackRequest, window_steps: int, samples_of: BatchSamples
) -> Fault:
    """Log the batches to skip and the checkpoint to resume from. `find_resume_point` then performs the rollback.

    The checkpoint is the newest one before these batches. Each nearby earlier rollback moves it one checkpoint back.

    Args:
        run: Run folder.
        faults: Fault log of the run.
        cause: Request of the spike detector.
        window_steps: Distance in steps within which an earlier rollback is nearby.
        samples_of: Function that returns the samples of a batch.

    Returns:
        The fault that was logged.
    """
    num_nearby = sum(abs(fault.step - cause.step) <= window_steps for fault in faults.rollbacks())
    first_step = cause.step - (cause.batches[-1] - cause.batches[0])
    paths = [path for path in list_checkpoints(run.checkpoints) if step_of(path) < first_step]
    path = paths[max(0, len(paths) - 1 - num_nearby)] if paths else None
    fault = Fault(
        kind="rollback",
        step=cause.step,
        reason=cause.reason,
        batches=cause.batches,
        resumed_step=0 if path is None else step_of(path),
        samples=list_samples(samples_of, cause.batches),
    )
    faults.write(fault)
    return fault


def remove_undone_checkpoints(folder: Path, faults: FaultLog) -> None:
    """Remove the checkpoints that later rollbacks have undone. The newest is removed first, in case of a crash.

    Args:
        folder: Folder of the checkpoints.
        faults: Fault log of the run.
    """
    rollbacks = faults.rollbacks()
    for path in reversed(list_checkpoints(folder)):
        try:
            later_rollbacks = rollbacks[read_state(path)["rollbacks"] :]
        except CheckpointError:
            continue  # the resume skips a checkpoint that cannot be read
        if any((fault.resumed_step or 0) < step_of(path) for fault in later_rollbacks):
            remove_checkpoint(path)
