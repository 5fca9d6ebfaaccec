"""Rollback: choice of the checkpoint, the log entry, and the resume point."""

import numpy as np
import pytest
import torch

from mosaicbert.train.checkpoint.format import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_state,
    remove_checkpoint,
    step_of,
    write_checkpoint,
)
from mosaicbert.train.checkpoint.resume import find_resume_point
from mosaicbert.train.checkpoint.rollback import log_rollback
from mosaicbert.train.faults.log import Fault, FaultLog
from mosaicbert.train.faults.spike_detector import RollbackRequest
from mosaicbert.train.run_folder import RunFolder


def _samples_of(batch):
    return np.array([0, 1]), np.array([2 * batch, 2 * batch + 1])


def _rollback(step, batches, resumed_step=0):
    return Fault(kind="rollback", step=step, reason="loss 9", batches=batches, resumed_step=resumed_step, samples=[])


@pytest.fixture
def faults(tmp_path):
    return FaultLog(tmp_path / "faults.jsonl")


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def _write_checkpoints(run, *steps, rollbacks=0):
    for step in steps:
        state = {"step": step, "rollbacks": rollbacks}
        write_checkpoint(run.checkpoints, step, Checkpoint({"w": torch.zeros(1)}, {}, state), keep=False)


def _steps(run):
    return [step_of(path) for path in list_checkpoints(run.checkpoints)]


@pytest.mark.parametrize(
    "checkpoints, rollback_steps, resumed_step",
    [
        ([3, 6, 9], [], 6),
        ([3, 6, 8], [], 6),
        ([3, 6], [], 6),
        ([3], [], 3),
        ([], [], 0),
        ([9, 12], [], 0),
        ([3, 6, 9], [8], 3),
        ([3, 6, 9], [12], 3),
        ([3, 6, 9], [18], 3),
        ([3, 6, 9], [19], 6),
        ([1, 3, 6], [7, 9], 1),
        ([1, 3, 6], [7, 8, 9, 10], 1),
        ([3, 6], [200], 6),
    ],
    ids=[
        "newest-before-the-step",
        "checkpoint-of-the-step-itself",
        "newest",
        "one-checkpoint",
        "no-checkpoint",
        "only-later-checkpoints",
        "rollback-at-the-same-step",
        "rollback-at-a-later-step",
        "rollback-one-window-away",
        "rollback-further-away",
        "two-rollbacks",
        "more-rollbacks-than-checkpoints",
        "rollback-far-away",
    ],
)
def test_each_nearby_rollback_resumes_from_an_earlier_checkpoint(
    checkpoints, rollback_steps, resumed_step, run, faults
):
    _write_checkpoints(run, *checkpoints, rollbacks=len(rollback_steps))
    for step in rollback_steps:
        faults.write(_rollback(step, [step - 1]))
    fault = log_rollback(run, faults, RollbackRequest(8, [7], "loss 9"), window_steps=10, samples_of=_samples_of)
    assert fault.resumed_step == resumed_step
    resume_point, _ = find_resume_point(run, faults, None, lambda _: None)
    assert resume_point.step == resumed_step
    assert _steps(run) == [step for step in checkpoints if step <= resumed_step]
    assert [read_state(path)["step"] for path in list_checkpoints(run.checkpoints)] == _steps(run)


@pytest.mark.parametrize("removed", [(), (9,), (9, 6)], ids=["none", "one", "both"])
def test_a_rollback_that_crashed_is_completed(removed, run, faults):
    _write_checkpoints(run, 3, 6, 9)
    faults.write(_rollback(10, [7], resumed_step=3))
    for step in removed:
        remove_checkpoint(checkpoint_path(run.checkpoints, step))
    resume_point, _ = find_resume_point(run, faults, None, lambda _: None)
    assert (resume_point.step, resume_point.skipped_batches, _steps(run)) == (3, {7}, [3])


def test_checkpoints_written_after_a_rollback_are_not_removed(run, faults):
    faults.write(_rollback(8, [6], resumed_step=3))
    _write_checkpoints(run, 3, 6, 9, rollbacks=1)
    resume_point, _ = find_resume_point(run, faults, None, lambda _: None)
    assert (resume_point.step, _steps(run)) == (9, [3, 6, 9])


def test_a_rollback_is_logged_with_the_batches_and_their_samples(run, faults):
    _write_checkpoints(run, 3, 6)
    cause = RollbackRequest(8, [7, 6], "loss 9.000 after a median of 3.000")
    fault = log_rollback(run, faults, cause, window_steps=10, samples_of=_samples_of)
    assert faults.read() == [fault]
    assert fault == Fault(
        kind="rollback",
        step=8,
        reason="loss 9.000 after a median of 3.000",
        batches=[6, 7],
        resumed_step=6,
        samples=[[0, 12], [1, 13], [0, 14], [1, 15]],
    )


def test_a_run_resumes_from_a_checkpoint_before_the_first_skipped_batch(run, faults):
    # Steps without an update can be before and after a checkpoint.
    _write_checkpoints(run, 3, 6, 9)
    cause = RollbackRequest(11, list(range(5, 11)), "6 steps in a row without a finite loss")
    assert log_rollback(run, faults, cause, window_steps=10, samples_of=_samples_of).resumed_step == 3
